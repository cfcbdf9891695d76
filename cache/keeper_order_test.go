package cache

import (
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against a path that is on disk before what it refers to, which a kill at that
// moment would leave there for good: a large NAR is synced beside the small ones that
// come after it.
func TestNothingIsPublishedBeforeWhatItRefersTo(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	for round := range 4 {
		name := strings.Repeat("r", round+1)
		large := obj("large-"+name, strings.Repeat("x", 48*syncAlone+round))
		middle := obj("middle-"+name, "refers to it", large.info.Path)
		small := obj("small-"+name, "refers to that", middle.info.Path)
		chain := []object{large, middle, small}
		for _, o := range chain {
			o.receive(t, c, Grant{Domain: "team"})
			c.keeper.hurry() // or the large one has time while the small ones wait for others
		}
		for {
			there := make([]bool, len(chain))
			for i, o := range slices.Backward(chain) { // the last first, or one could come between
				_, err := readNarinfo(c.root, keyOf("team", o.info.Path))
				there[i] = err == nil
			}
			if there[2] && !there[1] || there[1] && !there[0] {
				t.Fatalf("round %d: large, middle and small are on disk: %v", round, there)
			}
			if there[2] {
				break
			}
		}
	}
}

// Guards against a removal that takes what something refers to which came after the
// removal had looked for that.
func TestRemovalSeesWhatCameMeanwhile(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	lib := obj("lib", "is referred to")
	lib.receive(t, c, Grant{Domain: "team"})
	flushed(t, c)
	set, err := c.toRemove(t.Context(), "team", []nix.StorePath{lib.info.Path}, true)
	if err != nil {
		t.Fatal(err)
	}
	tool := obj("tool", "refers to it", lib.info.Path)
	tool.receive(t, c, Grant{Domain: "team"})
	flushed(t, c)
	if err := c.onKeeper(func(k *keeper) error { return k.removeClaimed(set.next(), set.paths) }); err == nil {
		t.Error("taken away")
	}
	lib.holds(t, c, "team")
	if gone, err := c.Remove(t.Context(), "team", []nix.StorePath{lib.info.Path}, true); err != nil || len(gone) != 2 {
		t.Errorf("then %d are taken, %v", len(gone), err)
	}
}
