package cache

import (
	"slices"
	"sync"

	"nixbastion/internal/nix"
)

// Verified is a path in a domain whose bytes the cache has read and hashed: what
// a key may be put to. Only this package makes one that says anything; the zero
// value is a claim about nothing.
type Verified struct {
	domain string
	public bool
	again  bool
	rec    *record
}

// Domain is the domain that vouches for the path.
func (v Verified) Domain() string { return v.domain }

// Public reports whether the signatures are for the record that all domains see,
// and not for the domain's own.
func (v Verified) Public() bool { return v.public }

// Again reports whether the path was valid before, and a pass over the store asks
// for signatures that it lacks.
func (v Verified) Again() bool { return v.again }

// Info is what is known of the path. Hash and size are those that the cache
// computed; the references are sorted. It is shared: nobody may change it.
func (v Verified) Info() *nix.PathInfo {
	if v.rec == nil {
		return &nix.PathInfo{}
	}
	return v.rec.info
}

// Provenance says who vouches for the path having these bytes.
func (v Verified) Provenance() Provenance {
	if v.rec == nil {
		return Claimed
	}
	return v.rec.provenance
}

// sign returns the record with the signatures that the owner of the keys makes
// for it: rec itself if there is none to add. The domain is the one that vouches,
// the record may be that of the public domain.
func (c *Cache) sign(k key, domain string, rec *record) *record {
	return c.signedAs(Verified{domain: domain, public: k.domain == publicDomain, rec: rec})
}

func (c *Cache) signedAs(v Verified) *record {
	if c.signer == nil {
		return v.rec
	}
	return withOwnSigs(v.rec, c.signer(v))
}

// withOwnSigs returns the record with our own signatures. Those of others stay,
// unless they bear the name of a key of ours and are not its: one per key is
// right, and no bound on what others add keeps ours away.
func withOwnSigs(rec *record, own []nix.Signature) *record {
	lacks := func(sig nix.Signature) bool { return !slices.Contains(rec.info.Sigs, sig) }
	forged := func(sig nix.Signature) bool {
		return !slices.Contains(own, sig) && slices.ContainsFunc(own, func(o nix.Signature) bool { return o.Name() == sig.Name() })
	}
	if !slices.ContainsFunc(own, lacks) && !slices.ContainsFunc(rec.info.Sigs, forged) {
		return rec
	}
	info := rec.info.Clone()
	info.Sigs = slices.DeleteFunc(info.Sigs, forged)
	for _, sig := range own {
		if !slices.Contains(info.Sigs, sig) {
			info.Sigs = append(info.Sigs, sig)
		}
	}
	return &record{info: info, provenance: rec.provenance}
}

// turnstile lets those pass who sign a record and then make it valid, and tells
// when all of them are through who came before a moment. So that after a change
// of keys nothing becomes valid with signatures from before it unnoticed.
type turnstile struct {
	mu     sync.Mutex
	within *sync.WaitGroup // those who came since the last drain
}

// enter is called before a record is signed, leave when it is pending or durable.
func (t *turnstile) enter() (leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.within == nil {
		t.within = &sync.WaitGroup{}
	}
	t.within.Add(1)
	return t.within.Done
}

// drain waits for those who are within. Those who come meanwhile do not count.
func (t *turnstile) drain() {
	t.mu.Lock()
	within := t.within
	t.within = nil
	t.mu.Unlock()
	if within != nil {
		within.Wait()
	}
}
