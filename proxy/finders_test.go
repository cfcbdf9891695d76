package proxy

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against questions that no command of Nix gets an answer to, and against
// answers that tell a client what it may not know.
func TestClientsFindWhatTheirDomainHas(t *testing.T) {
	l := newLab(t)
	alice, reader, eve := l.client("alice"), l.client("reader"), l.client("eve")
	drv := newLabFile(labPath("tool.drv"), "Derive")
	lib := newLabFile(labPath("lib"), "lib")
	lib.info.Deriver = labPath("lib.drv") // which nobody has
	tool := newLabFile(labPath("tool"), "tool", lib.info.Path)
	tool.info.Deriver = drv.info.Path
	if err := alice.upload(t.Context(), drv, lib, tool); err != nil {
		t.Fatal(err)
	}
	mine := nix.SortPaths([]nix.StorePath{drv.info.Path, lib.info.Path, tool.info.Path})

	for _, c := range []*labClient{alice, reader} {
		if got, err := c.QueryReferrers(t.Context(), lib.info.Path); err != nil || !slices.Equal(got, []nix.StorePath{tool.info.Path}) {
			t.Errorf("referrers: %v, %v", got, err)
		}
		if got, err := c.QueryValidDerivers(t.Context(), tool.info.Path); err != nil || !slices.Equal(got, []nix.StorePath{drv.info.Path}) {
			t.Errorf("derivers: %v, %v", got, err)
		}
		if got, err := c.QueryValidDerivers(t.Context(), lib.info.Path); err != nil || len(got) != 0 {
			t.Errorf("a deriver that is not valid: %v, %v", got, err)
		}
		if got, err := c.QueryPathFromHashPart(t.Context(), lib.info.Path.HashPart()); err != nil || got != lib.info.Path {
			t.Errorf("hash part: %v, %v", got, err)
		}
	}
	if got, err := alice.QueryAllValidPaths(t.Context()); err != nil || !slices.Equal(got, mine) {
		t.Errorf("all paths: %v, %v", got, err)
	}
	_, err := reader.QueryAllValidPaths(t.Context())
	wantRefusal(t, "a reader's list", err, "role read", "list all paths")

	if got, err := eve.QueryReferrers(t.Context(), lib.info.Path); err != nil || len(got) != 0 {
		t.Errorf("another domain's referrers: %v, %v", got, err)
	}
	if _, err := eve.QueryPathFromHashPart(t.Context(), lib.info.Path.HashPart()); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("another domain's hash part: %v", err)
	}
	if got, err := eve.QueryAllValidPaths(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("another domain's paths: %v, %v", got, err)
	}
	if _, err := alice.QueryPathFromHashPart(t.Context(), strings.Repeat("x", 60_000)); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("no hash part at all: %v", err)
	}
}
