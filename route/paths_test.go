package route

import (
	"fmt"
	"testing"
)

func missing(r *Router, builder string, inputs ...Input) int64 {
	bytes, _ := r.paths.missing(r.storeOf(builder), inputs)
	return bytes
}

// TestHeldPathsBreakTies guards against inputs that are sent where they are not
// although another idle builder has them.
func TestHeldPathsBreakTies(t *testing.T) {
	r := newRouter(linux("b1", 1), linux("b2", 1))
	req := askLinux()
	req.Inputs = []Input{{r.Intern("/nix/store/a"), 10}, {r.Intern("/nix/store/b"), 20}}
	r.NoteHeld("b1", req.Inputs[0].ID)
	r.NoteHeld("b2", req.Inputs[1].ID)
	if got := r.Explain(req).Builder; got != "b2" {
		t.Errorf("went to %s", got)
	}
	r.Forget("b2")
	if got := r.Explain(req).Builder; got != "b1" {
		t.Errorf("went to %s after b2 was forgotten", got)
	}
}

// TestPathsAreBounded guards against a table that grows with every path that a
// client can name, and against a path that inherits the holders of the one whose
// number it got.
func TestPathsAreBounded(t *testing.T) {
	r := New(Options{PathLimit: 4})
	r.SetBuilders([]Builder{linux("b1", 1)})
	old := Input{r.Intern("/nix/store/old"), 1}
	r.NoteHeld("b1", old.ID)
	if missing(r, "b1", old) != 0 {
		t.Fatal("a path is not held right after it was noted")
	}
	for i := range 1000 {
		recent := Input{r.Intern(fmt.Sprint("/nix/store/", i)), 1}
		if missing(r, "b1", recent) != 1 {
			t.Fatalf("path %d is held by a builder that was not told so", i)
		}
	}
	if n := len(r.paths.generations); n != 4 {
		t.Errorf("%d paths have numbers", n)
	}
	if missing(r, "b1", old) != 1 {
		t.Error("a number of an earlier generation is held")
	}
	r.NoteHeld("b1", old.ID)
	for i := range 4 {
		if missing(r, "b1", Input{r.Intern(fmt.Sprint("/nix/store/", 996+i)), 1}) != 1 {
			t.Error("a path is held because another was noted by a number of an earlier generation")
		}
	}
}

// TestUsedPathsKeepTheirNumbers guards the closure that every build shares against
// being forgotten for paths that one build had.
func TestUsedPathsKeepTheirNumbers(t *testing.T) {
	r := New(Options{PathLimit: 4})
	glibc := r.Intern("/nix/store/glibc")
	for i := range 1000 {
		r.Intern(fmt.Sprint("/nix/store/", i))
		if r.Intern("/nix/store/glibc") != glibc {
			t.Fatalf("number lost after %d others", i)
		}
	}
}

// TestZeroPathIsHeldByNobody guards against an id that was never given out.
func TestZeroPathIsHeldByNobody(t *testing.T) {
	r := newRouter(linux("b1", 1))
	r.NoteHeld("b1", r.Intern("/nix/store/a"), 0, PathID(1<<32|7))
	if missing(r, "b1", Input{0, 1}, Input{PathID(1<<32 | 7), 1}) != 2 {
		t.Error("an id that stands for nothing is held")
	}
}

// TestHeldPathsGoWithTheBuilder guards against memory for names that are not
// configured, and against a new builder that inherits what an old one of its name held.
func TestHeldPathsGoWithTheBuilder(t *testing.T) {
	r := newRouter(linux("b1", 1), linux("b2", 1))
	a := Input{r.Intern("/nix/store/a"), 1}
	r.NoteHeld("b1", a.ID)
	r.NoteHeld("b2", a.ID)
	r.NoteHeld("stranger", a.ID)
	r.Forget("stranger")
	r.SetBuilders([]Builder{linux("b2", 1)})
	r.SetBuilders([]Builder{linux("b1", 1), linux("b2", 1)})
	if missing(r, "b1", a) != 1 || missing(r, "b2", a) != 0 || len(r.paths.stores) != 2 {
		t.Errorf("b1 misses %d, b2 %d, %d builders known", missing(r, "b1", a), missing(r, "b2", a), len(r.paths.stores))
	}
}
