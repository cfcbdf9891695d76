package tracefile

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

func example(drv string) Build {
	asked := time.Date(2026, 1, 30, 12, 0, 0, 123456789, time.UTC)
	return Build{
		Asked: asked, Ended: asked.Add(time.Minute), Principal: "anna", Domain: "lab", Drv: drv, Name: "hello-2.12",
		System: "x86_64-linux", Features: []string{"kvm"}, Seconds: 12.5,
		Inputs:  []Input{{Path: "/nix/store/b", Size: 7}, {Path: "/nix/store/a", Size: 3}},
		Outputs: []Path{{"/nix/store/" + drv + "-out", 9}},
	}
}

func open(t *testing.T, path string, limit int64) *Recorder {
	t.Helper()
	r, err := NewRecorder(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func record(t *testing.T, r *Recorder, b Build) {
	t.Helper()
	if err := r.Record(b); err != nil {
		t.Fatal(err)
	}
}

func readAll(t *testing.T, path string) []Build {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var all []Build
	for r := NewReader(path, file); ; {
		b, _, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, *b)
	}
}

// What the recorder writes is what the reader gives back, all of it.
func TestWhatIsRecordedIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	r := open(t, path, 0)
	record(t, r, example("one"))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	record(t, open(t, path, 0), example("two"))
	if got, want := readAll(t, path), []Build{example("one"), example("two")}; !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v\nexpected %+v", got, want)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v: store paths may be secrets", info.Mode())
	}
}

// Guards against a history that fills the disk, and against one that forgets all
// when it turns a page.
func TestAHistoryIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	r := open(t, path, maxLine)
	const n = 7000 // some 3 MB
	for i := range n {
		record(t, r, example(fmt.Sprintf("drv-%d-%s", i, strings.Repeat("x", 100))))
	}
	kept := readAll(t, path+".1")
	kept = append(kept, readAll(t, path)...)
	for i, b := range kept {
		if want := fmt.Sprintf("drv-%d-", n-len(kept)+i); !strings.HasPrefix(b.Drv, want) {
			t.Fatalf("build %d of those kept is %.20s, expected %s: there is a gap", i, b.Drv, want)
		}
	}
	for _, name := range []string{path, path + ".1"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > maxLine {
			t.Errorf("%s has %d bytes, the limit is %d", name, info.Size(), maxLine)
		}
	}
	if files, _ := filepath.Glob(path + "*"); len(files) != 2 {
		t.Errorf("there are %q, expected two files", files)
	}
}

// A crash leaves a part of a line. Guards against the next build becoming part of
// it, which would spoil the file for the reader.
func TestATornLineIsCutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	record(t, open(t, path, 0), example("one"))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, torn := range []string{string(whole) + string(whole[:40]), string(whole[:40])} {
		if err := os.WriteFile(path, []byte(torn), 0o600); err != nil {
			t.Fatal(err)
		}
		record(t, open(t, path, 0), example("two"))
		all := readAll(t, path)
		if last := all[len(all)-1]; last.Drv != "two" {
			t.Errorf("the last build is %q", last.Drv)
		}
	}
}

// A build has thousands of inputs: the largest are written, which travel for long,
// and those that another build made, which had to be waited for, however small.
func TestTheInputsThatMatterAreRecorded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	r := open(t, path, 0)
	record(t, r, example("lib"))
	b := example("user")
	b.Inputs = []Input{{Path: "/nix/store/lib-out", Size: 1}}
	for i := range 3000 {
		b.Inputs = append(b.Inputs, Input{Path: fmt.Sprintf("/nix/store/%d", i), Size: int64(100 + i)})
	}
	record(t, r, b)
	got := readAll(t, path)[1].Inputs
	if len(got) != keptInputs+1 {
		t.Fatalf("%d inputs were written, expected %d", len(got), keptInputs+1)
	}
	if got[0].Size != 3099 || got[keptInputs].Path != "/nix/store/lib-out" {
		t.Errorf("first is %v and last %v", got[0], got[keptInputs])
	}
	if len(b.Inputs) != 3001 || b.Inputs[0].Size != 1 {
		t.Error("the caller's inputs were changed")
	}
}

// What the reader would refuse is not written: one such line would spoil the file.
func TestNothingUnreadableIsRecorded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	r := open(t, path, 0)
	b := example("one")
	b.Principal = ""
	if err := r.Record(b); err == nil {
		t.Error("a build without principal was recorded")
	}
	if all := readAll(t, path); len(all) != 0 {
		t.Errorf("it stands in the file: %v", all)
	}
	r.Close()
	if err := r.Record(example("one")); err == nil {
		t.Error("a build was recorded after Close")
	}
}

func TestBuildsThatEndAtOnceAreWholeLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	r := open(t, path, 0)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := r.Record(example(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := len(readAll(t, path)); got != 50 {
		t.Errorf("%d builds were recorded, expected 50", got)
	}
}
