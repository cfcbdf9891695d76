package nix

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// StoreDir is the only store directory that the proxy serves.
const StoreDir = "/nix/store"

const (
	storePrefix = StoreDir + "/"
	// hashPartLen is the length of 160 bits written in nix32.
	hashPartLen = 32
	// maxNameLen is Nix's limit on the part behind the hash, in bytes.
	maxNameLen = 211
)

// StorePath is the name of an object directly in the store, such as
// /nix/store/gk0ppip8z2zi2dm5n0cl3lf2rj36lf31-hello. The zero value is "no
// path". Only [ParseStorePath], [ParseStorePathBase] and the path formulas make
// others, so a non-zero StorePath is always valid. Values are comparable.
type StorePath struct {
	full string
}

// ParseStorePath parses a full store path. It is strict: no trailing slash, no
// double slash, no file below the object.
func ParseStorePath(s string) (StorePath, error) {
	base, ok := strings.CutPrefix(s, storePrefix)
	if !ok {
		return StorePath{}, fmt.Errorf("path %q is not in the Nix store", clip(s))
	}
	if err := checkBase(base); err != nil {
		return StorePath{}, fmt.Errorf("path %q is not a valid store path: %w", clip(s), err)
	}
	return StorePath{full: s}, nil
}

// ParseStorePathBase parses a store path without its directory, as narinfo
// files and realisations write it.
func ParseStorePathBase(base string) (StorePath, error) {
	if err := checkBase(base); err != nil {
		return StorePath{}, fmt.Errorf("%q is not a valid store path name: %w", clip(base), err)
	}
	return StorePath{full: storePrefix + base}, nil
}

func checkBase(base string) error {
	if len(base) < hashPartLen+2 {
		return errors.New("too short")
	}
	if base[hashPartLen] != '-' {
		return errors.New("no '-' after the hash part")
	}
	if err := checkHashPart(base[:hashPartLen]); err != nil {
		return err
	}
	return CheckName(base[hashPartLen+1:])
}

func checkHashPart(s string) error {
	for i := range len(s) {
		if nix32Value[s[i]] < 0 {
			return fmt.Errorf("illegal character %q in the hash part", s[i])
		}
	}
	return nil
}

// CheckName reports why name cannot be the name part of a store path: 1 to 211
// characters of 0-9a-zA-Z+-._?=, not "." or "..", and not starting with ".-" or
// "..-". Output names follow the same rule.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("empty name")
	case len(name) > maxNameLen:
		return fmt.Errorf("name is longer than %d characters", maxNameLen)
	case name == "." || name == "..":
		return fmt.Errorf("name is %q", name)
	case strings.HasPrefix(name, ".-") || strings.HasPrefix(name, "..-"):
		return fmt.Errorf("name starts with %q", name[:strings.IndexByte(name, '-')+1])
	}
	for i := range len(name) {
		if !nameChar[name[i]] {
			return fmt.Errorf("illegal character %q in the name", name[i])
		}
	}
	return nil
}

// nameChar tells the bytes that a store path name may hold.
var nameChar = func() (ok [256]bool) {
	for _, c := range []byte("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-._?=") {
		ok[c] = true
	}
	return ok
}()

// String returns the full path, "" for the zero value: the form in which the
// protocols write a path and an optional path.
func (p StorePath) String() string { return p.full }

// Base returns the path without the store directory.
func (p StorePath) Base() string {
	if p.IsZero() {
		return ""
	}
	return p.full[len(storePrefix):]
}

// HashPart returns the 32 characters before the name.
func (p StorePath) HashPart() string {
	if p.IsZero() {
		return ""
	}
	return p.full[len(storePrefix) : len(storePrefix)+hashPartLen]
}

// HashBytes returns the hash part in its 20 bytes, all zero for the zero value.
// Their order is that of the characters, and so of the paths themselves.
func (p StorePath) HashBytes() (b [20]byte) {
	text := p.HashPart()
	for i := 0; i+8 <= len(text); i += 8 { // 8 characters of 5 bits are 5 bytes
		var bits uint64
		for _, c := range []byte(text[i : i+8]) {
			bits = bits<<5 | uint64(nix32Value[c])
		}
		for n := range 5 {
			b[i/8*5+n] = byte(bits >> (32 - 8*n))
		}
	}
	return b
}

// Name returns what follows the hash part.
func (p StorePath) Name() string {
	if p.IsZero() {
		return ""
	}
	return p.full[len(storePrefix)+hashPartLen+1:]
}

// IsZero reports whether p is "no path".
func (p StorePath) IsZero() bool { return p.full == "" }

// IsDerivation reports whether the name ends in .drv.
func (p StorePath) IsDerivation() bool { return strings.HasSuffix(p.full, ".drv") }

// DrvName returns the name without ".drv": what the outputs' names begin with.
func (p StorePath) DrvName() string { return strings.TrimSuffix(p.Name(), ".drv") }

// Compare orders paths by byte value, the order in which Nix writes sets.
func (p StorePath) Compare(q StorePath) int { return strings.Compare(p.full, q.full) }

// SortPaths sorts paths by byte value and drops duplicates, in place.
func SortPaths(paths []StorePath) []StorePath {
	slices.SortFunc(paths, StorePath.Compare)
	return slices.Compact(paths)
}

// clip cuts hostile text to a length that fits an error message.
func clip(s string) string {
	const limit = 128
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "..."
}
