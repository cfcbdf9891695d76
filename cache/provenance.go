package cache

import (
	"fmt"
	"slices"

	"nixbastion/internal/nix"
)

// Provenance says who vouches for a path having the NAR hash it has. Greater is
// better. It decides what may be signed and built from.
type Provenance uint8

// The provenances.
const (
	// Claimed is what a client merely says. Never public, never to be signed.
	Claimed Provenance = iota
	// DomainVouched is what a domain stands for.
	DomainVouched
	// Built is the output of a build that was placed by the proxy, from proven
	// inputs with a proven plan.
	Built
	// Signed is signed by a trusted key.
	Signed
	// ContentAddressed is proven by the path itself. The cache raises to it
	// what carries a content address, after it verified the content.
	ContentAddressed
)

var provenanceNames = [...]string{"claimed", "domain", "built", "signed", "content-addressed"}

// String returns the word that narinfo files carry.
func (p Provenance) String() string {
	if int(p) < len(provenanceNames) {
		return provenanceNames[p]
	}
	return fmt.Sprintf("Provenance(%d)", uint8(p))
}

// parseProvenance reads what String wrote. What it does not know proves nothing.
func parseProvenance(s string) Provenance {
	return Provenance(max(0, slices.Index(provenanceNames[:], s)))
}

// Grant says for whom a path is taken and what is known of its origin.
type Grant struct {
	// Domain may see the path. Letters, digits, "-", "_" and ".", at most 64.
	Domain string
	// Public lets every domain see the path, once it is verified, without its
	// deriver. It has no effect on what is only Claimed, or refers to what is not
	// public itself.
	Public bool
	// Provenance is what the caller knows before the content was read.
	Provenance Provenance
}

// Outcome says what became of bytes that were taken and verified.
type Outcome uint8

// The outcomes.
const (
	// Added says that the path was not valid in the domain and is now.
	Added Outcome = iota
	// AlreadyValid says that the path was valid with the same bytes. A better
	// provenance and further signatures were taken over.
	AlreadyValid
	// Differs says that the path is valid with other bytes, which stay; the new
	// ones were verified, discarded and counted.
	Differs
)

// String returns a word for logs.
func (o Outcome) String() string {
	return [...]string{"added", "already valid", "differs"}[o]
}

// record is a path in one domain. Records are shared and never changed.
type record struct {
	info       *nix.PathInfo
	provenance Provenance
}

// merge returns the record that holds after more was learned about the same
// bytes: old itself if nothing was.
func merge(old, more *record) *record {
	if more.provenance > old.provenance {
		return &record{info: withSigs(more.info, old.info), provenance: more.provenance}
	}
	info := withSigs(old.info, more.info)
	if info == old.info {
		return old
	}
	return &record{info: info, provenance: old.provenance}
}

// maxSigs bounds the signatures of a path, which everybody who may upload it
// could add to.
const maxSigs = 100

// withSigs returns info with the signatures of other, if they cover the same
// fingerprint.
func withSigs(info, other *nix.PathInfo) *nix.PathInfo {
	if len(other.Sigs) == 0 || info.Fingerprint() != other.Fingerprint() {
		return info
	}
	merged := info
	for _, sig := range other.Sigs {
		if slices.Contains(merged.Sigs, sig) || len(merged.Sigs) >= maxSigs {
			continue
		}
		if merged == info {
			merged = info.Clone()
		}
		merged.Sigs = append(merged.Sigs, sig)
	}
	return merged
}
