package proxy

import (
	"errors"
	"strings"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/audit"
	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// Auditor keeps what is done here, by whom, as [audit.Log] does.
type Auditor interface {
	// Record notes an event.
	Record(audit.Event)
	// Commit notes an event and returns when it is kept. The error says that it is not,
	// and that what it tells of is not to count.
	Commit(audit.Event) error
	// Fault is why nothing is to be done now that would have to be kept; nil: all may.
	Fault() error
	// Trouble is why nothing can be kept now, whatever follows from that; nil: it can.
	Trouble() *audit.Fault
}

// noAudit keeps nothing.
type noAudit struct{}

func (noAudit) Record(audit.Event)       {}
func (noAudit) Commit(audit.Event) error { return nil }
func (noAudit) Fault() error             { return nil }
func (noAudit) Trouble() *audit.Fault    { return nil }

// errNoAudit is what a client reads; what is wrong is in the log.
var errNoAudit error = nix.Refuse("the proxy cannot write its audit log, and does nothing that it could not prove later; " +
	"its admin finds the reason in the log, and may choose otherwise (audit.on_failure)")

// event begins one about a client.
func (who *Identity) event(kind audit.Kind) audit.Event {
	if who == nil {
		return audit.Event{Kind: kind}
	}
	e := audit.Event{
		Kind: kind, Principal: who.Principal, Key: who.Fingerprint, Certificate: who.Certificate,
		Address: who.Remote.Addr().String(), Port: who.Remote.Port(),
	}
	if access, ok := who.Data.(*policy.Access); ok {
		e.Domain = access.Principal.Domain
	}
	return e
}

// sign signs a path that became valid, and keeps that. A pass over the whole store
// is one event.
func (p *Proxy) sign(v cache.Verified) []nix.Signature {
	sigs := SignPath(p.policy.Current(), v)
	if len(sigs) > 0 && !v.Again() {
		p.audit.Record(audit.Event{
			Kind: audit.Sign, Domain: v.Domain(), Path: v.Info().Path.String(), NarHash: v.Info().NarHash.String(), SigningKeys: namesOf(sigs),
		})
	}
	return sigs
}

func namesOf(sigs []nix.Signature) []string {
	names := make([]string, len(sigs))
	for i, sig := range sigs {
		names[i] = sig.Name()
	}
	return names
}

// passed keeps that a pass over what the store holds came to its end, or to an end.
func (s *signing) passed(dom *policy.Domain, began time.Time, done cache.SignProgress, err error) {
	if done.Signed == 0 && err == nil {
		return
	}
	e := audit.Event{Kind: audit.Resign, Domain: dom.Name, Count: uint64(done.Signed), Seconds: time.Since(began).Seconds(), Result: "done"}
	for _, key := range dom.Signers() {
		e.SigningKeys = append(e.SigningKeys, key.Name())
	}
	if err != nil {
		e.Result, e.Reason = "interrupted", err.Error()
	}
	s.audit.Record(e)
}

// reloaded keeps what came of loading the policy anew.
func (p *Proxy) reloaded(err error) {
	e := audit.Event{Kind: audit.Policy, File: p.policy.File(), Result: "loaded"}
	var mistakes *policy.Mistakes
	switch {
	case err == nil:
		e.FileHash = p.policy.Current().FileHash
	case errors.As(err, &mistakes):
		e.FileHash = mistakes.FileHash
		fallthrough
	default:
		e.Result, e.Reason = "refused", strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	p.audit.Record(e)
}

// builderRefused keeps that a builder is not who it should be.
func (p *Proxy) builderRefused(builder, reason string) {
	p.audit.Record(audit.Event{Kind: audit.BuilderRefused, Builder: builder, Reason: reason})
}
