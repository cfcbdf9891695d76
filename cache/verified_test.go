package cache

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"

	"nixbastion/internal/nix"
)

// keyring signs as a policy would: each domain with its own keys, from a
// provenance on. It keeps what it was shown.
type keyring struct {
	mu    sync.Mutex
	keys  map[string][]nix.SigningKey // by domain
	least Provenance
	// share is the domain whose signatures the public records get, too.
	share string
	shown []Verified
	// before is called with the keys that count, before they are used.
	before func(Verified)
}

func newKeyring(domains ...string) *keyring {
	r := &keyring{keys: map[string][]nix.SigningKey{}, least: DomainVouched}
	for _, domain := range domains {
		r.use(domain, domain+"-1")
	}
	return r
}

// use gives a domain new keys of these names.
func (r *keyring) use(domain string, names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var keys []nix.SigningKey
	for _, name := range names {
		old := slices.IndexFunc(r.keys[domain], func(k nix.SigningKey) bool { return k.Name() == name })
		if old >= 0 {
			keys = append(keys, r.keys[domain][old])
			continue
		}
		key, err := nix.GenerateSigningKey(name)
		if err != nil {
			panic(err)
		}
		keys = append(keys, key)
	}
	r.keys[domain] = keys
}

func (r *keyring) sign(v Verified) []nix.Signature {
	r.mu.Lock()
	keys, before := r.keys[v.Domain()], r.before
	r.shown = append(r.shown, v)
	r.mu.Unlock()
	if before != nil {
		before(v)
	}
	if v.Provenance() < r.least || v.Public() && v.Domain() != r.share {
		return nil
	}
	var sigs []nix.Signature
	for _, key := range keys {
		sigs = append(sigs, key.Sign(v.Info().Fingerprint()))
	}
	return sigs
}

func (r *keyring) calls() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.shown)
}

// wantSignedBy checks who signed a path as a domain sees it, and that our own
// signatures hold.
func (r *keyring) wantSignedBy(t *testing.T, c *Cache, domain string, o object, want ...string) {
	t.Helper()
	wantSigs(t, c, domain, o, want...)
	info, err := c.QueryPathInfo(domain, o.info.Path)
	if err != nil {
		t.Fatal(err)
	}
	for _, keys := range r.keys {
		for _, key := range keys {
			for _, sig := range info.Sigs {
				if sig.Name() == key.Name() && !key.Public().Verify(o.info.Fingerprint(), sig) {
					t.Errorf("signature %s of %s does not hold", sig, o.info.Path.Name())
				}
			}
		}
	}
}

// Guards against a key that is put to what nobody vouches for, or to what only
// another domain vouches for, whichever way a path comes.
func TestOnlyWhatADomainVouchesForIsSignedInIt(t *testing.T) {
	for _, least := range []Provenance{DomainVouched, Built} {
		keys := newKeyring("one", "two")
		keys.least = least
		c := openCache(t, Options{Dir: newDir(t), Sign: keys.sign})
		for p := Claimed; p <= ContentAddressed; p++ {
			o := obj(fmt.Sprint("out", p), fmt.Sprint("content", p))
			o.receive(t, c, Grant{Domain: "one", Provenance: p})
			o.receive(t, c, in("two"))
			filled := obj(fmt.Sprint("filled", p), fmt.Sprint("content", p))
			a := announced(t, c, filled, Grant{Domain: "one", Provenance: p})
			if _, err := a.Fill(t.Context(), bytes.NewReader(filled.nar)); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				for _, o := range []object{o, filled} {
					if p < least {
						keys.wantSignedBy(t, c, "one", o)
					} else {
						keys.wantSignedBy(t, c, "one", o, "one-1")
					}
				}
				keys.wantSignedBy(t, c, "two", o)
				flushed(t, c)
			}
		}
		source := sourceObj("source", "a source")
		for _, domain := range []string{"one", "two"} {
			source.receive(t, c, in(domain)) // proven by its own path, whoever brings it
			keys.wantSignedBy(t, c, domain, source, domain+"-1")
		}
	}
}

// Guards against a path that stays unsigned although somebody vouches for it now.
func TestAPathIsSignedWhenItIsWorthIt(t *testing.T) {
	keys := newKeyring("team")
	c := openCache(t, Options{Dir: newDir(t), Sign: keys.sign})
	built, signed := obj("built", "content"), obj("signed", "other content")
	for _, durable := range []bool{false, true} {
		built.receive(t, c, in("team"))
		signed.receive(t, c, in("team"))
		if !durable {
			keys.wantSignedBy(t, c, "team", built)
			continue
		}
		flushed(t, c)
		built.receive(t, c, Grant{Domain: "team", Provenance: DomainVouched})
		if err := c.AddSignatures(t.Context(), signed.info, sigsBy("friend"), Grant{Domain: "team", Provenance: Signed}); err != nil {
			t.Fatal(err)
		}
	}
	keys.wantSignedBy(t, c, "team", built, "team-1")
	keys.wantSignedBy(t, c, "team", signed, "friend", "team-1")
}

// Guards against a signature for bytes that may still turn out to be others.
func TestAnArrivingPathIsSignedWhenItIsVerified(t *testing.T) {
	keys := newKeyring("team")
	c := openCache(t, Options{Dir: newDir(t), Sign: keys.sign})
	good, bad := obj("good", "content"), obj("bad", "what was announced")
	grant := Grant{Domain: "team", Provenance: DomainVouched}
	arrival := announced(t, c, good, grant)
	if got := keys.calls(); got != 0 {
		t.Errorf("the keys were shown %d paths before any byte came", got)
	}
	keys.wantSignedBy(t, c, "team", good)
	waited := make(chan error)
	go func() { waited <- c.AwaitVerified(t.Context(), "team", good.info.Path) }()
	if _, err := arrival.Fill(t.Context(), bytes.NewReader(good.nar)); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	keys.wantSignedBy(t, c, "team", good, "team-1")
	calls := keys.calls()
	if _, err := announced(t, c, bad, grant).Fill(t.Context(), bytes.NewReader(narOf("what comes instead!"))); err == nil {
		t.Error("other bytes were taken")
	}
	if got := keys.calls(); got != calls {
		t.Error("the keys were shown bytes that are not those announced")
	}
}

// Guards against foreign signatures that get lost, that keep ours away by their
// number, or that take the name of our key.
func TestOwnSignaturesStandBesideThoseOfOthers(t *testing.T) {
	keys := newKeyring("team")
	keys.use("team", "team-1", "team-2")
	c := openCache(t, Options{Dir: newDir(t), Sign: keys.sign})
	o := obj("out", "content")
	var names []string
	for i := range maxSigs - 1 {
		names = append(names, fmt.Sprintf("friend-%02d", i))
	}
	o.info.Sigs = sigsBy(append(names, "team-2")...)
	o.receive(t, c, Grant{Domain: "team", Provenance: Signed})
	for range 2 {
		keys.wantSignedBy(t, c, "team", o, append(slices.Clone(names), "team-1", "team-2")...)
		flushed(t, c)
	}
}

// Guards against a public path that tells which domain has it, and against one
// that the domain shares and nobody else can check.
func TestThePublicRecordIsSignedByWhoShares(t *testing.T) {
	keys := newKeyring("one", "two")
	keys.share = "one"
	c := openCache(t, Options{Dir: newDir(t), Sign: keys.sign})
	for _, domain := range []string{"one", "two"} {
		o := obj("of-"+domain, "content of "+domain)
		o.receive(t, c, Grant{Domain: domain, Provenance: Signed, Public: true})
		keys.wantSignedBy(t, c, domain, o, domain+"-1")
		if domain == "one" {
			keys.wantSignedBy(t, c, "others", o, "one-1")
		} else {
			keys.wantSignedBy(t, c, "others", o)
		}
	}
}
