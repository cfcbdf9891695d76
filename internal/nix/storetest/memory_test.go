package storetest

import (
	"testing"

	"nixbastion/internal/nix"
)

// Guards against a memory store that is easier to please than a real one: tests
// that use it would prove nothing.
func TestMemory(t *testing.T) {
	Run(t, World{Open: func(*testing.T) nix.Store { return NewMemory() }})
	t.Run("flat files as NARs", func(t *testing.T) {
		Run(t, World{Open: func(*testing.T) nix.Store { return NewMemory() }, FlatIsNAR: true})
	})
}

// Guards against a finder that answers for what is not there.
func TestMemoryFindsPaths(t *testing.T) {
	m, ctx := NewMemory(), t.Context()
	lib := NewObject("lib", "lib")
	tool := NewObject("tool", "tool", lib.Info.Path)
	for _, o := range []Object{lib, tool} {
		m.Put(o)
	}
	referrers, err := m.QueryReferrers(ctx, lib.Info.Path)
	if err != nil || len(referrers) != 1 || referrers[0] != tool.Info.Path {
		t.Errorf("referrers: %v, %v", referrers, err)
	}
	if p, err := m.QueryPathFromHashPart(ctx, lib.Info.Path.HashPart()); err != nil || p != lib.Info.Path {
		t.Errorf("hash part: %v, %v", p, err)
	}
	if _, err := m.QueryPathFromHashPart(ctx, Path("unknown").HashPart()); err == nil {
		t.Error("found an unknown hash part")
	}
	if all, err := m.QueryAllValidPaths(ctx); err != nil || len(all) != 2 {
		t.Errorf("all: %v, %v", all, err)
	}
	if err := m.AddTempRoots(ctx, []nix.StorePath{lib.Info.Path}); err != nil || len(m.Roots()) != 1 {
		t.Errorf("roots: %v, %v", m.Roots(), err)
	}
	if err := m.AddSignatures(ctx, Path("unknown"), nil); err == nil {
		t.Error("signed an unknown path")
	}
}
