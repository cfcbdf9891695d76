package proxy

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// explainedBy is the answer of a policy alone.
func explainedBy(t *testing.T, pol *policy.Policy, q Question) (explainAnswer, string) {
	t.Helper()
	text, err := ExplainBy(t.Context(), pol, &q, false)
	if err != nil {
		t.Fatalf("%+v: %v", q, err)
	}
	forPrograms, err := ExplainBy(t.Context(), pol, &q, true)
	if err != nil {
		t.Fatal(err)
	}
	var a explainAnswer
	if err := json.Unmarshal([]byte(forPrograms), &a); err != nil {
		t.Fatal(err)
	}
	return a, text
}

// certificateFor is one of the authority "ca" for alice's key.
func certificateFor(t *testing.T, change func(*ssh.Certificate)) string {
	t.Helper()
	cert := &ssh.Certificate{
		Key: testKey("alice").PublicKey(), CertType: ssh.UserCert, KeyId: "laptop", ValidPrincipals: []string{"alice"},
		ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
	}
	change(cert)
	if cert.Signature == nil {
		if err := cert.SignCert(rand.Reader, testKey("ca")); err != nil {
			t.Fatal(err)
		}
	}
	return string(ssh.MarshalAuthorizedKey(cert))
}

func loadPolicy(t *testing.T, text string) *policy.Policy {
	t.Helper()
	dir := t.TempDir()
	(&lab{TB: t}).writeKey(filepath.Join(dir, "id"), "proxy")
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	pol, err := policy.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return pol
}

func explainPolicy(t *testing.T) *policy.Policy {
	t.Helper()
	builder := func(name, more string) string {
		return "  - {name: " + name + ", address: nowhere.invalid, user: nix, identity_file: id, host_keys: [" + authorizedLine(testKey("builder")) + "], max_jobs: 2, " + more + "}\n"
	}
	return loadPolicy(t, "state_dir: state\ndomains: [{name: empty}]\nbuilders:\n"+
		builder("b1", "systems: [x86_64-linux], features: [kvm], resources: {mem: 32}")+
		builder("b2", "systems: [x86_64-linux], speed_factor: 2")+
		builder("b3", "systems: [aarch64-linux]")+`
scheduling:
  needs: [{name: "chromium-*", resources: {mem: 30}}, {attribute: memGiB, amount_of: mem}]
  alone: [kvm]
principals:
  - name: alice
    role: full
    keys:
      - 'from="10.0.0.0/8" `+authorizedLine(testKey("alice"))+`'
      - 'expiry-time="20200101" `+authorizedLine(testKey("old"))+`'
      - 'command="nix-store --serve" `+authorizedLine(testKey("reads"))+`'
      - 'cert-authority,principals="alice" `+authorizedLine(testKey("ca"))+`'
  - {name: reader, role: read, keys: [`+authorizedLine(testKey("reader"))+`]}
  - {name: proud, role: full, domain: empty, no_builder: refuse, keys: [`+authorizedLine(testKey("proud"))+`]}
`)
}

// Guards against a dry run that lets in whom a login would not, or says yes to who may
// not build: by role, address, expiry, certificate, and what a key is bound to.
func TestExplainSaysWhoMayBuild(t *testing.T) {
	pol := explainPolicy(t)
	forged := certificateFor(t, func(c *ssh.Certificate) {
		if err := c.SignCert(rand.Reader, testKey("ca")); err != nil {
			t.Fatal(err)
		}
		c.KeyId = "other"
	})
	for what, c := range map[string]struct {
		q       Question
		login   string
		refusal string // "": he may build
	}{
		"a principal":             {Question{Principal: "alice"}, loginNotAsked, ""},
		"a key":                   {Question{Key: authorizedLine(testKey("alice")), Address: "10.1.2.3"}, loginAccepted, ""},
		"a fingerprint":           {Question{Key: fingerprint(testKey("alice")), Address: "10.1.2.3"}, loginAccepted, ""},
		"from elsewhere":          {Question{Key: fingerprint(testKey("alice")), Address: "192.0.2.1"}, loginRefused, "must not be used from 192.0.2.1"},
		"from nobody knows where": {Question{Key: fingerprint(testKey("alice"))}, loginRefused, "may be used from 10.0.0.0/8 alone"},
		"an expired key":          {Question{Key: fingerprint(testKey("old"))}, loginRefused, "expired on"},
		"a stranger":              {Question{Key: authorizedLine(testKey("stranger"))}, loginRefused, "is not in the policy"},
		"a stranger's print":      {Question{Key: fingerprint(testKey("stranger"))}, loginRefused, "is not in the policy"},
		"an authority":            {Question{Key: fingerprint(testKey("ca"))}, loginRefused, "signs certificates"},
		"a certificate":           {Question{Key: certificateFor(t, func(*ssh.Certificate) {})}, loginAccepted, ""},
		"one for an address": {Question{Key: certificateFor(t, func(c *ssh.Certificate) {
			c.CriticalOptions = map[string]string{"source-address": "10.0.0.0/8"}
		}), Address: "192.0.2.1"}, loginRefused, "must not be used from 192.0.2.1"},
		"one that expired": {Question{Key: certificateFor(t, func(c *ssh.Certificate) {
			c.ValidBefore = c.ValidAfter + 1
		})}, loginRefused, "expired on"},
		"one that reads": {Question{Key: certificateFor(t, func(c *ssh.Certificate) {
			c.CriticalOptions = map[string]string{"force-command": "nix-store --serve"}
		})}, loginAccepted, "only reads"},
		"a forged one":     {Question{Key: forged}, loginRefused, "has not signed it"},
		"a reader":         {Question{Principal: "reader"}, loginNotAsked, "role read"},
		"a key that reads": {Question{Key: fingerprint(testKey("reads"))}, loginAccepted, "only reads"},
		"no builder":       {Question{Principal: "proud"}, loginNotAsked, "no builder is up"},
	} {
		c.q.System = "x86_64-linux"
		a, text := explainedBy(t, pol, c.q)
		if a.Login != c.login || a.MayBuild != (c.refusal == "") || !strings.Contains(a.Refusal, c.refusal) || (a.Ranking != nil) != a.MayBuild {
			t.Errorf("%s: %s", what, text)
		}
		if a.MayBuild && (a.Principal != "alice" || a.Ranking.Builder != "b2") {
			t.Errorf("%s goes to %q:\n%s", what, a.Ranking.Builder, text)
		}
	}
}

// Guards against a dry run of a .drv file that overlooks what the policy's rules make
// of it, which the bare system and features do not show.
func TestExplainReadsWhatADerivationNeeds(t *testing.T) {
	pol := explainPolicy(t)
	drv := func(name string, env ...nix.EnvVar) Question {
		d := &nix.Derivation{BasicDerivation: nix.BasicDerivation{
			Outputs: []nix.DerivationOutput{{Name: "out", Path: labPath(name)}}, Platform: "x86_64-linux", Builder: "/bin/sh", Env: env,
		}}
		return Question{Principal: "alice", Name: name, Derivation: []byte(d.ATerm())}
	}
	for what, c := range map[string]struct {
		q    Question
		mem  int64
		goes string
		says string
	}{
		"nothing":            {drv("hello"), 0, "b2", "b3: system is aarch64-linux"},
		"by its name":        {drv("chromium-120"), 30, "b1", "b2: has 0 mem, not 30"},
		"by its attribute":   {drv("hello", nix.EnvVar{Name: "memGiB", Value: "16"}), 16, "b1", "it needs 16 mem of its builder"},
		"too much":           {drv("hello", nix.EnvVar{Name: "memGiB", Value: "64"}), 64, "", "no builder can run it"},
		"a feature":          {drv("hello", nix.EnvVar{Name: "requiredSystemFeatures", Value: "kvm"}), 0, "b1", "it wants its builder alone"},
		"no file, by a name": {Question{Principal: "alice", System: "x86_64-linux", Name: "chromium-120"}, 30, "b1", "b2: has 0 mem, not 30"},
	} {
		a, text := explainedBy(t, pol, c.q)
		if a.Ranking.Needs["mem"] != c.mem || a.Ranking.Builder != c.goes || !strings.Contains(text, c.says) {
			t.Errorf("%s: needs %v, goes to %q:\n%s", what, a.Ranking.Needs, a.Ranking.Builder, text)
		}
	}
	wrong := drv("hello", nix.EnvVar{Name: "memGiB", Value: "much"})
	if text, err := ExplainBy(t.Context(), pol, &wrong, false); err == nil || !strings.Contains(err.Error(), "memGiB") {
		t.Errorf("%v: %s", err, text)
	}
}

// Guards against questions that are answered as if they had been another.
func TestExplainRefusesWhatMakesNoSense(t *testing.T) {
	pol := explainPolicy(t)
	for says, q := range map[string]Question{
		"name a principal or a key":   {System: "x86_64-linux"},
		"and not both":                {Principal: "alice", Key: fingerprint(testKey("alice")), System: "x86_64-linux"},
		"name that":                   {Principal: "alice", Address: "10.0.0.1", System: "x86_64-linux"},
		"name a system":               {Principal: "alice"},
		"leave them out":              {Principal: "alice", System: "x86_64-linux", Derivation: []byte("Derive(")},
		"derivation \"hello\"":        {Principal: "alice", Name: "hello", Derivation: []byte("Derive(")},
		"the limit is":                {Principal: "alice", Derivation: make([]byte, MaxDerivation+1)},
		"there is alice, reader":      {Principal: "bob", System: "x86_64-linux"},
		"is not an address":           {Key: fingerprint(testKey("alice")), Address: "home", System: "x86_64-linux"},
		"not a public key":            {Key: "id.pub", System: "x86_64-linux"},
		"options count":               {Key: "restrict " + authorizedLine(testKey("alice")), System: "x86_64-linux"},
		"not the name of a system or": {Principal: "alice", System: "x86_64-linux", Features: []string{"a b"}},
	} {
		text, err := ExplainBy(t.Context(), pol, &q, false)
		if !errors.As(err, new(*UsageError)) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v: %s", says, err, text)
		}
	}
}

// Guards against an answer about a running proxy that rests on something else than
// what it knows: its drained builders, and what its store holds of the inputs.
func TestExplainAsksTheRunningProxy(t *testing.T) {
	c := busyTown(t)
	drv := c.uploadDerivation("alice")
	text, err := readDerivation(t.Context(), c.proxy.cache, "default", drv, maxDrvSize)
	if err != nil {
		t.Fatal(err)
	}
	question, err := json.Marshal(Question{Principal: "alice", Name: "hello", Derivation: text})
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := c.proxy.AskAdmin(t.Context(), &got, []string{"explain", string(question), "--json"}, Look{}); err != nil {
		t.Fatal(err)
	}
	var a explainAnswer
	if err := json.Unmarshal(got.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	if why := c.ask("alice", "why "+labPath("hello.drv").String()); !strings.Contains(why, a.Ranking.Summary) || a.Ranking.Note != "" || a.Ranking.Builders[0].Load.MissingBytes == 0 {
		t.Errorf("explained as\n%s\nand why says\n%s", &got, why)
	}
	if a.Basis != basisProxy || a.Derivation == "" {
		t.Errorf("basis %q, derivation %q", a.Basis, a.Derivation)
	}
}
