package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"nixbastion/policy"
)

// JumpRefusal is the error of a jump that is not allowed. The reason is for the
// log: the client is told the same whatever it is, so that it cannot ask the
// proxy what exists behind it.
type JumpRefusal struct{ Reason string }

func (r *JumpRefusal) Error() string { return "jump refused: " + r.Reason }

func refuseJump(format string, args ...any) error {
	return &JumpRefusal{fmt.Sprintf(format, args...)}
}

// goal is where a jump leads, once the policy allows it.
type goal struct {
	// Host is a name to resolve; "" if addr is set.
	host string
	addr netip.Addr
	port uint16
	// Listed may lift the ban of an address: what the admin named.
	listed []policy.JumpTarget
}

// goalOf returns what a key may reach under the name that its client gives.
// Nothing is reached that is not in the principal's list, and what a key's own
// line permits narrows that. The error is a [JumpRefusal].
//
// A builder is reached by its own name only where the list has that name; then
// its address and port are those of the policy, whatever domain it is in. No
// pattern and no network opens it: it leads nowhere but where the admin wrote.
func goalOf(pol *policy.Policy, access *policy.Access, host string, port uint32) (goal, error) {
	list := access.Principal.Jump
	switch {
	case access.NoJump:
		return goal{}, refuseJump("the key is not for jumps")
	case len(list) == 0:
		return goal{}, refuseJump("nothing is listed under jump: of principal %s", access.Principal.Name)
	}
	if b := listedBuilder(pol, list, host); b != nil {
		if g, ok := goalOnBuilder(b, list, port); ok {
			return g, permitBuilder(access, b, g, port)
		}
	}
	t, err := parseTarget(host, port)
	switch {
	case err != nil:
		return goal{}, refuseJump("%v", err)
	case !listedTarget(list, t):
		return goal{}, refuseJump("not listed under jump: of principal %s", access.Principal.Name)
	case access.PermitOpen != nil && !listedTarget(access.PermitOpen, t):
		return goal{}, errNotPermitted
	}
	return goal{host: t.name, addr: t.addr, port: t.port, listed: list}, nil
}

var errNotPermitted = refuseJump("not among what the key's own line permits to open")

// listedBuilder returns the builder that a client names, if the list does too.
// Clients may write names of hosts in any case: the exact one wins.
func listedBuilder(pol *policy.Policy, list []policy.JumpTarget, host string) *policy.Builder {
	var found *policy.Builder
	for i := range pol.Builders {
		b := &pol.Builders[i]
		if strings.EqualFold(b.Name, host) && isListed(list, b) && (found == nil || b.Name == host) {
			found = b
		}
	}
	return found
}

func isListed(list []policy.JumpTarget, b *policy.Builder) bool {
	for _, t := range list {
		if t.Builder == b.Name {
			return true
		}
	}
	return false
}

// defaultSSHPort is what clients ask for when they were told no port.
const defaultSSHPort = 22

// goalOnBuilder returns where a builder is, if the client's port leads there: its
// own port, for which 22 stands too, or one that the list names.
func goalOnBuilder(b *policy.Builder, list []policy.JumpTarget, port uint32) (goal, bool) {
	host, own, err := builderEndpoint(b)
	if err != nil {
		return goal{}, false
	}
	g := goal{host: host, listed: list}
	if addr, err := netip.ParseAddr(host); err == nil {
		g.host, g.addr = "", addr.Unmap()
	}
	for _, t := range list {
		if t.Builder != b.Name {
			continue
		}
		switch leads := t.Port; {
		case uint32(leads) == port && port != 0:
			g.port = leads
		case (leads == 0 || leads == own) && (port == uint32(own) || port == defaultSSHPort):
			g.port = own
		default:
			continue
		}
		if g.addr.IsValid() { // the admin wrote it as the builder's: that names it
			g.listed = append(list[:len(list):len(list)], exactly(g.addr, g.port))
		}
		return g, true
	}
	return goal{}, false
}

var errNoEndpoint = errors.New("this machine's own daemon is no host")

func builderEndpoint(b *policy.Builder) (host string, port uint16, err error) {
	if b.Socket != "" {
		return "", 0, errNoEndpoint
	}
	host, text, err := net.SplitHostPort(b.Address)
	if err != nil {
		return "", 0, err
	}
	number, err := strconv.ParseUint(text, 10, 16)
	return host, uint16(number), err
}

func exactly(addr netip.Addr, port uint16) policy.JumpTarget {
	addr = addr.WithZone("")
	return policy.JumpTarget{Net: netip.PrefixFrom(addr, addr.BitLen()), Port: port}
}

// permitBuilder looks whether the key's own line leaves a builder open. It may
// name it as a host, with the port that clients ask for or the one it has.
func permitBuilder(access *policy.Access, b *policy.Builder, g goal, asked uint32) error {
	if access.PermitOpen == nil {
		return nil
	}
	name := strings.ToLower(b.Name)
	for _, t := range access.PermitOpen {
		samePort := t.Port == 0 || t.Port == g.port || uint32(t.Port) == asked
		if samePort && (t.Builder == b.Name || t.Host != "" && matchesHost(t.Host, name)) {
			return nil
		}
	}
	return errNotPermitted
}

func listedTarget(list []policy.JumpTarget, t target) bool {
	for _, l := range list {
		if l.Port != 0 && l.Port != t.port {
			continue
		}
		if t.addr.IsValid() && l.Net.IsValid() && l.Net.Contains(t.addr) || t.name != "" && l.Host != "" && matchesHost(l.Host, t.name) {
			return true
		}
	}
	return false
}

// matchesHost reports whether a name is that of a pattern, in which a label "*"
// stands for exactly one label. Both are in lower case.
func matchesHost(pattern, name string) bool {
	patterns, labels := strings.Split(pattern, "."), strings.Split(name, ".")
	if len(patterns) != len(labels) {
		return false
	}
	for i, p := range patterns {
		if p != "*" && p != labels[i] || labels[i] == "" {
			return false
		}
	}
	return true
}
