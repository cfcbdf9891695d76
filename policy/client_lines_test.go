package policy

import (
	"reflect"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Guards against lines for one domain that tell of another, and against a host that
// would make lines of another form.
func TestClientLinesAreThoseOfOneDomain(t *testing.T) {
	d, text := example(t)
	pol := d.load(t, text)
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(authorizedLine("proxy")))
	if err != nil {
		t.Fatal(err)
	}
	got, err := pol.ClientLines("ci", "2001:db8::1", key)
	if err != nil {
		t.Fatal(err)
	}
	field := hostKeyField(authorizedLine("proxy"))
	want := ClientLines{
		Systems: []string{"aarch64-linux", "armv7l-linux"}, Slots: 4, Store: "ssh-ng://[2001:db8::1]", HostKeyField: field,
		Machines:   "ssh-ng://[2001:db8::1] aarch64-linux,armv7l-linux /root/.ssh/id_ed25519 32 1 - - " + field,
		KnownHosts: "2001:db8::1 " + authorizedLine("proxy"),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got, err := pol.ClientLines("empty", "proxy", key); err != nil || got.Machines != "" || len(got.Systems) != 0 {
		t.Errorf("a domain without builders: %+v, %v", got, err)
	}
	for _, host := range []string{"", "a b", "proxy\nother ssh-ed25519 AAAA"} {
		if got, err := pol.ClientLines("ci", host, key); err == nil {
			t.Errorf("host %q: %+v", host, got)
		}
	}
}

// Guards against the word of an authority for a host that it does not know.
func TestClientLinesNameTheAuthorityOfTheHost(t *testing.T) {
	pol, err := Load(newDir(t).withHostCertificate(hostCertificateOf(t, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"nix.example.org"} })))
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{
		"nix.example.org": "@cert-authority nix.example.org " + authorizedLine("ca"), "proxy": "",
	} {
		lines, err := pol.ClientLines("default", host, pol.SSH.HostCertificate.Certificate.Key)
		if err != nil || lines.CertAuthority != want {
			t.Errorf("%s: %q, %v, want %q", host, lines.CertAuthority, err, want)
		}
	}
}
