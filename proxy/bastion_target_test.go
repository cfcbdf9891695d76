package proxy

import (
	"net/netip"
	"strings"
	"testing"
)

// hostileHosts are texts that some resolver or dialler reads as an address, or as
// something else than it looks like.
var hostileHosts = []string{
	"", ".", "..", "*", "a..b", ".a", "localhost.", "127.0.0.1.", "169.254.169.254.",
	"2130706433", "2852039166", "0", "1", "0x7f000001", "0x7F000001", "0x7f.1", "0X7f.0x1", "0177.0.0.1", "017700000001", "127.1", "127.0.1",
	"127.0.0.01", "127.0.0.0x1", "1.2.3.4.5", "1.2.3", "256.1.1.1", "0x", "a.0x7f",
	"[::1]", "[::ffff:127.0.0.1]", "::1%lo", "fe80::1%eth0", "::1%", "1::2::3", "12345::", "::ffff:127.0.0.1%1",
	"local host", " localhost", "localhost ", "localhost\x00", "localhost\x00.example.org", "local\x7fhost", "localhost\n", "\tlocalhost", "a\r\nb",
	"localhost:22", "user@localhost", "localhost/", "local\\host", "http://localhost", "a,b", "a;b", "a'b", "a`b", "$HOME", "a#b", "a?b", "a%b",
	"ⓛocalhost", "localh\u00f6st", "127。0。0。1", "１２７.0.0.1", "builder\u212a", "\u0130", "\xff\xfe", "localhost\u202e",
	"-a", "a-", "a.-b", "a-.b",
	strings.Repeat("a", 64), strings.Repeat("a.", 126) + "aa", strings.Repeat("a", 256), strings.Repeat("a.", 50_000) + "a",
	strings.Repeat("0", 255) + "1", strings.Repeat("1.", 127) + "1",
}

// Guards against a target that the check reads in one way and the network in
// another.
func TestHostileHostsAreNoTargets(t *testing.T) {
	for _, host := range hostileHosts {
		if got, err := parseTarget(host, 22); err == nil {
			t.Errorf("%q is taken for %+v", host, got)
		}
	}
}

// Guards against a port that wraps: 65558 is 65536 and 22.
func TestPortsDoNotWrap(t *testing.T) {
	for _, port := range []uint32{0, 65536, 65558, 1<<31 + 22, 1<<32 - 1} {
		if got, err := parseTarget("builder1", port); err == nil {
			t.Errorf("port %d is taken for %d", port, got.port)
		}
	}
	for _, port := range []uint32{1, 22, 65535} {
		if got, err := parseTarget("builder1", port); err != nil || uint32(got.port) != port {
			t.Errorf("port %d: %+v, %v", port, got, err)
		}
	}
}

// Guards against honest hosts that are refused, and against IPv4 in the clothes of
// IPv6.
func TestHonestHostsAreTargets(t *testing.T) {
	for host, want := range map[string]target{
		"builder1":                        {name: "builder1"},
		"Builder-1.Example.ORG":           {name: "builder-1.example.org"},
		"_ssh.builder_1.example.org":      {name: "_ssh.builder_1.example.org"},
		"1.builder":                       {name: "1.builder"},
		"0x7f.example":                    {name: "0x7f.example"},
		"xn--mnchen-3ya.de":               {name: "xn--mnchen-3ya.de"},
		"192.0.2.7":                       {addr: netip.MustParseAddr("192.0.2.7")},
		"::ffff:192.0.2.7":                {addr: netip.MustParseAddr("192.0.2.7")},
		"0:0:0:0:0:FFFF:c000:0207":        {addr: netip.MustParseAddr("192.0.2.7")},
		"2001:DB8::7":                     {addr: netip.MustParseAddr("2001:db8::7")},
		"::192.0.2.7":                     {addr: netip.MustParseAddr("::c000:207")},
		strings.Repeat("a", 63):           {name: strings.Repeat("a", 63)},
		strings.Repeat("a.", 125) + "com": {name: strings.Repeat("a.", 125) + "com"},
	} {
		want.port = 22
		if got, err := parseTarget(host, 22); err != nil || got != want {
			t.Errorf("%q is %+v (%v), want %+v", host, got, err, want)
		}
	}
}

// Guards against any host that has two meanings: what is taken for a name must not
// be an address, and what is taken for an address must be exactly one.
func FuzzParseTarget(f *testing.F) {
	for _, host := range hostileHosts {
		f.Add(host, uint32(22))
	}
	f.Add("builder1.example.org", uint32(65558))
	f.Add("2001:db8::7", uint32(65535))
	f.Fuzz(func(t *testing.T, host string, port uint32) {
		got, err := parseTarget(host, port)
		if err != nil {
			if got != (target{}) {
				t.Fatalf("%q: %v, and yet %+v", host, err, got)
			}
			return
		}
		switch {
		case uint32(got.port) != port || port == 0:
			t.Fatalf("port %d became %d", port, got.port)
		case got.addr.IsValid() == (got.name != ""):
			t.Fatalf("%q is both or neither: %+v", host, got)
		case got.addr.IsValid() && (got.addr.Is4In6() || got.addr.Zone() != ""):
			t.Fatalf("%q is the address %s", host, got.addr)
		case got.addr.IsValid():
			again, err := parseTarget(got.addr.String(), port)
			if err != nil || again != got {
				t.Fatalf("%q is %+v, and that again %+v (%v)", host, got, again, err)
			}
		default:
			if again, err := parseTarget(got.name, port); err != nil || again != got {
				t.Fatalf("%q is %+v, and that again %+v (%v)", host, got, again, err)
			}
			if !strings.EqualFold(got.name, host) || strings.ContainsFunc(got.name, func(r rune) bool { return r <= ' ' || r > '~' || r >= 'A' && r <= 'Z' }) {
				t.Fatalf("%q became %q", host, got.name)
			}
		}
	})
}
