package nix

import (
	"bytes"
	"slices"
	"testing"
)

// Guards against an order of hashes that is not that of the paths, by which a
// sorted list would have to be sorted again, and against two hashes that are one.
func TestHashBytesAreOrderedAsPaths(t *testing.T) {
	var paths []StorePath
	seen := map[[20]byte]bool{}
	for i := range 256 {
		path, err := ParseStorePathBase(EncodeNix32(HashBytes(SHA256, []byte{byte(i)}).Bytes()[:20]) + "-x")
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
		seen[path.HashBytes()] = true
	}
	if len(seen) != len(paths) {
		t.Errorf("%d paths have %d hashes", len(paths), len(seen))
	}
	SortPaths(paths)
	if !slices.IsSortedFunc(paths, func(a, b StorePath) int {
		x, y := a.HashBytes(), b.HashBytes()
		return bytes.Compare(x[:], y[:])
	}) {
		t.Error("hashes of sorted paths are not sorted")
	}
	if got := (StorePath{}).HashBytes(); got != [20]byte{} {
		t.Errorf("no path has the hash %x", got)
	}
	// The same number as DecodeNix32, which writes it the other way round.
	want, err := DecodeNix32(paths[0].HashPart(), 20)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(want)
	if got := paths[0].HashBytes(); !bytes.Equal(got[:], want) {
		t.Errorf("%x, want %x", got, want)
	}
}
