package proxy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"nixbastion/policy"
)

// here is a machine whose proxy listens on every address, port 2022.
var here = machine{
	addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"), netip.MustParseAddr("198.51.100.4"), netip.MustParseAddr("2001:db8:1::4")},
	listening: []netip.AddrPort{
		netip.MustParseAddrPort("[::]:2022"), netip.MustParseAddrPort("203.0.113.9:443"),
	},
}

// forbiddenAddresses and a word of why. None is IPv4 as IPv6: that is undone before.
var forbiddenAddresses = map[string]string{
	"127.0.0.1:22":                   "loopback",
	"127.255.255.254:22":             "loopback",
	"[::1]:22":                       "loopback",
	"0.0.0.0:22":                     "no address",
	"0.1.2.3:22":                     "no address",
	"[::]:22":                        "no address",
	"169.254.0.1:22":                 "link-local",
	"169.254.169.254:80":             "metadata",
	"[fe80::1]:22":                   "link-local",
	"[fe80::1%eth0]:22":              "link-local",
	"[febf::1]:22":                   "link-local",
	"224.0.0.1:22":                   "multicast",
	"239.255.255.255:22":             "multicast",
	"[ff02::1]:22":                   "multicast",
	"255.255.255.255:22":             "reserved",
	"240.0.0.1:22":                   "reserved",
	"[fd00:ec2::254]:80":             "metadata",
	"[fd20:ce::254]:80":              "metadata",
	"100.100.100.200:80":             "metadata",
	"[::7f00:1]:22":                  "127.0.0.1",       // IPv4-compatible
	"[::a9fe:a9fe]:80":               "169.254.169.254", // the same
	"[::ffff:0:7f00:1]:22":           "127.0.0.1",       // IPv4-translated
	"[2002:7f00:1::]:22":             "127.0.0.1",       // 6to4
	"[2002:a9fe:a9fe::1]:80":         "169.254.169.254", // 6to4
	"[64:ff9b::127.0.0.1]:22":        "127.0.0.1",       // NAT64
	"[64:ff9b::a9fe:a9fe]:80":        "169.254.169.254", // NAT64
	"[64:ff9b:1::7f00:1]:22":         "translator",      // NAT64, local prefix
	"[64:ff9b:1:7f00:0:100::]:22":    "translator",
	"[2001::80ff:fffe]:22":           "127.0.0.1", // Teredo client
	"[2001:0:7f00:1::3f57:fefe]:22":  "127.0.0.1", // Teredo server
	"[2001:db8::5efe:7f00:1]:22":     "127.0.0.1", // ISATAP
	"[2001:db8::200:5efe:a9fe:1]:22": "169.254.0.1",
	"[64:ff9b::ffff:ffff]:22":        "255.255.255.255",
	"198.51.100.4:2022":              "listener",
	"[2001:db8:1::4]:2022":           "listener",
	"203.0.113.9:443":                "listener",
	"198.51.100.4:443":               "listener",
	"[64:ff9b::198.51.100.4]:2022":   "listener",
	"[2002:c633:6404::1]:443":        "listener",
}

// Guards against a bastion that leads into the machine it runs on, to credentials
// that a cloud gives to whoever asks from it, or to no single host.
func TestForbiddenAddressesAreNoTargets(t *testing.T) {
	// Whatever contains them without naming them opens nothing.
	wide := []policy.JumpTarget{
		onNet("0.0.0.0/0", 0), onNet("::/0", 0), onNet("126.0.0.0/7", 0), onNet("169.0.0.0/8", 0), onNet("fe00::/7", 0), onNet("::/8", 0), onNet("fd00::/8", 0),
		onNet("2000::/3", 0), onNet("2002::/16", 0), onNet("2001::/32", 0), onNet("64:ff9b::/96", 0), onNet("64:ff9b::/32", 0), onNet("::/96", 0), onNet("::/127", 0),
		onNet("100.64.0.0/10", 0), onNet("203.0.113.0/24", 443), onNet("198.51.100.0/24", 0), onNet("198.51.100.4/32", 0), onNet("203.0.113.9/32", 0),
		onHost("*", 0), onHost("localhost", 0), onBuilder("here"),
	}
	for text, word := range forbiddenAddresses {
		at := netip.MustParseAddrPort(text)
		err := here.check(at, wide)
		if no := (*JumpRefusal)(nil); !errors.As(err, &no) || !strings.Contains(no.Reason, word) {
			t.Errorf("%s: %v, want it refused as %s", text, err, word)
		}
	}
}

// Guards against an admin who names an address and does not get it.
func TestNamingAForbiddenAddressOpensIt(t *testing.T) {
	for text := range forbiddenAddresses {
		at := netip.MustParseAddrPort(text)
		addr := at.Addr().WithZone("")
		single := policy.JumpTarget{Net: netip.PrefixFrom(addr, addr.BitLen()), Port: at.Port()}
		if err := here.check(at, []policy.JumpTarget{single}); err != nil {
			t.Errorf("%s: %v although exactly this is listed", text, err)
		}
		single.Port++
		if err := here.check(at, []policy.JumpTarget{single}); err == nil {
			t.Errorf("%s is open because another port is listed", text)
		}
	}
	for net, at := range map[string]string{
		"127.0.0.0/8": "127.0.0.1:22", "127.0.0.0/30": "127.0.0.2:22", "169.254.0.0/16": "169.254.7.7:22", "fe80::/10": "[fe80::2]:22",
		"64:ff9b:1::/48": "[64:ff9b:1::8]:22",
	} {
		if err := here.check(netip.MustParseAddrPort(at), []policy.JumpTarget{onNet(net, 0)}); err != nil {
			t.Errorf("%s: %v although %s is listed", at, err, net)
		}
	}
	// A network of loopback addresses names no listener of the proxy, and one of
	// link-local addresses no metadata service.
	for at, list := range map[string]policy.JumpTarget{
		"127.0.0.1:2022": onNet("127.0.0.1/32", 0), "127.0.0.2:2022": onNet("127.0.0.0/8", 2022), "169.254.169.254:80": onNet("169.254.0.0/16", 80),
		"[64:ff9b::c633:6404]:2022": onNet("64:ff9b::c633:6404/128", 0),
	} {
		if err := here.check(netip.MustParseAddrPort(at), []policy.JumpTarget{list}); err == nil {
			t.Errorf("%s is open because %+v is listed", at, list)
		}
	}
}

// Guards against ordinary hosts that are refused.
func TestOrdinaryAddressesAreTargets(t *testing.T) {
	for _, text := range []string{
		"192.0.2.7:22", "10.0.0.1:22", "172.16.0.1:22", "192.168.1.1:22", "100.64.0.1:22", "[2001:db8::7]:22", "[fd12:3456::1]:22",
		"198.51.100.4:22", "[2001:db8:1::4]:22", "203.0.113.9:22", // this machine, but not the proxy
		"198.51.100.5:2022", "[64:ff9b::c000:207]:22", "[2002:c000:207::1]:22",
	} {
		if err := here.check(netip.MustParseAddrPort(text), nil); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Guards against a look at the interfaces that sees none of them.
func TestOwnAddressesAreKnown(t *testing.T) {
	doors := []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:2022")}
	m, err := ownMachine(doors)
	if err != nil || len(m.addrs) == 0 {
		t.Fatalf("own addresses: %v, %v", m.addrs, err)
	}
	for _, addr := range m.addrs {
		if addr.Zone() != "" || addr.Is4In6() {
			t.Errorf("own address %s", addr)
		}
		if !m.isDoor(netip.AddrPortFrom(addr, 2022)) || m.isDoor(netip.AddrPortFrom(addr, 2023)) {
			t.Errorf("%s port 2022 is a door: %t, and port 2023: %t", addr, m.isDoor(netip.AddrPortFrom(addr, 2022)), m.isDoor(netip.AddrPortFrom(addr, 2023)))
		}
	}
}
