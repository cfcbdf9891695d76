package proxy

import (
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

func testPath(t testing.TB, n int) nix.StorePath {
	t.Helper()
	digits := strings.Map(func(r rune) rune { return rune("0123456789"[r-'0']) }, fmt.Sprintf("%032d", n))
	path, err := nix.ParseStorePath("/nix/store/" + digits + "-p")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Guards against builders that refuse an upload because a path comes before
// what it refers to, and against a stack as deep as a client's chain.
func TestInputsAreSentReferencesFirst(t *testing.T) {
	const n = 100_000
	infos := make([]*nix.PathInfo, n)
	byPath := map[nix.StorePath]*nix.PathInfo{}
	for i := range infos {
		infos[i] = &nix.PathInfo{Path: testPath(t, i)}
		infos[i].References = []nix.StorePath{infos[i].Path} // to itself
		if i > 0 {
			infos[i-1].References = append(infos[i-1].References, infos[i].Path)
		}
		byPath[infos[i].Path] = infos[i]
	}
	sorted := inOrder(infos, func(p nix.StorePath) *nix.PathInfo { return byPath[p] })
	if len(sorted) != n {
		t.Fatalf("%d of %d paths", len(sorted), n)
	}
	seen := map[nix.StorePath]bool{}
	for _, info := range sorted {
		seen[info.Path] = true
		for _, ref := range info.References {
			if !seen[ref] {
				t.Fatalf("%s comes before its reference %s", info.Path, ref)
			}
		}
	}
}

// Guards against a builder that calls a path valid and then does not know it: it
// is a reason to pass it over, and was a panic.
func TestBuilderThatForgetsAPathIsPassedOver(t *testing.T) {
	known, forgotten := &nix.PathInfo{Path: testPath(t, 1)}, testPath(t, 2)
	ours := map[nix.StorePath]*nix.PathInfo{known.Path: known, forgotten: {Path: forgotten}}
	err := sameContent([]nix.StorePath{known.Path, forgotten}, []*nix.PathInfo{known, nil}, ours)
	if err == nil || !strings.Contains(err.Error(), forgotten.String()) {
		t.Errorf("got %v, want a refusal that names %s", err, forgotten)
	}
}
