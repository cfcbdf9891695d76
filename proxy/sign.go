package proxy

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// SignPath makes the signatures of a path with the keys of the domain that vouches
// for it. It is the one place where secret keys are used, and it sees nothing but
// what the cache has verified.
func SignPath(pol *policy.Policy, v cache.Verified) []nix.Signature {
	dom := pol.DomainNamed(v.Domain())
	if dom == nil || !signs(dom.Sign, v.Provenance()) {
		return nil
	}
	if v.Public() && dom.Share != policy.SharePublic {
		return nil // all domains see it since others signed it, and learn nothing of this one
	}
	fingerprint := v.Info().Fingerprint()
	var sigs []nix.Signature
	for _, key := range dom.Signers() {
		sigs = append(sigs, key.Sign(fingerprint))
	}
	return sigs
}

// signs says what is signed of what is known. What a client merely claims never is.
func signs(mode policy.Signing, provenance cache.Provenance) bool {
	switch mode {
	case policy.SignDomain:
		return provenance >= cache.DomainVouched
	case policy.SignProven:
		return provenance >= cache.Built
	}
	return false
}

// signing gives what the store holds the signatures of new keys, in the background.
type signing struct {
	cache  *cache.Cache
	policy *policy.Live
	log    *slog.Logger
	audit  Auditor

	off atomic.Bool // another process has the store

	mu   sync.Mutex
	stop context.CancelFunc // of the passes that run; nil if none do
	wg   sync.WaitGroup
}

// prepare makes ready for a policy that is about to count: what was signed before
// counts as signed no longer where keys are others, even if we crash in the next
// moment. Passes for the old keys end.
func (s *signing) prepare(next *policy.Policy) {
	s.halt()
	if s.off.Load() {
		return
	}
	for i := range next.Domains {
		dom := &next.Domains[i]
		if err := s.cache.KeysChange(dom.Name, dom.SignersName()); err != nil {
			s.log.Error("cannot note the change of signing keys", "domain", dom.Name, "error", err)
		}
	}
}

// begin looks in the background for what lacks signatures of the policy's keys. It
// costs next to nothing if that was done before. It ends with ctx.
func (s *signing) begin(ctx context.Context) {
	s.halt()
	if s.off.Load() {
		return
	}
	ctx, stop := context.WithCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop = stop
	s.wg.Go(func() {
		domains := s.policy.Current().Domains
		for i := range domains {
			s.pass(ctx, &domains[i])
		}
	})
}

// halt ends the passes that run and waits for them.
func (s *signing) halt() {
	s.mu.Lock()
	if s.stop != nil {
		s.stop()
	}
	s.stop = nil
	s.mu.Unlock()
	s.wg.Wait()
}

// tellEvery is how often a pass over a large store says how far it is.
const tellEvery = 10 * time.Second

func (s *signing) pass(ctx context.Context, dom *policy.Domain) {
	if dom.SignersName() == "" || ctx.Err() != nil {
		return
	}
	log := s.log.With("domain", dom.Name)
	began := time.Now()
	told := began
	var done cache.SignProgress
	err := s.cache.ResignFor(ctx, dom.Name, dom.SignersName(), func(now cache.SignProgress) {
		done = now
		if time.Since(told) >= tellEvery {
			told = time.Now()
			log.Info("signing what the store holds with new keys", "looked_at", now.Seen, "signed", now.Signed)
		}
	})
	s.passed(dom, began, done, err)
	switch {
	case err != nil && ctx.Err() != nil:
		log.Info("signing with new keys was interrupted; the next start or reload goes on", "looked_at", done.Seen, "signed", done.Signed)
	case err != nil:
		log.Error("cannot sign what the store holds with new keys; the next start or reload tries again", "error", err)
	case done.Seen > 0:
		log.Info("what the store holds has signatures of all keys", "looked_at", done.Seen, "signed", done.Signed, "seconds", time.Since(began).Seconds())
	}
}

// awaitSignature waits until a path that is still arriving is verified, and so
// signed: Nix passes over a path without signature for the rest of its run. It does
// not wait where nobody will sign.
func (s *session) awaitSignature(ctx context.Context, path nix.StorePath) error {
	dom := s.builds.policy.Current().DomainNamed(s.domain())
	if dom == nil || len(dom.Signers()) == 0 {
		return nil
	}
	if s.own[path] {
		s.awaitOwn(ctx, path)
		return nil
	}
	return s.cache.AwaitVerified(ctx, s.domain(), path)
}

// Who asked for the build that makes a path checks no signatures and will read the
// path next: it waits only where it would have to wait for the bytes all the same,
// so that its copy has the signature too.
const (
	ownSize     = 4 << 20 // bytes of a NAR that is waited for
	ownPatience = 250 * time.Millisecond
)

func (s *session) awaitOwn(ctx context.Context, path nix.StorePath) {
	info, err := s.cache.QueryPathInfo(s.domain(), path)
	if err != nil || info.NarSize > ownSize {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, ownPatience)
	defer cancel()
	s.cache.AwaitVerified(ctx, s.domain(), path) // or not: the answer is good without
}

// owns notes outputs of builds that this client asked for.
func (s *session) owns(outputs []nix.BuiltOutput) {
	if s.own == nil {
		s.own = map[nix.StorePath]bool{}
	}
	for _, out := range outputs {
		s.own[out.Path] = true
	}
}
