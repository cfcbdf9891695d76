package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Guards against a demo that takes a build on the wrong machine, or another's
// output, for the right one.
func TestOutputsTellWhereTheyWereMade(t *testing.T) {
	good := "hello from intel: built on x86-builder, number 01234567\n"
	got, err := readOutputs(good, []target{intel})
	if err != nil || got[0] != (output{"intel", "x86-builder", "01234567"}) {
		t.Errorf("%v, %v", got, err)
	}
	for name, text := range map[string]string{
		"wrong machine": "hello from intel: built on arm-builder, number 01234567\n",
		"other output":  "hello from vm: built on x86-builder, number 01234567\n",
		"no number":     "hello from intel: built on x86-builder, number \n",
		"nothing":       "",
		"one too many":  good + good,
	} {
		if got, err := readOutputs(text, []target{intel}); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Guards against builds that the demo does not notice: one more, one again, one
// elsewhere.
func TestBuildersLogsAreCompared(t *testing.T) {
	before := evidence{"a": {"1-intel.drv.bz2 10.5\n"}, "b": nil}
	if err := sameLogs(before, evidence{"a": {"1-intel.drv.bz2 10.5\n"}, "b": nil}); err != nil {
		t.Error(err)
	}
	for name, now := range map[string]evidence{
		"one more":  {"a": {"1-intel.drv.bz2 10.5\n", "2-vm.drv.bz2 11.5\n"}, "b": nil},
		"again":     {"a": {"1-intel.drv.bz2 12.5\n"}, "b": nil},
		"elsewhere": {"a": {"1-intel.drv.bz2 10.5\n"}, "b": {"1-intel.drv.bz2 12.5\n"}},
	} {
		if err := sameLogs(before, now); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
	built := []output{{attr: "intel"}}
	if err := samePlaces(before["a"], built); err != nil {
		t.Error(err)
	}
	for name, files := range map[string][]string{"nowhere": nil, "another": {"2-vm.drv.bz2 1\n"}} {
		if err := samePlaces(files, built); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}

// Guards against a demo that says that nothing is left without looking.
func TestRemainsAreNoticed(t *testing.T) {
	t.Setenv("NIXBASTION_CACHE", t.TempDir())
	before, err := look()
	if err != nil {
		t.Fatal(err)
	}
	if err := before.remains(); err != nil {
		t.Fatalf("nothing was left, and yet: %v", err)
	}
	folder := filepath.Join(cacheDir(), "beds", ownBeds()+"1")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	process := exec.Command("sleep", "infinity")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	defer process.Wait()
	defer process.Process.Kill()
	namespace, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer namespace.Close()

	left := before.remains()
	if left == nil {
		t.Fatal("a folder, a process and a namespace were left, and nothing was noticed")
	}
	for _, what := range []string{"folder " + folder, "process ", "namespace net:["} {
		if !strings.Contains(left.Error(), what) {
			t.Errorf("%q was not noticed: %v", what, left)
		}
	}
}

// Guards against sentences that are cut in the middle of a word, lost, or never
// end because a word is longer than the line.
func TestFoldKeepsEveryWord(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
	}{
		{"short", []string{"short"}},
		{"one two three four", []string{"one two", "  three", "  four"}},
		{"   deep inside it", []string{"   deep", "  inside", "  it"}},
		{"averylongword and more", []string{"averylongword", "  and", "  more"}},
		{"", []string{""}},
	} {
		if got := fold(c.line, "  ", 8); strings.Join(got, "|") != strings.Join(c.want, "|") {
			t.Errorf("%q: %q, not %q", c.line, got, c.want)
		}
	}
}
