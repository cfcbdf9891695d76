package policy

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"nixbastion/internal/nix"
)

const signingDomains = "domains:\n  - {name: default, signing_keys: [default-1.secret]}\n  - {name: ci, signing_keys: [ci-1.secret, ci-2.secret], sign: proven}\n"

// Guards against a domain that signs with another's key, with one of several only,
// or more than the file says.
func TestDomainsSignWithTheirOwnKeys(t *testing.T) {
	d := newDir(t)
	pol := d.load(t, minimal+signingDomains+"  - {name: quiet}\n")
	signs := func(domain string) string {
		dom := pol.DomainNamed(domain)
		return fmt.Sprint(dom.Sign, dom.Signers())
	}
	for domain, want := range map[string]string{"default": "domain [default-1]", "ci": "proven [ci-1 ci-2]", "quiet": "none []"} {
		if got := signs(domain); got != want {
			t.Errorf("%s signs %s, want %s", domain, got, want)
		}
	}
	if pol.DomainNamed("nobody") != nil || len(pol.Domains) != 3 || pol.Domains[0].Name != "default" {
		t.Errorf("domains %+v", pol.Domains)
	}
	key, err := nix.ParseSigningKey(signingKeyText("ci-1"))
	if err != nil || pol.DomainNamed("ci").PublicKeys()[0].String() != key.Public().String() {
		t.Errorf("public keys %v, %v", pol.DomainNamed("ci").PublicKeys(), err)
	}
	pol = d.load(t, minimal+strings.Replace(signingDomains, "proven", "none", 1))
	if got := signs("ci"); got != "none []" || pol.DomainNamed("ci").PublicKeys() != nil {
		t.Errorf("ci signs %s", got)
	}
	if text := fmt.Sprintf("%v %+v %#v", *pol, *pol, *pol); strings.Contains(text, signingKeyText("ci-1")[10:40]) {
		t.Error("a printed policy tells the secret")
	}
}

// Guards against a change of keys or of what they sign that goes unnoticed, and
// against one that is seen where there is none.
func TestSignersNameChangesWithWhatIsSigned(t *testing.T) {
	d := newDir(t)
	name := func(domain string) string {
		return d.load(t, minimal+"domains: [{name: ci, "+domain+"}]\n").DomainNamed("ci").SignersName()
	}
	seen := map[string]string{}
	for _, domain := range []string{
		"signing_keys: [ci-1.secret]", "signing_keys: [ci-2.secret]", "signing_keys: [ci-1.secret, ci-2.secret]", "signing_keys: [ci-1.secret], sign: proven",
	} {
		if other, same := seen[name(domain)]; same || name(domain) == "" {
			t.Errorf("%s has the name %q, as %s", domain, name(domain), other)
		}
		seen[name(domain)] = domain
	}
	if a, b := name("signing_keys: [ci-1.secret, ci-2.secret]"), name("sign: domain, signing_keys: [ci-2.secret, ci-1.secret]"); a != b {
		t.Errorf("the same has the names %q and %q", a, b)
	}
	if a, b := name("signing_keys: []"), name("sign: none, signing_keys: [ci-1.secret]"); a != "" || b != "" {
		t.Errorf("nothing has the names %q and %q", a, b)
	}
}

// Guards against a signing key that others know or could have made, against a
// check of the policy that waits for a pipe, and against a message that tells what
// is in the file.
func TestSigningKeysAreKeptFromOthers(t *testing.T) {
	d := newDir(t)
	secret := signingKeyText("ci-1")
	d.write("signed.secret", secret, 0o600)
	if err := syscall.Mkfifo(d.path("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("ci-1.secret", d.path("link")); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o610} {
		d.write(fmt.Sprintf("mode-%o", mode), secret, mode)
	}
	pub, _ := nix.ParseSigningKey(secret)
	d.write("public", pub.Public().String(), 0o600)
	d.write("nameless", secret[5:], 0o600)
	d.write("backwards", secret[5:]+":ci-1", 0o600)
	d.write("cut", secret[:40], 0o600)
	d.write("long", secret+strings.Repeat(" ", maxSigningKeyBytes), 0o600)
	for file, want := range map[string]string{
		"mode-640": "may be used by others (mode 0640)", "mode-604": "may be used by others", "mode-620": "may be used by others", "mode-610": "may be used by others",
		"pipe": "is not a regular file", ".": "is not a regular file", "absent": "does not exist", "public": "is a public key",
		"nameless": "is not a secret key of Nix", "backwards": "is not a secret key of Nix", "cut": "is not a secret key of Nix", "long": "is larger than",
		"ci-1.secret": "", "link": "",
	} {
		_, err := Load(d.write("policy.yaml", minimal+"domains: [{name: ci, signing_keys: [\""+file+"\"]}]\n", 0o644))
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", file, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), d.path(file)) {
			t.Errorf("%s: got %v, want %q and the name of the file", file, err, want)
			continue
		}
		checkForm(t, err)
		for at := 5; at+12 <= len(secret); at += 6 {
			if strings.Contains(err.Error(), secret[at:at+12]) {
				t.Errorf("%s: the message tells the secret: %v", file, err)
			}
		}
	}
}

// Guards against a key that another account made, which then knows it.
func TestSigningKeysBelongToRootOrTheProxy(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	d := newDir(t)
	text := minimal + "domains: [{name: ci, signing_keys: [ci-1.secret]}]\n"
	if err := os.Chown(d.path("ci-1.secret"), 12345, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(d.write("policy.yaml", text, 0o644)); err == nil || !strings.Contains(err.Error(), "belongs to another account (uid 12345)") {
		t.Errorf("got %v", err)
	}
	// Root checks the policy of a proxy that is not root.
	state := d.path("state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(state, 12345, 0); err != nil {
		t.Fatal(err)
	}
	text = "state_dir: state\n" + strings.TrimPrefix(text, minimal)
	d.load(t, text)
}

// Guards against a credential of systemd that is refused for its mode, and against
// a name that only looks like one.
func TestCredentialsOfTheServiceAreWellKept(t *testing.T) {
	d := newDir(t)
	d.write("credentials/key", signingKeyText("ci-1"), 0o440)
	d.write("credentials-not/key", signingKeyText("ci-1"), 0o440)
	t.Setenv("CREDENTIALS_DIRECTORY", d.path("credentials"))
	d.load(t, minimal+"domains: [{name: ci, signing_keys: [credentials/key]}]\n")
	for _, path := range []string{"credentials-not/key", "credentials/../credentials-not/key"} {
		if _, err := Load(d.write("policy.yaml", minimal+"domains: [{name: ci, signing_keys: ["+path+"]}]\n", 0o644)); err == nil {
			t.Errorf("%s: accepted", path)
		}
	}
}

// Guards against a description that keeps quiet about what a key lets others do,
// or that leaves out a line which clients need.
func TestDescribeSaysWhoSignsWhat(t *testing.T) {
	d := newDir(t)
	key := func(name string) string { return "keys: [" + authorizedLine(name) + "]" }
	principals := "principals:\n  - {name: anna, role: full, " + key("anna") + "}\n  - {name: ci, role: full, domain: ci, " + key("ci") + "}\n" +
		"  - {name: board, role: read, domain: quiet, " + key("board") + "}\n"
	text := minimal + strings.Replace(signingDomains, "sign: proven", "sign: domain", 1) + "  - {name: quiet}\n" + principals
	got := describe(t, d.load(t, text), "proxy")
	public := func(name string) string {
		k, err := nix.ParseSigningKey(signingKeyText(name))
		if err != nil {
			t.Fatal(err)
		}
		return k.Public().String()
	}
	for _, want := range []string{
		"  key default-1 signs all that this domain vouches for (sign: domain): what was built for it and what is proven, but not what was merely uploaded",
		"  The one full key of this domain can plant any path for everyone who trusts key default-1.",
		"  keys ci-1 and ci-2 sign, each of them, all that this domain vouches for (sign: domain): what was built for it and what is proven, but not what was merely uploaded",
		"  The one full key of this domain can plant any path for everyone who trusts one of the keys ci-1, ci-2.",
		"  signs nothing (no signing_keys): clients that check signatures take from it only what others have signed",
		"  extra-substituters = ssh-ng://proxy?priority=50",
		"  extra-trusted-public-keys = " + public("ci-1") + " " + public("ci-2"),
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("no line %q in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "warning: key") {
		t.Errorf("got:\n%s", got)
	}
	got = describe(t, d.load(t, text+"trusted_public_keys: [\""+public("ci-1")+"\"]\n"), "proxy")
	if want := "warning: key ci-1 is among trusted_public_keys: what domain ci signs with it is proven for every domain\n"; !strings.Contains(got, want) {
		t.Errorf("no line %q in:\n%s", want, got)
	}
	got = describe(t, d.load(t, minimal+signingDomains), "proxy")
	if want := "  What only the full keys of this domain vouch for is not signed.\n"; !strings.Contains(got, want) {
		t.Errorf("no line %q in:\n%s", want, got)
	}

	pol := d.load(t, text)
	for domain, want := range map[string][]string{"ci": {public("ci-1"), public("ci-2")}, "quiet": nil} {
		if lines, err := pol.ClientLines(domain, "proxy", testKey("proxy")); err != nil || !reflect.DeepEqual(lines.TrustedPublicKeys, want) {
			t.Errorf("%s: %q, %v", domain, lines.TrustedPublicKeys, err)
		}
	}
}

// Guards against a reload that lets new keys count before the store knows of them.
func TestAPolicyIsShownBeforeItCounts(t *testing.T) {
	d := newDir(t)
	file := d.write("policy.yaml", minimal, 0o644)
	live, err := NewLive(file)
	if err != nil {
		t.Fatal(err)
	}
	old := live.Current()
	d.write("policy.yaml", minimal+signingDomains, 0o644)
	err = live.ReloadAfter(func(next *Policy) {
		if live.Current() != old || len(next.Domains) != 2 {
			t.Errorf("shown %+v when %+v counts", next.Domains, live.Current().Domains)
		}
	})
	if err != nil || len(live.Current().Domains) != 2 {
		t.Errorf("got %+v, %v", live.Current().Domains, err)
	}
	d.write("policy.yaml", minimal+signingDomains+"nonsense: 1\n", 0o644)
	if err := live.ReloadAfter(func(*Policy) { t.Error("a refused policy is shown") }); err == nil {
		t.Error("accepted")
	}
}
