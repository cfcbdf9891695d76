package policy

import (
	"net/netip"
	"regexp"
	"strings"
)

// fromList is the value of from= of an authorized_keys line: where a key may come
// from. Patterns are those of sshd for addresses: exact, with * and ?, as
// CIDR, and negated with "!". Host names are refused: whoever answers for the
// name service would decide who gets in.
type fromList []fromPattern

type fromPattern struct {
	negated bool
	prefix  netip.Prefix // valid for addresses and CIDR
	glob    string       // else
}

var addressGlob = regexp.MustCompile(`^[0-9a-fA-F:.*?]+$`)

const fromHint = `write addresses: from="192.0.2.7,10.0.0.0/8,2001:db8::/32,192.168.1.*,!10.0.0.1"`

func parseFrom(text string) (fromList, error) {
	var all fromList
	positive := false
	for pattern := range strings.SplitSeq(text, ",") {
		p, err := parseFromPattern(strings.TrimSpace(pattern))
		if err != nil {
			return nil, err
		}
		positive = positive || !p.negated
		all = append(all, p)
	}
	if !positive {
		return nil, refuse(fromHint, "from=%s allows no address at all", quote(text))
	}
	return all, nil
}

func parseFromPattern(text string) (fromPattern, error) {
	pattern, negated := strings.CutPrefix(text, "!")
	p := fromPattern{negated: negated}
	switch addr, err := netip.ParseAddr(pattern); {
	case err == nil && addr.Zone() == "":
		addr = addr.Unmap()
		p.prefix = netip.PrefixFrom(addr, addr.BitLen())
	case strings.Contains(pattern, "/"):
		prefix, err := netip.ParsePrefix(pattern)
		if err != nil || prefix.Addr().Is4In6() {
			return p, refuse(fromHint, "from=: %s is not a network", quote(pattern))
		}
		if prefix != prefix.Masked() {
			return p, refuse("write "+prefix.Masked().String()+", or the one address without a slash", "from=: %s has bits beyond its mask", quote(pattern))
		}
		p.prefix = prefix
	case addressGlob.MatchString(pattern):
		p.glob = strings.ToLower(pattern)
	default:
		return p, refuse(fromHint, "from=: %s is neither an address nor a pattern of addresses, and names are not looked up", quote(pattern))
	}
	return p, nil
}

// allows reports whether a key may come from an address. As in sshd a negated
// pattern that matches forbids, whatever else matches.
func (l fromList) allows(addr netip.Addr) bool {
	if l == nil {
		return true
	}
	addr = addr.Unmap().WithZone("")
	allowed := false
	for _, p := range l {
		if !p.matches(addr) {
			continue
		}
		if p.negated {
			return false
		}
		allowed = true
	}
	return allowed
}

func (l fromList) String() string {
	all := make([]string, len(l))
	for i, p := range l {
		all[i] = p.String()
	}
	return strings.Join(all, ",")
}

func (p fromPattern) matches(addr netip.Addr) bool {
	if p.prefix.IsValid() {
		return p.prefix.Contains(addr)
	}
	return addr.IsValid() && glob(p.glob, addr.String())
}

func (p fromPattern) String() string {
	text := p.glob
	if p.prefix.IsValid() {
		text = p.prefix.String()
		if p.prefix.IsSingleIP() {
			text = p.prefix.Addr().String()
		}
	}
	if p.negated {
		return "!" + text
	}
	return text
}

// glob reports whether text is what pattern says: * is any text, ? any letter.
// It takes time in proportion to the product of the lengths, not more.
func glob(pattern, text string) bool {
	star, mark := -1, 0
	p, t := 0, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
