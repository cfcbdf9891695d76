package policy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

const jumpHint = `write the name of a builder, or host:port, as "git.example.org:22", "*.example.org:22", "192.0.2.0/24:22" or "[2001:db8::/32]:22"`

// jumpReference is where a principal names a builder as a target of its own.
type jumpReference struct {
	builder string
	at      *yaml.Node
}

// jump reads which targets a principal may reach through the proxy.
func (d *decoder) jump(n *yaml.Node) []JumpTarget {
	var all []JumpTarget
	d.list(n, func(item *yaml.Node) {
		text, ok := d.text(item)
		if !ok {
			return
		}
		target, err := parseJump(text)
		switch {
		case err != nil:
			d.mistake(item, hintOf(err), "%v", err)
			return
		case slices.Contains(all, target):
			d.mistake(item, "remove one of them", "%s stands in this list for the second time", target)
			return
		case target.Builder != "":
			d.jumps = append(d.jumps, jumpReference{target.Builder, item})
		}
		all = append(all, target)
	})
	return all
}

// parseJump reads one target. Without a port it is the name of a builder.
func parseJump(text string) (JumpTarget, error) {
	host, port, hasPort := cutPort(text)
	if !hasPort {
		if err := checkName(text); err != nil {
			return JumpTarget{}, refuse(jumpHint, "%s is neither the name of a builder nor host:port", quote(text))
		}
		return JumpTarget{Builder: text}, nil
	}
	if text[0] == '[' && !strings.Contains(host, ":") {
		return JumpTarget{}, refuse(jumpHint, "%s has brackets, which are for addresses of IPv6", quote(text))
	}
	target, err := parseJumpHost(host)
	if err != nil {
		return JumpTarget{}, err
	}
	if target.Port, err = parseJumpPort(port); err != nil {
		return JumpTarget{}, err
	}
	if target.Port == 0 && target.isEverywhere() {
		return JumpTarget{}, refuse("say which hosts or which port: "+jumpHint, "%s would open the whole network behind the proxy", quote(text))
	}
	return target, nil
}

// cutPort takes the port off, which stands behind the last colon. The host is
// without brackets; an address of IPv6 must have some.
func cutPort(text string) (host, port string, ok bool) {
	if rest, bracketed := strings.CutPrefix(text, "["); bracketed {
		return strings.Cut(rest, "]:")
	}
	i := strings.LastIndexByte(text, ':')
	if i < 0 || strings.IndexByte(text, ':') != i {
		return "", "", false
	}
	return text[:i], text[i+1:], true
}

// parseJumpPort returns 0 for the port "*".
func parseJumpPort(port string) (uint16, error) {
	if port == "*" {
		return 0, nil
	}
	if err := checkPort(port); err != nil {
		return 0, refuse(`a port is a number from 1 to 65535, or "*" for every port`, "%s is not a port", quote(port))
	}
	number, err := strconv.ParseUint(port, 10, 16)
	return uint16(number), err
}

func parseJumpHost(host string) (JumpTarget, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return JumpTarget{}, refuse("write the address without %", "%s has a zone, which is for this machine alone", quote(host))
		}
		return jumpNet(host, netip.PrefixFrom(addr, addr.BitLen()))
	}
	if strings.Contains(host, "/") {
		prefix, err := netip.ParsePrefix(host)
		if err != nil {
			return JumpTarget{}, refuse(jumpHint, "%s is not a network", quote(host))
		}
		return jumpNet(host, prefix)
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if err := checkJumpName(name); err != nil {
		return JumpTarget{}, err
	}
	return JumpTarget{Host: name}, nil
}

// jumpNet refuses what has two meanings, or one that nobody expects.
func jumpNet(text string, prefix netip.Prefix) (JumpTarget, error) {
	switch {
	case prefix.Addr().Is4In6():
		return JumpTarget{}, refuse("write the address of IPv4: "+prefix.Addr().Unmap().String(), "%s is an address of IPv4 in the clothes of IPv6", quote(text))
	case prefix != prefix.Masked():
		return JumpTarget{}, refuse("write "+prefix.Masked().String()+", or the one address without a slash", "%s has bits beyond its mask", quote(text))
	}
	return JumpTarget{Net: prefix}, nil
}

// checkJumpName checks the pattern of a host's name. What resolvers read as a
// number is refused: 2130706433 is 127.0.0.1 to some of them.
func checkJumpName(name string) error {
	labels := strings.Split(name, ".")
	for _, label := range labels {
		switch {
		case label == "*":
		case strings.Contains(label, "*"):
			return refuse(`"*" stands for exactly one part between dots, as in "*.example.org:22"`, "%s has a %q inside a part", quote(name), "*")
		case !hostLabel(label):
			return refuse(jumpHint, "%s is not the name of a host", quote(name))
		}
	}
	if len(name) > 253 || looksNumeric(labels[len(labels)-1]) {
		return refuse(jumpHint, "%s is neither the name of a host nor an address", quote(name))
	}
	return nil
}

func hostLabel(label string) bool {
	outside := func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && r != '-' && r != '_'
	}
	return label != "" && len(label) <= 63 && !strings.ContainsFunc(label, outside) && label[0] != '-' && label[len(label)-1] != '-'
}

// looksNumeric says that resolvers may read a last label as part of an address.
func looksNumeric(label string) bool {
	digits := "0123456789"
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		label, digits = hex, digits+"abcdef"
	}
	return strings.Trim(label, digits) == ""
}

// isEverywhere says that the pattern leaves the host open.
func (t JumpTarget) isEverywhere() bool {
	if t.Net.IsValid() {
		return t.Net.Bits() == 0
	}
	return t.Host != "" && strings.Trim(t.Host, "*.") == ""
}

// String is what the policy file has for the target.
func (t JumpTarget) String() string {
	port := "*"
	if t.Port != 0 {
		port = strconv.Itoa(int(t.Port))
	}
	switch {
	case t.Builder != "":
		return t.Builder
	case t.Host != "":
		return t.Host + ":" + port
	}
	text := t.Net.String()
	if t.Net.IsSingleIP() {
		text = t.Net.Addr().String()
	}
	if t.Net.Addr().Is6() {
		text = "[" + text + "]"
	}
	return text + ":" + port
}

// jumpBuilders looks whether the builders exist that principals may jump to, and
// whether there is anything to jump to.
func (d *decoder) jumpBuilders() {
	for _, r := range d.jumps {
		b := d.pol.BuilderNamed(r.builder)
		switch {
		case b == nil:
			d.mistake(r.at, "builders are: "+strings.Join(d.pol.builderNames(), ", ")+"; any other host needs its port, as "+quote(r.builder+":22"),
				"builder %s does not exist", quote(r.builder))
		case b.Socket != "":
			d.mistake(r.at, "remove it, or name a host and port", "builder %s is this machine's own daemon: there is no host to jump to", quote(r.builder))
		}
	}
}

// BuilderNamed returns the builder of a name, nil if there is none.
func (p *Policy) BuilderNamed(name string) *Builder {
	for i := range p.Builders {
		if p.Builders[i].Name == name {
			return &p.Builders[i]
		}
	}
	return nil
}

func (p *Policy) builderNames() []string {
	var all []string
	for _, b := range p.Builders {
		all = append(all, b.Name)
	}
	return all
}
