package nix

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
)

// makePath is the formula behind every store path: 160 folded bits of the
// SHA-256 of "<kind>:sha256:<hex>:<store directory>:<name>".
func makePath(kind string, inner Hash, name string) (StorePath, error) {
	if err := CheckName(name); err != nil {
		return StorePath{}, fmt.Errorf("store path name %q: %w", clip(name), err)
	}
	sum := sha256.Sum256([]byte(kind + ":" + inner.Algo().String() + ":" + inner.Base16() + ":" + StoreDir + ":" + name))
	var folded [20]byte
	for i, b := range sum {
		folded[i%len(folded)] ^= b
	}
	return StorePath{full: storePrefix + EncodeNix32(folded[:]) + "-" + name}, nil
}

// ContentAddressedPath returns the path that content with this address must
// have. Refs are its references without itself, in any order; self says that it
// refers to itself. Only text and recursive SHA-256 may have references, and
// text none to itself.
func ContentAddressedPath(name string, ca ContentAddress, refs []StorePath, self bool) (StorePath, error) {
	switch {
	case ca.IsZero():
		return StorePath{}, fmt.Errorf("%q has no content address", clip(name))
	case ca.Method == Text && self:
		return StorePath{}, fmt.Errorf("text %q refers to itself", clip(name))
	case ca.Method == Text:
		return makePath(kindWithReferences("text", refs, false), ca.Hash, name)
	case ca.Method == NAR && ca.Hash.Algo() == SHA256:
		return makePath(kindWithReferences("source", refs, self), ca.Hash, name)
	case len(refs) > 0 || self:
		return StorePath{}, fmt.Errorf("%q has references, which its content address %s does not allow", clip(name), ca)
	}
	text := "fixed:out:" + outputPrefix[ca.Method] + ca.Hash.Algo().String() + ":" + ca.Hash.Base16() + ":"
	return makePath("output:out", HashBytes(SHA256, []byte(text)), name)
}

func kindWithReferences(kind string, refs []StorePath, self bool) string {
	var b strings.Builder
	b.WriteString(kind)
	for _, r := range SortPaths(slices.Clone(refs)) {
		b.WriteString(":" + r.String())
	}
	if self {
		b.WriteString(":self")
	}
	return b.String()
}

// OutputPath returns the path of an input-addressed output, given the
// derivation's name without ".drv" and its masked hash.
func OutputPath(drvName, output string, masked Hash) (StorePath, error) {
	return makePath("output:"+output, masked, outputPathName(drvName, output))
}

// outputPathName is the name part of an output's path.
func outputPathName(drvName, output string) string {
	if output == "out" {
		return drvName
	}
	return drvName + "-" + output
}

// CheckContentAddress reports whether the path follows from its claimed content
// address and references. That the content has this address is for a
// [CAVerifier] to find out.
func (i *PathInfo) CheckContentAddress() error {
	refs := slices.DeleteFunc(slices.Clone(i.References), func(r StorePath) bool { return r == i.Path })
	path, err := ContentAddressedPath(i.Path.Name(), i.CA, refs, i.HasSelfReference())
	if err != nil {
		return err
	}
	if path != i.Path {
		return Refuse("path '%s' claims to be content-addressed but isn't", i.Path)
	}
	return nil
}

// OutputPlaceholder returns what stands for the path of an own output before it
// is known.
func OutputPlaceholder(output string) string {
	return placeholder("nix-output:" + output)
}

// UpstreamPlaceholder returns what stands for the path of an output of another
// derivation before it is known.
func UpstreamPlaceholder(drv StorePath, output string) string {
	return placeholder("nix-upstream-output:" + drv.HashPart() + ":" + outputPathName(drv.DrvName(), output))
}

func placeholder(text string) string { return "/" + HashBytes(SHA256, []byte(text)).Nix32() }
