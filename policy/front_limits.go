package policy

import (
	"net/netip"
	"regexp"
	"strconv"
	"time"

	"gopkg.in/yaml.v3"
)

// FrontLimits bound what clients can take from the SSH front. The names are those
// of sshd_config where it has such a limit. Each is above zero.
type FrontLimits struct {
	// LoginGraceTime is the time from accept to a verified key.
	LoginGraceTime time.Duration
	// MaxAuthTries is the number of failed attempts per connection, an offer of an
	// unknown key being one.
	MaxAuthTries int
	// MaxStartups bounds connections that have not logged in.
	MaxStartups MaxStartups
	// PerSourceMaxStartups is how many slow logins one IPv4 address or /64 of IPv6 may
	// have.
	PerSourceMaxStartups int
	// MaxConnections is the number of open connections; further ones wait.
	MaxConnections int
	// MaxSessions is the number of sessions of one connection.
	MaxSessions int
	// ClientAliveInterval is the pause after which a silent client is asked for a sign
	// of life, and ClientAliveCountMax how many such pauses may follow.
	ClientAliveInterval time.Duration
	ClientAliveCountMax int
	// UnusedConnectionTimeout is how long a connection may live without a session.
	UnusedConnectionTimeout time.Duration
	// WriteTimeout is how long a client may read nothing of what is sent to it.
	WriteTimeout time.Duration
	// SessionMemory is what sessions of all clients may take together, in bytes; 0: a
	// part of the memory limit of the process.
	SessionMemory int64
}

// MaxStartups is OpenSSH's start:rate:full. From Start connections that have not logged
// in, a newcomer costs somebody his place with a chance of Rate percent, which rises to
// certainty at Full, the most there can be.
type MaxStartups struct{ Start, Rate, Full int }

// String is the notation of sshd_config.
func (m MaxStartups) String() string {
	return strconv.Itoa(m.Start) + ":" + strconv.Itoa(m.Rate) + ":" + strconv.Itoa(m.Full)
}

// Penalties keep sources out for a while that fail to log in, as PerSourcePenalties of
// OpenSSH. A source is an IPv4 address or a /64 of IPv6. They add up, and count from
// Min on.
type Penalties struct {
	// Off is the word off: nobody is kept out.
	Off bool
	// AuthFail is for keys that were refused, NoAuth for who did not try any,
	// GraceExceeded for who did not come to an end within LoginGraceTime, and Crash for
	// who brought the front's code down.
	AuthFail, NoAuth, GraceExceeded, Crash time.Duration
	// Min is the sum from which on the source is kept out, Max the longest.
	Min, Max time.Duration
	// Exempt are networks that are never kept out.
	Exempt []netip.Prefix
}

// Rate is how often a principal may do something in a minute, on average and at once.
// The zero value lets nothing begin; no loaded policy has it.
type Rate int

const (
	leastFrontTime = time.Second
	maxFrontTime   = 24 * time.Hour
	maxPenalty     = 30 * 24 * time.Hour
	maxAuthTries   = 128
	maxFrontCount  = 1_000_000
	// leastSessionMemory lets each of a few clients have a session and its window.
	leastSessionMemory = 16 << 20

	// defaultConnectionRate and defaultBuildRate are far from what a client of Nix
	// does, which opens a connection for each build, and below what would fill a
	// processor with logins. They are per minute.
	defaultConnectionRate = 6000
	defaultBuildRate      = 6000
	maxRate               = 1_000_000
)

func defaultFrontLimits() FrontLimits {
	return FrontLimits{
		LoginGraceTime: 20 * time.Second, MaxAuthTries: 20,
		MaxStartups: MaxStartups{Start: 10, Rate: 30, Full: 100}, PerSourceMaxStartups: 10,
		MaxConnections: 10_000, MaxSessions: 64,
		ClientAliveInterval: 15 * time.Second, ClientAliveCountMax: 3,
		UnusedConnectionTimeout: 10 * time.Minute, WriteTimeout: 2 * time.Minute,
	}
}

// DefaultPenalties are those of a policy that says nothing of them.
func DefaultPenalties() Penalties {
	return Penalties{
		AuthFail: 5 * time.Second, NoAuth: time.Second, GraceExceeded: 10 * time.Second, Crash: 90 * time.Second,
		Min: 15 * time.Second, Max: 10 * time.Minute,
	}
}

// frontLimits are the settings of ssh that bound what clients can take.
func (d *decoder) frontLimits() []setting {
	l := &d.pol.SSH.Limits
	span := func(to *time.Duration) func(*yaml.Node) {
		return func(n *yaml.Node) { d.durationInto(to, n, leastFrontTime, maxFrontTime) }
	}
	return []setting{
		{"login_grace_time", span(&l.LoginGraceTime)},
		{"max_auth_tries", func(n *yaml.Node) { d.countInto(&l.MaxAuthTries, n, maxAuthTries) }},
		{"max_startups", func(n *yaml.Node) { d.maxStartups(n, &l.MaxStartups) }},
		{"per_source_max_startups", func(n *yaml.Node) { d.countInto(&l.PerSourceMaxStartups, n, maxFrontCount) }},
		{"per_source_penalties", d.penalties},
		{"max_connections", func(n *yaml.Node) { d.countInto(&l.MaxConnections, n, maxFrontCount) }},
		{"max_sessions", func(n *yaml.Node) { d.countInto(&l.MaxSessions, n, maxFrontCount) }},
		{"client_alive_interval", span(&l.ClientAliveInterval)},
		{"client_alive_count_max", func(n *yaml.Node) { d.countInto(&l.ClientAliveCountMax, n, maxFrontCount) }},
		{"unused_connection_timeout", span(&l.UnusedConnectionTimeout)},
		{"write_timeout", span(&l.WriteTimeout)},
		{"session_memory", func(n *yaml.Node) { d.sizeInto(&l.SessionMemory, n, leastSessionMemory) }},
		{"proxy_protocol", func(n *yaml.Node) { d.pol.SSH.ProxyProtocol = d.networks(n) }},
	}
}

// countInto reads a whole number from 1 up to most.
func (d *decoder) countInto(to *int, n *yaml.Node, most int) {
	if value, ok := d.count(n, 1, most); ok {
		*to = value
	}
}

func (d *decoder) rateInto(to *Rate, n *yaml.Node) {
	if value, ok := d.count(n, 1, maxRate); ok {
		*to = Rate(value)
	}
}

var startupsGrammar = regexp.MustCompile(`^([1-9][0-9]{0,6}):([1-9][0-9]{0,2}):([1-9][0-9]{0,6})$`)

const startupsHint = `write start:rate:full as in sshd_config, with a rate from 1 to 100: "10:30:100"`

func (d *decoder) maxStartups(n *yaml.Node, to *MaxStartups) {
	text, ok := d.text(n)
	if !ok {
		return
	}
	m := startupsGrammar.FindStringSubmatch(text)
	if m == nil {
		d.mistake(n, startupsHint, "%s is not start:rate:full", quote(text))
		return
	}
	var parts [3]int
	for i := range parts {
		parts[i], _ = strconv.Atoi(m[i+1]) // the grammar holds
	}
	s := MaxStartups{parts[0], parts[1], parts[2]}
	if s.Rate > 100 || s.Start > s.Full || s.Full > maxFrontCount {
		d.mistake(n, startupsHint, "%s: the rate is a percentage, and start is not above full, which is at most %d", quote(text), maxFrontCount)
		return
	}
	*to = s
}

func (d *decoder) penalties(n *yaml.Node) {
	p := &d.pol.SSH.Penalties
	if n.Kind == yaml.ScalarNode {
		p.Off = d.off(n, "penalties", "write {authfail: 5s, min: 15s, max: 10m}, or off")
		return
	}
	span := func(to *time.Duration, least time.Duration) func(*yaml.Node) {
		return func(n *yaml.Node) { d.durationInto(to, n, least, maxPenalty) }
	}
	values := d.mapping(n, "ssh.per_source_penalties.",
		setting{"authfail", span(&p.AuthFail, 0)},
		setting{"noauth", span(&p.NoAuth, 0)},
		setting{"grace_exceeded", span(&p.GraceExceeded, 0)},
		setting{"crash", span(&p.Crash, 0)},
		setting{"min", span(&p.Min, time.Second)},
		setting{"max", span(&p.Max, time.Second)},
		setting{"exempt", func(n *yaml.Node) { p.Exempt = d.networks(n) }},
	)
	if p.Min > p.Max {
		at := values["min"]
		if at == nil {
			at = values["max"]
		}
		d.mistake(at, "nobody would be kept out; write off if that is meant", "min (%s) is above max (%s)", durationText(p.Min), durationText(p.Max))
	}
}

// networks reads addresses and networks.
func (d *decoder) networks(n *yaml.Node) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range d.texts(n, func(text string) error {
		_, err := parseNetwork(text)
		return err
	}) {
		if network, err := parseNetwork(text); err == nil {
			all = append(all, network)
		}
	}
	return all
}

const networkHint = "write addresses and networks: [192.0.2.7, 10.0.0.0/8, \"2001:db8::/32\"]"

func parseNetwork(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	network, err := netip.ParsePrefix(text)
	if err != nil || network.Addr().Is4In6() {
		return network, refuse(networkHint, "%s is neither an address nor a network", quote(text))
	}
	if network != network.Masked() {
		return network, refuse("write "+network.Masked().String()+", or the one address without a slash", "%s has bits beyond its mask", quote(text))
	}
	return network, nil
}

// networkTexts are as the file may have them.
func networkTexts(networks []netip.Prefix) []string {
	all := make([]string, len(networks))
	for i, network := range networks {
		if all[i] = network.String(); network.IsSingleIP() {
			all[i] = network.Addr().String()
		}
	}
	return all
}
