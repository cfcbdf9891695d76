package policy

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

// Guards against a policy that is another one when it is split: lists are joined in
// the order of the files, and relative names start from the file that has them.
func TestASplitPolicyIsTheSame(t *testing.T) {
	d := newDir(t)
	d.write("anna.keys", authorizedLine("anna")+"\n", 0o644)
	principal := func(name, keys string) string {
		return fmt.Sprintf("  - {name: %s, role: full, authorized_keys: %s}\n", name, keys)
	}
	d.write("otto.keys", authorizedLine("otto")+"\n", 0o644)
	d.write("policy.d/otto.keys", authorizedLine("otto")+"\n", 0o644)
	rest := "domains: [{name: ci, signing_keys: [%s]}]\nscheduling: {attempts: 2, alone: [benchmark]}\nbuild_limits: [{timeout: 1h}]\n"
	want := d.load(t, minimal+"listen: [\":22\", \":23\"]\nlog: {level: warn, format: text}\n"+builderText("")+
		"principals:\n"+principal("anna", "anna.keys")+principal("otto", "otto.keys")+fmt.Sprintf(rest, "ci-1.secret"))

	d.write("policy.d/20.yaml", "principals:\n"+principal("otto", "otto.keys")+fmt.Sprintf(rest, "../ci-1.secret"), 0o644)
	d.write("policy.d/10.yaml", "log: {format: text}\n"+strings.Replace(builderText(""), "builder-key", "../builder-key", 1), 0o644)
	d.write("more", "listen: [\":23\"]\n", 0o644)
	for _, include := range []string{"include: [policy.d, more]\n", "include: [more, " + d.path("policy.d/20.yaml") + ", policy.d/10.yaml]\n"} {
		got := d.load(t, minimal+include+"listen: [\":22\"]\nlog: {level: warn}\nprincipals:\n"+principal("anna", "anna.keys"))
		if len(got.Included) != 3 {
			t.Errorf("%s: included %v", include, got.Included)
		}
		got.Included, got.FileHash = nil, want.FileHash // which are those of its files
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got\n%+v\nwant\n%+v", include, got, want)
		}
	}
}

// Guards against an order that is the file system's: of build limits the first counts.
func TestIncludedFilesAreReadInTheOrderOfTheirNames(t *testing.T) {
	d := newDir(t)
	for i, name := range []string{"b", "a", "z", "c", "0"} {
		d.write("policy.d/"+name+".yaml", fmt.Sprintf("build_limits: [{system: s-%s, cores: %d}]\n", name, i+1), 0o644)
	}
	var got []string
	for _, l := range d.load(t, minimal+"include: policy.d\nbuild_limits: [{system: main, cores: 9}]\n").BuildLimits {
		got = append(got, l.System)
	}
	if want := "main s-0 s-a s-b s-c s-z"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

// Guards against a state directory that only an included file has.
func TestAnIncludedFileMayHaveWhatThePolicyNeeds(t *testing.T) {
	d := newDir(t)
	d.write("policy.d/a.yaml", "state_dir: state\n", 0o644)
	if err := os.Mkdir(d.path("empty.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	pol := d.load(t, "include: [policy.d, empty.d]\n")
	if pol.StateDir != d.path("policy.d/state") {
		t.Errorf("state_dir %s", pol.StateDir)
	}
	if text := describe(t, pol, "proxy"); !strings.HasPrefix(text, "The policy has parts in "+d.path("policy.d/a.yaml")+".\n") {
		t.Errorf("the description begins with %.200s", text)
	}
}

// Guards against a wrong directory that fills memory.
func TestIncludesAreBounded(t *testing.T) {
	disk := fakeDisk{}
	for i := range maxIncludedFiles + 2 {
		disk[fmt.Sprintf("many/%04d.yaml", i)] = ""
		disk[fmt.Sprintf("%04d.yaml", i)] = fmt.Sprintf("listen: [\":%d\"]\n", 1000+i)
	}
	disk["0257.yaml"] = "a mistake, if somebody reads it"
	for i := range maxIncludedBytes/maxPolicyBytes + 1 {
		disk[fmt.Sprintf("large/l%d.yaml", i)] = ""
		disk[fmt.Sprintf("l%d.yaml", i)] = fmt.Sprintf("listen: [\":%d\"]\n", 100+i) + strings.Repeat("\n", maxPolicyBytes-20)
	}
	for include, want := range map[string]string{
		"many": "more than 256 files are included; /many/0256.yaml is the first that is not read", "large": "with /large/l4.yaml the included files have more than 4MiB together",
	} {
		_, err := parse("/policy.yaml", []byte(minimal+"include: "+include+"\n"), disk)
		if err == nil || !strings.Contains(err.Error(), want) || len(err.(*Mistakes).List) != 1 {
			t.Errorf("%s: got %v", include, err)
		}
	}
}

// Guards against files that decide who gets in and that everybody may put there.
func TestIncludesAreNotForEverybodyToWrite(t *testing.T) {
	d := newDir(t)
	d.write("huge.yaml", strings.Repeat("#", maxPolicyBytes+1), 0o644)
	d.write("open.yaml", "log: {}\n", 0o666)
	d.write("open/a.yaml", "log: {}\n", 0o644)
	if err := os.Chmod(d.path("open"), 0o777); err != nil {
		t.Fatal(err)
	}
	for include, want := range map[string]string{
		"huge.yaml": "larger than 1MiB", "open.yaml": "everybody may write " + d.path("open.yaml"), "open": "everybody may write into " + d.path("open"),
	} {
		_, err := Load(d.write("policy.yaml", minimal+"include: ["+include+"]\n", 0o644))
		if err == nil || !strings.Contains(err.Error(), want) || len(err.(*Mistakes).List) != 1 {
			t.Errorf("%s: got %v", include, err)
		}
	}
}

// The same for directories of another kind, of which not even the names are kept.
func TestDirectoriesAreListedUpToALimit(t *testing.T) {
	d := newDir(t)
	for _, name := range []string{"many/a", "many/b", "many/c"} {
		d.write(name, "", 0o644)
	}
	if names, _, err := (realDisk{}).list(d.path("many"), 3); err != nil || len(names) != 3 {
		t.Errorf("got %v, %v", names, err)
	}
	if names, _, err := (realDisk{}).list(d.path("many"), 2); err == nil || names != nil {
		t.Errorf("got %v, %v", names, err)
	}
	if names, _, err := (realDisk{}).list(d.path("builder-key"), 2); err != nil || names != nil {
		t.Errorf("a file: got %v, %v", names, err)
	}
}
