package policy

import (
	"net"
	"net/netip"

	"gopkg.in/yaml.v3"
)

// Metrics is where the proxy answers, over HTTP and without accounts, how it does. The
// zero value answers nobody.
type Metrics struct {
	// Listen is the address (host:port); empty for none. Without AllowRemote it is one
	// of this machine's own that no other machine reaches.
	Listen string
	// AllowRemote lets other machines ask.
	AllowRemote bool
}

func (d *decoder) metrics(n *yaml.Node) {
	m := &d.pol.Metrics
	values := d.mapping(n, "metrics.",
		setting{"listen", func(n *yaml.Node) { m.Listen, _ = d.checkedText(n, checkListen) }},
		setting{"allow_remote", func(n *yaml.Node) { m.AllowRemote, _ = d.truth(n) }},
	)
	d.lacks(n, values, "metrics", [2]string{"listen", `name an address: listen: "127.0.0.1:9822"`})
	if m.Listen != "" && !m.AllowRemote && !isLoopback(m.Listen) {
		d.mistake(values["listen"], `write 127.0.0.1 or [::1] before the port, or let others ask with allow_remote: true; a firewall should then say who`,
			"other machines can reach %s, and whoever does is answered", quote(m.Listen))
	}
}

// isLoopback reports whether only this machine reaches an address. A name can mean
// anything, but for the one that RFC 6761 reserves.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// metricsText says where the proxy tells how it does, and whom.
func (t *description) metricsText(m Metrics) {
	switch {
	case m.Listen == "":
		t.line(0, "Metrics and health are not served over HTTP.")
	case isLoopback(m.Listen):
		t.line(0, "Metrics and health are served over HTTP on %s, to everybody on this machine.", m.Listen)
	default:
		t.line(0, "Metrics and health are served over HTTP on %s, to whoever reaches it.", m.Listen)
	}
}
