package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/route"
)

// Question asks whether somebody may have something built and where it would go. It
// takes nothing. On the admin's socket it is JSON.
type Question struct {
	// Principal names one of the policy. Empty: Key logs in.
	Principal string `json:"principal,omitempty"`
	// Key is a public key or a certificate as a line of its file has it, or a
	// fingerprint. Address is where it comes from; empty: nobody knows.
	Key     string `json:"key,omitempty"`
	Address string `json:"address,omitempty"`
	// System and Features are what is required of the builder.
	System   string   `json:"system,omitempty"`
	Features []string `json:"features,omitempty"`
	// Name is that of the derivation, without hash and ".drv": rules of the policy and
	// what was learned go by it. It may be empty if there is no Derivation.
	Name string `json:"name,omitempty"`
	// Derivation is the text of a .drv file, which then says what is required.
	Derivation []byte `json:"derivation,omitempty"`
}

// MaxDerivation is the largest Derivation of a question, in bytes.
const MaxDerivation = 8 << 20

// check refuses a question that makes no sense.
func (q *Question) check() error {
	switch {
	case (q.Principal == "") == (q.Key == ""):
		return usage("name a principal or a key, and not both")
	case q.Address != "" && q.Key == "":
		return usage("an address says something about a key: name that")
	case len(q.Derivation) > MaxDerivation:
		return usage("the derivation has %d bytes; the limit is %d", len(q.Derivation), MaxDerivation)
	case len(q.Derivation) > 0 && (q.System != "" || len(q.Features) > 0):
		return usage("the derivation says which system and features it requires: leave them out")
	case len(q.Derivation) == 0 && q.System == "":
		return usage("name a system, or give a derivation")
	case len(q.Derivation) > 0:
		return nil
	}
	if err := checkRequired(q.System, q.Features); err != nil {
		return usage("%v", err)
	}
	return nil
}

// explainer answers by a policy and a router: those of a proxy that runs, or its own.
type explainer struct {
	policy *policy.Policy
	router *route.Router
	// session opens one for a principal, to see what of a derivation's inputs is here;
	// nil: nobody knows.
	session func(*policy.Principal) *session
}

// ExplainBy answers a question by a policy alone, as if all of its builders were up
// and did nothing, and nothing were learned yet. The error may be a [UsageError].
func ExplainBy(ctx context.Context, pol *policy.Policy, q *Question, asJSON bool) (string, error) {
	router := route.New(route.Options{})
	router.SetBuilders(placesOf(pol))
	a, err := (&explainer{policy: pol, router: router}).explain(ctx, q)
	if err != nil {
		return "", err
	}
	a.Basis = basisPolicy
	if asJSON {
		return inJSON(a)
	}
	return inWords(a, Look{}), nil
}

func (x *explainer) explain(ctx context.Context, q *Question) (*explainAnswer, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	a := &explainAnswer{Basis: basisProxy, Address: q.Address}
	access, err := x.access(q, a)
	if err != nil {
		return nil, err
	}
	if access == nil {
		return a, nil
	}
	a.Principal, a.Role, a.Domain = access.Principal.Name, access.Principal.Role.String(), access.Principal.Domain
	a.Certificate, a.Command = access.Certificate, access.Command
	if err := x.mayBuild(access); err != nil {
		a.Refusal = err.Error()
		return a, nil
	}
	a.MayBuild = true
	if len(q.Derivation) > 0 {
		a.Derivation, a.Ranking, err = x.derivation(ctx, access.Principal, q)
	} else {
		a.Ranking, err = x.rank(access.Principal, q)
	}
	return a, err
}

// access finds who asks. Nil with no error is somebody who is not let in; the answer
// says why.
func (x *explainer) access(q *Question, a *explainAnswer) (*policy.Access, error) {
	if q.Key == "" {
		a.Login = loginNotAsked
		return x.principal(q.Principal)
	}
	var from netip.Addr
	if q.Address != "" {
		var err error
		if from, err = netip.ParseAddr(q.Address); err != nil {
			return nil, usage("%s is not an address", quoted(q.Address))
		}
	}
	a.Login = loginRefused
	key, err := x.policy.ReadKey(q.Key)
	if err != nil {
		if strings.HasPrefix(q.Key, "SHA256:") {
			a.Key, a.Refusal = q.Key, err.Error()
			return nil, nil
		}
		return nil, usage("%v", err)
	}
	a.Key = policy.Fingerprint(key)
	access, err := x.identify(key, from)
	if err != nil {
		a.Refusal = err.Error()
		return nil, nil
	}
	a.Login = loginAccepted
	return access, nil
}

// identify is what a login does with a key once it is proved.
func (x *explainer) identify(key ssh.PublicKey, from netip.Addr) (*policy.Access, error) {
	if err := checkUserKey(key); err != nil {
		return nil, err
	}
	return x.policy.Identify(key, from)
}

func (x *explainer) principal(name string) (*policy.Access, error) {
	names := make([]string, len(x.policy.Principals))
	for i := range x.policy.Principals {
		p := &x.policy.Principals[i]
		if p.Name == name {
			return &policy.Access{Principal: p}, nil
		}
		names[i] = p.Name
	}
	if len(names) == 0 {
		return nil, usage("there is no principal %s; the policy has none", quoted(name))
	}
	const shown = 20
	more := ""
	if len(names) > shown {
		more = fmt.Sprintf(" and %d more", len(names)-shown)
		names = names[:shown]
	}
	return nil, usage("there is no principal %s; there is %s%s", quoted(name), strings.Join(names, ", "), more)
}

// mayBuild says why a build of whom an access belongs to is refused, wherever it
// would go.
func (x *explainer) mayBuild(access *policy.Access) error {
	if err := mayWrite(access.Principal, "build"); err != nil {
		return err
	}
	if access.Command != "" {
		c, err := parseCommand(access.Command, policy.Commands{})
		if err != nil {
			return err
		}
		if c.kind == commandServe && !c.write {
			return fmt.Errorf("the key is bound to %q, which only reads (command= of its line or certificate)", access.Command)
		}
	}
	if reason := noBuilder(access.Principal, x.router); reason != "" {
		return errors.New(reason)
	}
	return nil
}

// rank ranks builders for what has no inputs that anybody knows.
func (x *explainer) rank(principal *policy.Principal, q *Question) (*ranking, error) {
	noAttributes := func(string) (string, bool) { return "", false }
	needs, err := x.policy.NeedsOf(q.Features, q.Name, noAttributes)
	if err != nil {
		return nil, err
	}
	r := newRanking(x.router, requestBy(x.policy, principal, q.Name, q.System, q.Features, needs))
	r.Note = "what the inputs weigh is not counted, since only a derivation has them"
	return r, nil
}

// derivation ranks builders for a derivation, and returns its path.
func (x *explainer) derivation(ctx context.Context, principal *policy.Principal, q *Question) (string, *ranking, error) {
	drv, err := nix.ParseDerivation(q.Name, q.Derivation)
	if err != nil {
		return "", nil, usage("%v", err)
	}
	path, err := derivationPath(q.Name, q.Derivation, drv)
	if err != nil {
		return "", nil, usage("%v", err)
	}
	if x.session != nil {
		s := x.session(principal)
		defer s.close()
		r, err := s.rank(ctx, path, drv)
		return path.String(), r, err
	}
	system, features, err := drv.Requirements()
	if err != nil {
		return "", nil, usage("derivation %s: %v", path, err)
	}
	if err := checkFixedPath(path, &drv.BasicDerivation); err != nil {
		return "", nil, err
	}
	needs, err := x.policy.NeedsOf(features, q.Name, drv.Attribute)
	if err != nil {
		return "", nil, usage("derivation %s: %v", path, err)
	}
	r := newRanking(x.router, requestBy(x.policy, principal, q.Name, system, features, needs))
	r.Note = "what the inputs weigh is not counted, since a policy alone does not say where they are"
	return path.String(), r, nil
}

// derivationPath is the store path of a .drv file.
func derivationPath(name string, text []byte, drv *nix.Derivation) (nix.StorePath, error) {
	refs := slices.Clone(drv.InputSrcs)
	for _, input := range drv.InputDrvs {
		refs = append(refs, input.Path)
	}
	return nix.ContentAddressedPath(name+".drv", nix.ContentAddress{Method: nix.Text, Hash: nix.HashBytes(nix.SHA256, text)}, refs, false)
}
