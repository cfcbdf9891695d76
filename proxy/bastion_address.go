package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"nixbastion/policy"
)

// ban keeps an address from being a target unless the admin's list names it.
type ban struct {
	what string // the address is
	// within is the smallest network that has to be named: 0.0.0.0/0 names no
	// loopback address, 127.0.0.0/8 names all of them.
	within netip.Prefix
	// withPort says that the port has to be named as well.
	withPort bool
}

// banned are addresses that lead to this machine, to what it alone should ask, or to
// no single host.
var banned = slices.Concat(
	// AWS and most others, AWS, Google, Oracle, Alibaba, Azure: they give a
	// machine's credentials to whoever asks from it.
	bansOn("a cloud's metadata service", "169.254.169.254/32", "fd00:ec2::254/128", "fd20:ce::254/128",
		"fd00:c1::a9fe:a9fe/128", "100.100.100.200/32", "168.63.129.16/32"),
	bansOn("no address of a host", "0.0.0.0/8", "::/128"), // Linux takes them for loopback
	bansOn("loopback", "127.0.0.0/8", "::1/128"),
	bansOn("link-local", "169.254.0.0/16", "fe80::/10"),
	bansOn("multicast", "224.0.0.0/4", "ff00::/8"),
	bansOn("reserved", "240.0.0.0/4"),
	// RFC 8215: where IPv4 stands in it is local knowledge.
	bansOn("an address of a translator's own network", "64:ff9b:1::/48"),
)

func bansOn(what string, nets ...string) []ban {
	var all []ban
	for _, net := range nets {
		all = append(all, ban{what: what, within: netip.MustParsePrefix(net)})
	}
	return all
}

// embeddings are networks of IPv6 in which an address of IPv4 stands, from a byte
// on, and whoever translates sends the packet there.
var embeddings = []struct {
	net netip.Prefix
	at  int
	not byte // each byte is xored with it
}{
	{netip.MustParsePrefix("::/96"), 12, 0},           // IPv4-compatible
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12, 0}, // IPv4-translated, RFC 2765
	{netip.MustParsePrefix("64:ff9b::/96"), 12, 0},    // NAT64
	{netip.MustParsePrefix("2002::/16"), 2, 0},        // 6to4
	{netip.MustParsePrefix("2001::/32"), 12, 0xff},    // Teredo, the client
	{netip.MustParsePrefix("2001::/32"), 4, 0},        // Teredo, the server
}

// embedded are the addresses of IPv4 that stand in one of IPv6.
func embedded(addr netip.Addr) []netip.Addr {
	var found []netip.Addr
	bytes := addr.As16()
	for _, e := range embeddings {
		if e.net.Contains(addr) {
			found = append(found, ipv4At(bytes, e.at, e.not))
		}
	}
	if isatap := [4]byte(bytes[8:12]); addr.Is6() && (isatap == [4]byte{0, 0, 0x5e, 0xfe} || isatap == [4]byte{2, 0, 0x5e, 0xfe}) {
		found = append(found, ipv4At(bytes, 12, 0))
	}
	return found
}

func ipv4At(bytes [16]byte, at int, not byte) netip.Addr {
	four := [4]byte(bytes[at : at+4])
	for i := range four {
		four[i] ^= not
	}
	return netip.AddrFrom4(four)
}

// machine is what a jump must not lead back to.
type machine struct {
	addrs     []netip.Addr     // of all interfaces
	listening []netip.AddrPort // the doors of the proxy itself
}

// ownMachine looks at this machine's interfaces.
func ownMachine(listening []netip.AddrPort) (machine, error) {
	m := machine{listening: listening}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return machine{}, fmt.Errorf("look at interfaces: %w", err)
	}
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			m.addrs = append(m.addrs, prefix.Addr().Unmap().WithZone(""))
		}
	}
	return m, nil
}

// isDoor reports whether the proxy itself may answer there. Which of its
// addresses a listener has is not looked at: forwarding rules may lead from any to
// it.
func (m machine) isDoor(at netip.AddrPort) bool {
	for _, door := range m.listening {
		if door.Port() != at.Port() {
			continue
		}
		if at.Addr() == door.Addr() || at.Addr().IsLoopback() || at.Addr().IsUnspecified() {
			return true
		}
		for _, own := range m.addrs {
			if at.Addr() == own {
				return true
			}
		}
	}
	return false
}

// bansOf are all reasons against an address, which is none of IPv4 as IPv6.
func (m machine) bansOf(at netip.AddrPort) []ban {
	addr := at.Addr().WithZone("")
	bans := m.plainBansOf(netip.AddrPortFrom(addr, at.Port()))
	for _, inner := range embedded(addr) {
		for _, b := range m.plainBansOf(netip.AddrPortFrom(inner, at.Port())) {
			bans = append(bans, ban{
				what:   fmt.Sprintf("a way to %s, which is %s", inner, b.what),
				within: netip.PrefixFrom(addr, addr.BitLen()), withPort: b.withPort,
			})
		}
	}
	return bans
}

func (m machine) plainBansOf(at netip.AddrPort) []ban {
	var bans []ban
	for _, b := range banned {
		if b.within.Contains(at.Addr()) {
			bans = append(bans, b)
		}
	}
	if m.isDoor(at) {
		bans = append(bans, ban{what: "a listener of the proxy itself", within: netip.PrefixFrom(at.Addr(), at.Addr().BitLen()), withPort: true})
	}
	return bans
}

// liftedBy reports whether an entry of the list names a banned address.
func (b ban) liftedBy(t policy.JumpTarget, at netip.AddrPort) bool {
	if !t.Net.IsValid() || !t.Net.Contains(at.Addr().WithZone("")) {
		return false
	}
	if t.Net.Bits() < b.within.Bits() || !b.within.Contains(t.Net.Addr()) {
		return false
	}
	return t.Port == at.Port() || t.Port == 0 && !b.withPort
}

// check returns a [JumpRefusal] for an address that is banned and not listed.
func (m machine) check(at netip.AddrPort, listed []policy.JumpTarget) error {
	for _, b := range m.bansOf(at) {
		lifted := false
		for _, t := range listed {
			lifted = lifted || b.liftedBy(t, at)
		}
		if !lifted {
			return refuseJump("%s is %s: only an entry of jump: with exactly this address opens it", at, b.what)
		}
	}
	return nil
}
