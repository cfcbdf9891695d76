package proxy

import (
	"context"
	"slices"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against a path that two send to one builder, against one that comes before
// what it refers to, and against two that wait for each other.
func TestWhatIsOnItsWayIsNotSentAgain(t *testing.T) {
	s := newSending()
	lib, app, other := newLabFile(labPath("lib"), "x").info, newLabFile(labPath("app"), "x", labPath("lib")).info, newLabFile(labPath("other"), "x").info
	mine, first, others := s.claim("b1", []*nix.PathInfo{lib}, nil)
	if len(mine) != 1 || len(others) != 0 || !s.has("b1", lib.Path) {
		t.Fatalf("first: %d claimed, %d others", len(mine), len(others))
	}
	mine, second, others := s.claim("b1", []*nix.PathInfo{lib, app, other}, nil)
	if !slices.Equal(mine, []*nix.PathInfo{other}) || !slices.Equal(others, []*sender{first}) {
		t.Errorf("second: claimed %v, others %v", mine, others)
	}
	if mine, elsewhere, others := s.claim("b2", []*nix.PathInfo{lib, app}, nil); len(mine) != 2 || len(others) != 0 {
		t.Errorf("another builder: claimed %v, others %v", mine, others)
	} else {
		s.release(elsewhere)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := await(ctx, others); err == nil {
		t.Error("who has left waits on")
	}
	s.release(first)
	if err := await(t.Context(), others); err != nil {
		t.Error(err)
	}
	s.release(second)
	if mine, own, others := s.claim("b1", []*nix.PathInfo{lib, app}, nil); len(mine) != 2 || len(others) != 0 {
		t.Errorf("afterwards: claimed %v, others %v", mine, others)
	} else {
		s.release(own)
	}
	if len(s.by) != 0 {
		t.Errorf("%d stay", len(s.by))
	}
}
