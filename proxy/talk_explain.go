package proxy

import (
	"bytes"
	"context"
	"encoding/json"

	"nixbastion/policy"
)

// explainAnswer says whether somebody may have something built, and where it would go.
type explainAnswer struct {
	// Basis is "policy" for a policy alone, with all builders up and idle, and "proxy"
	// for how things are at one that runs.
	Basis string `json:"basis"`
	// Key is a fingerprint, if one was asked for, Certificate what is known of the
	// certificate for it, and Command what it is bound to.
	Key         string `json:"key,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	Command     string `json:"command,omitempty"`
	Address     string `json:"address,omitempty"`
	// Login is "accepted", "refused", or "not asked" where a principal was named.
	Login string `json:"login"`
	// These are empty for whom is not let in.
	Principal string `json:"principal,omitempty"`
	Role      string `json:"role,omitempty"`
	Domain    string `json:"domain,omitempty"`
	// MayBuild says that a build is not refused whatever it is; else Refusal says why it
	// is, or why nobody is let in, and there is no Ranking.
	MayBuild   bool   `json:"may_build"`
	Refusal    string `json:"refusal,omitempty"`
	Derivation string `json:"derivation,omitempty"`
	// Ranking is where the build would go.
	Ranking *ranking `json:"ranking"`
}

const (
	basisPolicy, basisProxy                    = "policy", "proxy"
	loginAccepted, loginRefused, loginNotAsked = "accepted", "refused", "not asked"
)

// explain answers the admin. The one word is a [Question] in JSON.
func (p *Proxy) explain(ctx context.Context, args []string) (answer, error) {
	if len(args) != 1 {
		return nil, usage("explain takes one question in JSON")
	}
	var q Question
	in := json.NewDecoder(bytes.NewReader([]byte(args[0])))
	in.DisallowUnknownFields()
	if err := in.Decode(&q); err != nil {
		return nil, usage("the question is no JSON of explain: %v", err)
	}
	x := explainer{policy: p.policy.Current(), router: p.router, session: func(principal *policy.Principal) *session {
		return p.newSession(principal, p.log)
	}}
	return x.explain(ctx, &q)
}

func (a *explainAnswer) print(page *page) {
	if a.Basis == basisPolicy {
		page.line("by the policy alone, with every builder up and idle:")
	}
	page.table(a.rows())
	if !a.MayBuild {
		page.line("refused: %s", a.Refusal)
		return
	}
	if a.Derivation != "" {
		page.line("%s", a.Derivation)
	}
	a.Ranking.print(page)
}

func (a *explainAnswer) rows() [][]string {
	var rows [][]string
	for _, row := range [][]string{
		{"key", a.Key}, {"certificate", a.Certificate}, {"from", a.Address}, {"bound to", a.Command},
		{"login", a.loginText()}, {"principal", a.Principal}, {"role", a.Role}, {"domain", a.Domain}, {"may build", a.buildText()},
	} {
		if row[1] != "" {
			rows = append(rows, row)
		}
	}
	return rows
}

func (a *explainAnswer) loginText() string {
	if a.Login == loginNotAsked {
		return "not asked: name a key for what its line or certificate says"
	}
	return a.Login
}

func (a *explainAnswer) buildText() string {
	if a.MayBuild {
		return "yes"
	}
	return "no"
}
