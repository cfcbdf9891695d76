package proxy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
	"nixbastion/policy"
)

// signWith reloads the lab's policy with these lines for domains, in which
// KEY(name) is the file of a key that is made.
func (l *lab) signWith(domains string) {
	l.Helper()
	text, err := os.ReadFile(l.file)
	if err != nil {
		l.Fatal(err)
	}
	lines := strings.SplitAfter(string(text), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "domains: ") {
			lines[i] = "domains: [" + l.withKeys(domains) + "]\n"
		}
	}
	if err := os.WriteFile(l.file, []byte(strings.Join(lines, "")), 0o600); err != nil {
		l.Fatal(err)
	}
	if _, err := l.proxy.Reload("test"); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) withKeys(domains string) string {
	for {
		before, rest, found := strings.Cut(domains, "KEY(")
		if !found {
			return domains
		}
		name, after, _ := strings.Cut(rest, ")")
		file := filepath.Join(filepath.Dir(l.file), name+".secret")
		if err := os.WriteFile(file, []byte(storetest.SigningKey(name).Secret()), 0o600); err != nil {
			l.Fatal(err)
		}
		domains = before + file + after
	}
}

// Guards against a key that signs what a client merely claims, or for another
// domain, and against output that nobody can check.
func TestAKeySignsWhatItsDomainVouchesFor(t *testing.T) {
	for _, c := range []struct {
		mode                    string
		claimed, output, source []string
	}{
		{"domain", nil, []string{"home-1", "home-2"}, []string{"home-1", "home-2"}},
		{"proven", nil, nil, []string{"home-1", "home-2"}},
		{"none", nil, nil, nil},
	} {
		b := newLabBuilder("b1")
		b.strict = c.mode == "proven"
		l := newLab(t, b)
		l.signWith("{name: default, sign: " + c.mode + ", signing_keys: [KEY(home-1), KEY(home-2)]}, {name: other, signing_keys: [KEY(other-1)]}")
		alice, eve := l.client("alice"), l.client("eve")
		claimed, source := signedFile("claimed", "x"), sourceFile("source", "x")
		for _, err := range []error{alice.upload(t.Context(), claimed, source), eve.upload(t.Context(), claimed, source)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		result, err := alice.build(t.Context(), nix.Discard, "hello", claimed.info.Path)
		mustSucceed(t, result, err)
		if _, err := alice.read(t.Context(), labPath("hello")); err != nil { // so it has arrived
			t.Fatal(err)
		}
		l.wantProvenance(claimed, cache.Claimed, c.claimed...)
		l.wantProvenance(source, cache.ContentAddressed, c.source...)
		output := newLabFile(labPath("hello"), "built by b1")
		eventually(t, "the output is verified", func() bool {
			p, err := l.proxy.cache.QueryProvenance("default", output.info.Path)
			return err == nil && p == cache.DomainVouched
		})
		l.wantProvenance(output, cache.DomainVouched, c.output...)
		info, err := alice.QueryPathInfo(t.Context(), output.info.Path)
		if err != nil {
			t.Fatal(err)
		}
		for _, sig := range info.Sigs {
			if !storetest.SigningKey(sig.Name()).Public().Verify(output.info.Fingerprint(), sig) {
				t.Errorf("%s does not hold", sig)
			}
		}
		info, err = eve.QueryPathInfo(t.Context(), source.info.Path)
		if err != nil || len(info.Sigs) != 1 || info.Sigs[0].Name() != "other-1" {
			t.Errorf("in the other domain: %v, %v", info, err)
		}
	}
}

// Guards against what is shown to every domain and cannot be checked there, and
// against a public record that tells which domain has a path.
func TestADomainThatSharesSignsForEverybody(t *testing.T) {
	for share, want := range map[string]string{"public": "home-1", "none": ""} {
		l := newLab(t, newLabBuilder("b1"))
		l.signWith("{name: default, share: " + share + ", signing_keys: [KEY(home-1)]}, {name: other}")
		alice, eve := l.client("alice"), l.client("eve")
		result, err := alice.build(t.Context(), nix.Discard, "hello")
		mustSucceed(t, result, err)
		if _, err := alice.read(t.Context(), labPath("hello")); err != nil { // so it has arrived
			t.Fatal(err)
		}
		seen := func() string {
			info, err := eve.QueryPathInfo(t.Context(), labPath("hello"))
			if err != nil || len(info.Sigs) != 1 {
				return ""
			}
			return info.Sigs[0].Name()
		}
		if want != "" {
			eventually(t, "the other domain sees it signed", func() bool { return seen() == want })
		} else if info, err := eve.QueryPathInfo(t.Context(), labPath("hello")); !errors.Is(err, nix.ErrNotFound) {
			t.Errorf("the other domain sees it: %+v, %v", info, err)
		}
	}
}

// Guards against claims that are signed in some mode, and against modes that sign
// less than they say.
func TestModesSignByProvenance(t *testing.T) {
	for mode, least := range map[policy.Signing]cache.Provenance{
		policy.SignDomain: cache.DomainVouched, policy.SignProven: cache.Built, policy.SignNone: cache.ContentAddressed + 1,
	} {
		for p := cache.Claimed; p <= cache.ContentAddressed; p++ {
			if got, want := signs(mode, p), p >= least && p > cache.Claimed; got != want {
				t.Errorf("sign: %v signs %v: %v, want %v", mode, p, got, want)
			}
		}
	}
}

// Guards against old paths that no client can check after a change of keys.
func TestOldPathsAreSignedAfterAReload(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	source := sourceFile("source", "x")
	if err := l.client("alice").upload(t.Context(), source); err != nil {
		t.Fatal(err)
	}
	l.wantProvenance(source, cache.ContentAddressed)
	names := func() string {
		info, err := l.client("alice").QueryPathInfo(t.Context(), source.info.Path)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, sig := range info.Sigs {
			all = append(all, sig.Name())
		}
		return strings.Join(all, " ")
	}
	for _, step := range []struct{ domain, want string }{
		{"{name: default, signing_keys: [KEY(home-1)]}", "home-1"},
		{"{name: default, signing_keys: [KEY(home-2)], sign: none}", "home-1"},
		{"{name: default, signing_keys: [KEY(home-1), KEY(home-2)]}", "home-1 home-2"},
	} {
		l.signWith(step.domain + ", {name: other}")
		eventually(t, "signed by "+step.want, func() bool { return names() == step.want })
	}
	eventually(t, "the log says so", func() bool {
		done := l.log.records(t, "what the store holds has signatures of all keys")
		return len(done) > 0 && done[len(done)-1]["domain"] == "default" && done[len(done)-1]["signed"] == 1.0
	})
}

// Guards against clients that cannot check what the proxy signs since nobody told
// them the key, or told them that of another domain.
func TestCheckPrintsTheKeysOfTheDomain(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	l.signWith("{name: default, signing_keys: [KEY(home-1), KEY(home-2)]}, {name: other, signing_keys: [KEY(other-1)]}")
	public := func(name string) string { return storetest.SigningKey(name).Public().String() }
	for _, c := range []struct {
		principal string
		lines     []string
	}{
		{"alice", []string{"builders = @/etc/nix/machines", "extra-substituters = ssh-ng://HOST?priority=50",
			"extra-trusted-public-keys = " + public("home-1") + " " + public("home-2"), "fallback = true"}},
		{"reader", []string{"extra-substituters = ssh-ng://HOST?priority=50",
			"extra-trusted-public-keys = " + public("home-1") + " " + public("home-2"), "fallback = true"}},
		{"eve", []string{"extra-substituters = ssh-ng://HOST?priority=50", "extra-trusted-public-keys = " + public("other-1"), "fallback = true"}},
	} {
		a := &asker{client: &Identity{}, access: &policy.Access{Principal: l.principal(c.principal)}}
		text, err := l.proxy.answer(t.Context(), a, "check")
		if want := "in /etc/nix/nix.conf:\n  " + strings.Join(c.lines, "\n  ") + "\n"; err != nil || !strings.Contains(text, want) {
			t.Errorf("%s: %v, no %q in:\n%s", c.principal, err, want, text)
		}
	}
}

// Guards against a substituter's client that asks while an output is still on its
// way, sees no signature, and passes over the path for the rest of its run; and
// against a client that is kept from following the output of its own build.
func TestOthersWaitForTheSignatureOfWhatIsArriving(t *testing.T) {
	b := newLabBuilder("b1")
	gate := make(chan struct{})
	b.beforeNar = func() { <-gate }
	l := newLab(t, b)
	l.signWith("{name: default, signing_keys: [KEY(home-1)]}, {name: other}")
	alice := l.client("alice")
	result, err := alice.build(t.Context(), nix.Discard, "hello")
	mustSucceed(t, result, err)
	for _, c := range []*labClient{alice, l.client("bob")} {
		if c != alice { // an answer that is known is as good as a build
			result, err := c.build(t.Context(), nix.Discard, "hello")
			mustSucceed(t, result, err)
		}
		if info, err := c.QueryPathInfo(t.Context(), labPath("hello")); err != nil || len(info.Sigs) != 0 {
			t.Errorf("who waits for the build: %v, %v", info, err)
		}
	}
	reader := l.client("reader")
	asked := make(chan *nix.PathInfo, 1)
	go func() {
		info, _ := reader.QueryPathInfo(t.Context(), labPath("hello"))
		asked <- info
	}()
	select {
	case info := <-asked:
		t.Errorf("a reader was answered before the output was verified: %+v", info)
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	if info := <-asked; info == nil || len(info.Sigs) != 1 || info.Sigs[0].Name() != "home-1" {
		t.Errorf("a reader got %+v", info)
	}
}

// Guards against an answer that never comes since what arrives fails.
func TestNobodyWaitsForTheSignatureOfWhatFailed(t *testing.T) {
	b := newLabBuilder("b1")
	gate := make(chan struct{})
	b.beforeNar = func() { <-gate }
	l := newLab(t, b)
	l.signWith("{name: default, signing_keys: [KEY(home-1)]}, {name: other}")
	result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
	mustSucceed(t, result, err)
	reader := l.client("reader")
	asked := make(chan error, 1)
	go func() {
		_, err := reader.QueryPathInfo(t.Context(), labPath("hello"))
		asked <- err
	}()
	b.die() // or the path would be found there again
	close(gate)
	if err := <-asked; err == nil {
		t.Error("a path that never came is answered")
	}
	if valid, err := reader.QueryValidPaths(t.Context(), []nix.StorePath{labPath("hello")}, false); err != nil || len(valid) != 0 {
		t.Errorf("the session goes on: %v, %v", valid, err)
	}
}
