package nix

import (
	"slices"
	"strconv"
	"strings"
)

// PathInfo is what Nix knows of a valid store path beside its content. Holders
// share it freely and must not change it; Clone first.
type PathInfo struct {
	Path StorePath
	// Deriver is the derivation that made the path, if known. Nothing proves it.
	Deriver StorePath
	// NarHash is the SHA-256 of the path's NAR.
	NarHash Hash
	// NarSize is the length of the NAR in bytes.
	NarSize uint64
	// References are sorted, without duplicates, and include Path itself if it
	// refers to itself.
	References []StorePath
	// RegistrationTime is in seconds since 1970, 0 if unknown.
	RegistrationTime int64
	// Ultimate says that the store built the path itself. Never believed of a peer.
	Ultimate bool
	Sigs     []Signature
	CA       ContentAddress
}

// Clone returns a copy whose slices are its own.
func (i *PathInfo) Clone() *PathInfo {
	c := *i
	c.References = slices.Clone(i.References)
	c.Sigs = slices.Clone(i.Sigs)
	return &c
}

// Fingerprint returns the text that a signature of the path covers:
// 1;<path>;sha256:<nix32>;<size>;<references joined by ",">. Deriver, CA and
// times are not in it.
func (i *PathInfo) Fingerprint() string {
	refs := SortPaths(slices.Clone(i.References))
	texts := make([]string, len(refs))
	for n, r := range refs {
		texts[n] = r.String()
	}
	return strings.Join([]string{
		"1", i.Path.String(), i.NarHash.String(), strconv.FormatUint(i.NarSize, 10), strings.Join(texts, ","),
	}, ";")
}

// HasSelfReference reports whether the path is among its own references.
func (i *PathInfo) HasSelfReference() bool { return slices.Contains(i.References, i.Path) }
