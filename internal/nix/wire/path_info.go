package wire

import (
	"fmt"

	"nixbastion/internal/nix"
)

// ValidPathInfo reads a path with its info in the form that uploads have in every
// version of both protocols. Its NAR may have at most narSize bytes.
func (r *Reader) ValidPathInfo(narSize uint64) *nix.PathInfo {
	path := r.StorePath()
	return r.PathInfo(path, narSize)
}

// ValidPathInfo writes a path with its info.
func (w *Writer) ValidPathInfo(info *nix.PathInfo) {
	w.StorePath(info.Path)
	w.PathInfo(info)
}

// PathInfo reads the info of a path that is known already.
func (r *Reader) PathInfo(path nix.StorePath, narSize uint64) *nix.PathInfo {
	info := &nix.PathInfo{Path: path}
	info.Deriver = r.OptionalStorePath()
	info.NarHash = r.NarHash()
	info.References = r.StorePaths(MaxReferences)
	info.RegistrationTime = r.Int64()
	info.NarSize = r.NarSize(narSize)
	info.Ultimate = r.Bool()
	info.Sigs = r.Sigs()
	info.CA = r.ContentAddress()
	return info
}

// PathInfo writes the info of a path that is known already.
func (w *Writer) PathInfo(info *nix.PathInfo) {
	w.StorePath(info.Deriver)
	w.String(info.NarHash.Base16())
	w.StorePaths(info.References)
	w.Int64(info.RegistrationTime)
	w.Uint64(info.NarSize)
	w.Bool(info.Ultimate)
	w.Sigs(info.Sigs)
	w.String(info.CA.String())
}

// NarHash reads the hash of a NAR, which must be a SHA-256, in every encoding
// that Nix takes, with or without the algorithm.
func (r *Reader) NarHash() nix.Hash { return r.hash(nix.SHA256) }

// PrefixedNarHash reads the hash of a NAR with its algorithm before it.
func (r *Reader) PrefixedNarHash() nix.Hash {
	hash := r.hash(0)
	if r.err == nil && hash.Algo() != nix.SHA256 {
		r.failf("NAR hash: expected %s, got %s", nix.SHA256, hash.Algo())
	}
	return hash
}

func (r *Reader) hash(def nix.HashAlgo) nix.Hash {
	text := r.String(MaxString)
	if r.err != nil {
		return nix.Hash{}
	}
	hash, err := nix.ParseHash(text, def)
	if err != nil {
		r.Fail(fmt.Errorf("NAR %w", err))
	}
	return hash
}

// NarSize reads the size of a NAR of at most limit bytes.
func (r *Reader) NarSize(limit uint64) uint64 {
	size := r.Uint64()
	if size > limit {
		r.Fail(fmt.Errorf("expected a NAR of at most %d bytes, got %d", limit, size))
	}
	return size
}

// Sigs reads the signatures of a path and drops those that are malformed: Nix
// 2.34 and newer would refuse the whole path for one that is passed on.
func (r *Reader) Sigs() []nix.Signature {
	var sigs []nix.Signature
	for _, text := range r.StringSet(MaxSigs, MaxString) {
		if sig, err := nix.ParseSignature(text); err == nil {
			sigs = append(sigs, sig)
		}
	}
	return sigs
}

// Sigs writes the signatures of a path.
func (w *Writer) Sigs(sigs []nix.Signature) {
	texts := make([]string, len(sigs))
	for i, sig := range sigs {
		texts[i] = sig.String()
	}
	w.StringSet(texts)
}

// ContentAddress reads a content address; the empty string is none.
func (r *Reader) ContentAddress() nix.ContentAddress {
	text := r.String(MaxString)
	if r.err != nil {
		return nix.ContentAddress{}
	}
	ca, err := nix.ParseContentAddress(text)
	if err != nil {
		r.Fail(err)
	}
	return ca
}
