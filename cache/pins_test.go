package cache

import (
	"testing"

	"nixbastion/internal/nix"
)

func pathsOf(objects ...object) []nix.StorePath {
	paths := make([]nix.StorePath, len(objects))
	for i, o := range objects {
		paths[i] = o.info.Path
	}
	return paths
}

// evictAll evicts whatever may go.
func evictAll(t testing.TB, c *Cache) {
	t.Helper()
	c.keeper.do(func() {
		for {
			plan := c.keeper.plan(1 << 40)
			if len(plan.victims) == 0 {
				return
			}
			if err := c.keeper.remove(plan.victims, plan.deferred); err != nil {
				t.Error(err)
			}
			c.unclaim(plan.victims)
		}
	})
}

// Guards against a path that was promised to a session and goes before its end,
// and against one that stays behind it.
func TestPinsKeepWhatWasPromisedUntilRelease(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Now: ticks()})
	objects := filler(t, c, "p", 4)
	first, second := c.NewPins("alice"), c.NewPins("alice")
	if got := first.QueryValidPaths("team", append(pathsOf(objects[:2]...), pathNamed("absent"))); len(got) != 2 {
		t.Errorf("promised %v", got)
	}
	first.Pin("team", pathsOf(objects[0])) // twice is once
	second.Pin("team", pathsOf(objects[1], objects[2]))
	evictAll(t, c)
	if got := validNames(c, objects); len(got) != 3 {
		t.Errorf("valid: %q", got)
	}
	first.Release()
	first.Release()
	if got := first.Pin("team", pathsOf(objects[1])); len(got) != 1 {
		t.Errorf("released pins answer %v", got)
	}
	evictAll(t, c)
	if got := validNames(c, objects); len(got) != 2 {
		t.Errorf("valid: %q", got)
	}
	second.Release()
	evictAll(t, c)
	if got := validNames(c, objects); len(got) != 0 || len(c.pins) != 0 || len(c.owners) != 0 {
		t.Errorf("valid: %q, pins %v, owners %v", got, c.pins, c.owners)
	}
}

// Guards against one principal that holds the whole store by opening sessions:
// the bound is for all of them together, and nobody else's.
func TestPinsAreBoundedPerOwner(t *testing.T) {
	for name, o := range map[string]Options{
		"by count": {PinnedPaths: 3},
		"by bytes": {PinnedBytes: 3 * unit},
	} {
		t.Run(name, func(t *testing.T) {
			o.Dir, o.Now = newDir(t), ticks()
			c := openCache(t, o)
			objects := filler(t, c, "p", 10)
			one, two, bob := c.NewPins("alice"), c.NewPins("alice"), c.NewPins("bob")
			defer one.Release()
			defer bob.Release()
			if got := one.Pin("team", pathsOf(objects[:2]...)); len(got) != 2 {
				t.Errorf("promised %v", got)
			}
			if got := two.Pin("team", pathsOf(objects[2:6]...)); len(got) != 4 {
				t.Errorf("answered %v: what is not kept is answered", got)
			}
			bob.Pin("team", pathsOf(objects[9]))
			evictAll(t, c)
			if got := validNames(c, objects); len(got) != 4 || got[0] != "p0" || got[3] != "p9" {
				t.Errorf("valid: %q", got)
			}
			two.Release() // makes room for others of the same owner
			more := filler(t, c, "more", 1)
			one.Pin("team", pathsOf(more...))
			evictAll(t, c)
			if got := validNames(c, more); len(got) != 1 {
				t.Error("a released pin still counts")
			}
		})
	}
}

// Guards against bytes that an owner pays for twice, or that are free once
// another session of the owner paid.
func TestAnOwnerPaysOnceForAPath(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Now: ticks(), PinnedBytes: 2 * unit})
	objects := filler(t, c, "p", 3)
	one, two := c.NewPins("alice"), c.NewPins("alice")
	defer two.Release()
	one.Pin("team", pathsOf(objects[0]))
	two.Pin("team", pathsOf(objects[0], objects[1]))
	one.Release()
	two.Pin("team", pathsOf(objects[2]))
	evictAll(t, c)
	if got := validNames(c, objects); len(got) != 2 || got[1] != "p1" {
		t.Errorf("valid: %q", got)
	}
}

// Guards against options that mean the opposite of what they say.
func TestSenselessOptionsAreRefused(t *testing.T) {
	for name, o := range map[string]Options{
		"no directory":       {},
		"negative size":      {Dir: newDir(t), Size: -1},
		"negative bound":     {Dir: newDir(t), PinnedBytes: -1},
		"reserve of all":     {Dir: newDir(t), Size: 1 << 20, Reserve: 1 << 20},
		"reserve below zero": {Dir: newDir(t), Reserve: -1},
	} {
		if c, err := Open(t.Context(), o); err == nil {
			c.Close()
			t.Errorf("%s was accepted", name)
		}
	}
}
