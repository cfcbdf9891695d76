package policy

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Guards against any way in but a key that the policy has, from where it may come.
func TestIdentifyKnowsKeysAndNothingElse(t *testing.T) {
	d := newDir(t)
	d.write("more.keys", `from="2001:db8::/32" `+authorizedLine("work")+"\n", 0o644)
	pol := d.load(t, minimal+`principals:
  - name: anna
    role: full
    keys:
      - `+authorizedLine("laptop")+` anna@laptop
      - restrict,from="10.0.0.0/8,!10.9.0.0/16" `+authorizedLine("desktop")+`
    authorized_keys: more.keys
  - name: board
    role: read
    keys: [`+authorizedLine("board")+`]
`)
	for _, c := range []struct{ key, from, want string }{
		{"laptop", "203.0.113.9", "anna"},
		{"desktop", "10.1.2.3", "anna"},
		{"desktop", "::ffff:10.1.2.3", "anna"},
		{"desktop", "10.9.2.3", ""},
		{"desktop", "203.0.113.9", ""},
		{"work", "2001:db8::1", "anna"},
		{"work", "10.1.2.3", ""},
		{"board", "203.0.113.9", "board"},
		{"stranger", "10.1.2.3", ""},
	} {
		who, err := pol.Identify(testKey(c.key), netip.MustParseAddr(c.from))
		switch {
		case c.want == "" && (err == nil || who != nil):
			t.Errorf("%s from %s: got in as %+v", c.key, c.from, who)
		case c.want == "" && !strings.Contains(err.Error(), ssh.FingerprintSHA256(testKey(c.key))):
			t.Errorf("%s from %s: no fingerprint in %q", c.key, c.from, err)
		case c.want != "" && (err != nil || who.Principal.Name != c.want):
			t.Errorf("%s from %s: got %+v, %v", c.key, c.from, who, err)
		}
	}
	if who, err := pol.Identify(testKey("desktop"), netip.Addr{}); err == nil {
		t.Errorf("a key with from= without an address: got in as %+v", who)
	}
}

// Guards against keys that are looked up by something that others can have too: a
// certificate of a known key is not that key.
func TestIdentifyTakesNoCertificateForItsKey(t *testing.T) {
	pol := newDir(t).load(t, minimal+"principals: [{name: anna, role: full, keys: ["+authorizedLine("anna")+"]}]\n")
	if who, err := pol.Identify(&ssh.Certificate{Key: testKey("anna"), SignatureKey: testKey("ca"), Signature: &ssh.Signature{}}, netip.Addr{}); err == nil {
		t.Errorf("got in as %+v", who)
	}
}

// The patterns of from= against what sshd does with them.
func TestFromPatterns(t *testing.T) {
	for _, c := range []struct {
		from, addr string
		want       bool
	}{
		{"192.0.2.7", "192.0.2.7", true},
		{"192.0.2.7", "192.0.2.70", false},
		{"192.0.2.*", "192.0.2.70", true},
		{"192.0.2.*", "192.0.20.7", false},
		{"192.0.?.7", "192.0.2.7", true},
		{"192.0.?.7", "192.0.22.7", false},
		{"*", "2001:db8::1", true},
		{"2001:DB8::1", "2001:db8:0::1", true},
		{"2001:db8:*", "2001:db8::1", true},
		{"2001:db8::/32", "2001:db9::1", false},
		{"0.0.0.0/0", "2001:db8::1", false},
		{"10.0.0.0/8", "::ffff:10.1.1.1", true},
		{"::ffff:10.1.1.1", "10.1.1.1", true},
		{"!10.1.1.1,10.0.0.0/8", "10.1.1.1", false},
		{"10.0.0.0/8,!10.1.1.1", "10.1.1.1", false},
		{"10.0.0.0/8, 192.0.2.1", "192.0.2.1", true},
		{"fe80::1", "fe80::1%eth0", true},
		{"1*2*3*4*5*6*7*8*9", strings.Repeat("1:", 7) + "1", false},
	} {
		list, err := parseFrom(c.from)
		if err != nil {
			t.Errorf("%s: %v", c.from, err)
			continue
		}
		if got := list.allows(netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("from=%q, %s: got %v", c.from, c.addr, got)
		}
	}
}
