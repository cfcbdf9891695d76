package world

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"nixbastion/internal/testbed"
)

// Where things lie on the proxy's host.
const (
	// Binary is the program.
	Binary = "/usr/local/bin/nixbastion"
	// ConfigFile is the policy.
	ConfigFile = "/etc/nixbastion/config.yaml"
	// StateDir has the host key, the cache and temporary files.
	StateDir = "/var/lib/nixbastion"
	// identityFile is the key that opens the builders.
	identityFile = "/etc/nixbastion/builder-key"
)

// ProxySpec describes a proxy. Builders and Principals are needed, all else has
// a default.
type ProxySpec struct {
	// Name is the host name; "" is "proxy".
	Name string
	// Binary is the program on this machine; "" is that of NIXBASTION_BIN.
	Binary     string
	Builders   []Builder
	Principals []Principal
	// Domains besides those that Builders and Principals name.
	Domains []string
	// Signing says how domains sign, by their names. The keys are made on the
	// proxy's host when a policy first names them.
	Signing map[string]Signing
	// StartupGrace is for how long builds wait for builders that are not up yet; ""
	// is "0s": what is down is down.
	StartupGrace string
	// Extra are more lines of the policy file, at its top level. With scheduling
	// among them StartupGrace does not count. Without load among them no builder is
	// looked at: hosts share a kernel, so that what one is told of its load is that of
	// the machine.
	Extra string
	// Env is added to the proxy's environment: "GOGC=100".
	Env []string
	// Activated has systemd-socket-activate listen on port 22 and start the program, and
	// keeps the socket while it is started again whenever it ends: see Restart.
	Activated bool
	// StateOnDisk keeps the state directory on disk instead of in memory.
	StateOnDisk bool
	// Host is added to: a caller may ask for more binds. Name, Kind and what
	// the proxy itself needs are set by StartProxy.
	Host testbed.HostSpec
}

// Signing is how a domain signs.
type Signing struct {
	// Keys are the names of its keys.
	Keys []string
	// Mode is "domain", "proven" or "none"; "" leaves the proxy's default.
	Mode string
}

// SigningKeyFile is where the proxy's host has the secret key of a name.
func SigningKeyFile(name string) string { return "/etc/nixbastion/" + name + ".secret" }

// Builder is a builder as the policy has it.
type Builder struct {
	// Host is the machine; its name is the builder's.
	Host *testbed.Host
	// Account is the one to log in to; "" is testbed.TrustedAccount.
	Account string
	// Address "" is port 22 of Host; a relay's is another.
	Address string
	// Key opens Account and must be let in by the caller; the zero Key is the
	// proxy's own (BuilderKey), which is let in.
	Key testbed.Key
	// HostKeys nil is the key of Host.
	HostKeys []testbed.Key
	// Systems nil is testbed.NativeSystem.
	Systems []string
	// SystemSpeeds, if not nil, stand for Systems: the speed of each as a factor
	// to SpeedFactor.
	SystemSpeeds      map[string]float64
	Features          []string
	MandatoryFeatures []string
	// MaxJobs 0 is 1, SpeedFactor 0 is 1.
	MaxJobs     int
	SpeedFactor float64
	// Domains nil is "default".
	Domains []string
	// Extra are more keys of this builder, one "key: value" each.
	Extra []string
}

// Principal is a client as the policy has it.
type Principal struct {
	Name string
	// Keys may be none if Extra has authorized_keys.
	Keys []testbed.Key
	// Role is "full" or "read"; "" is "full".
	Role string
	// Domain "" is "default".
	Domain string
	// MaxJobs and MaxConnections 0 leave the proxy's defaults.
	MaxJobs, MaxConnections int
	// Extra are more keys of this principal, one "key: value" each.
	Extra []string
}

const defaultDomain = "default"

func (s ProxySpec) withDefaults() ProxySpec {
	if s.Name == "" {
		s.Name = "proxy"
	}
	s.Builders = slices.Clone(s.Builders)
	for i := range s.Builders {
		s.Builders[i] = s.Builders[i].withDefaults()
	}
	s.Principals = slices.Clone(s.Principals)
	for i := range s.Principals {
		s.Principals[i] = s.Principals[i].withDefaults()
	}
	return s
}

func (b Builder) withDefaults() Builder {
	if b.Account == "" {
		b.Account = testbed.TrustedAccount
	}
	if b.Address == "" {
		b.Address = b.Host.Name() + ":22"
	}
	if b.SystemSpeeds != nil {
		b.Systems = slices.Sorted(maps.Keys(b.SystemSpeeds))
	}
	if b.Systems == nil {
		b.Systems = []string{testbed.NativeSystem}
	}
	if b.SpeedFactor == 0 {
		b.SpeedFactor = 1
	}
	if b.Domains == nil {
		b.Domains = []string{defaultDomain}
	}
	b.MaxJobs = max(b.MaxJobs, 1)
	return b
}

func (p Principal) withDefaults() Principal {
	if p.Role == "" {
		p.Role = "full"
	}
	if p.Domain == "" {
		p.Domain = defaultDomain
	}
	return p
}

// Policy returns the policy file of a spec on a bed, for those who want to
// change it before a Reload.
func (s ProxySpec) Policy(bed *testbed.Bed) string {
	s = s.withDefaults()
	var y yaml
	y.line(0, "listen: [%s]", strconv.Quote("0.0.0.0:22"))
	y.line(0, "state_dir: %s", StateDir)
	if domains := s.domains(); len(domains) > 0 {
		y.line(0, "domains:")
		for _, name := range domains {
			y.line(1, "- name: %s", strconv.Quote(name))
			s.Signing[name].write(&y)
		}
	}
	if len(s.Builders) > 0 {
		y.line(0, "builders:")
	}
	for _, b := range s.Builders {
		b.write(&y, bed)
	}
	if !strings.Contains(s.Extra, "scheduling:") {
		y.line(0, "scheduling: {startup_grace: %s}", s.startupGrace())
	}
	y.line(0, "principals:")
	for _, p := range s.Principals {
		p.write(&y)
	}
	if !strings.Contains("\n"+s.Extra, "\nload:") {
		y.line(0, "load: off")
	}
	return y.String() + s.Extra
}

func (s ProxySpec) startupGrace() string { return cmp.Or(s.StartupGrace, "0s") }

// domains are all that are named, but for the one that is always there.
func (s ProxySpec) domains() []string {
	names := slices.Clone(s.Domains)
	for _, b := range s.Builders {
		names = append(names, b.Domains...)
	}
	for _, p := range s.Principals {
		names = append(names, p.Domain)
	}
	names = slices.AppendSeq(names, maps.Keys(s.Signing))
	slices.Sort(names)
	names = slices.Compact(names)
	_, signs := s.Signing[defaultDomain]
	return slices.DeleteFunc(names, func(n string) bool { return n == defaultDomain && !signs })
}

func (s Signing) write(y *yaml) {
	files := make([]string, len(s.Keys))
	for i, name := range s.Keys {
		files[i] = SigningKeyFile(name)
	}
	if len(files) > 0 {
		y.line(2, "signing_keys: %s", quoteList(files))
	}
	if s.Mode != "" {
		y.line(2, "sign: %s", s.Mode)
	}
}

func (b Builder) write(y *yaml, bed *testbed.Bed) {
	y.line(1, "- name: %s", strconv.Quote(b.Host.Name()))
	y.line(2, "address: %s", strconv.Quote(b.Address))
	y.line(2, "user: %s", b.Account)
	y.line(2, "identity_file: %s", b.identityFile())
	y.line(2, "host_keys: %s", quoteList(b.hostKeys(bed)))
	y.line(2, "systems: %s", b.systems())
	y.line(2, "features: %s", quoteList(b.Features))
	y.line(2, "mandatory_features: %s", quoteList(b.MandatoryFeatures))
	y.line(2, "max_jobs: %d", b.MaxJobs)
	y.line(2, "speed_factor: %g", b.SpeedFactor)
	y.line(2, "domains: %s", quoteList(b.Domains))
	for _, extra := range b.Extra {
		y.line(2, "%s", extra)
	}
}

// identityFile is where the proxy has the key that opens the builder.
func (b Builder) identityFile() string {
	if b.Key.Name == "" {
		return identityFile
	}
	return identityFile + "-" + b.Key.Name
}

func (b Builder) hostKeys(bed *testbed.Bed) []string {
	keys := b.HostKeys
	if keys == nil {
		keys = []testbed.Key{bed.HostKey(b.Host.Name())}
	}
	lines := make([]string, len(keys))
	for i, key := range keys {
		lines[i] = key.AuthorizedLine()
	}
	return lines
}

// systems is a list, or a map if there are speeds.
func (b Builder) systems() string {
	if b.SystemSpeeds == nil {
		return quoteList(b.Systems)
	}
	pairs := make([]string, len(b.Systems))
	for i, system := range b.Systems {
		pairs[i] = fmt.Sprintf("%q: %g", system, b.SystemSpeeds[system])
	}
	return "{" + strings.Join(pairs, ", ") + "}"
}

func (p Principal) write(y *yaml) {
	y.line(1, "- name: %s", strconv.Quote(p.Name))
	y.line(2, "role: %s", p.Role)
	y.line(2, "domain: %s", strconv.Quote(p.Domain))
	if len(p.Keys) > 0 {
		y.line(2, "keys:")
	}
	for _, key := range p.Keys {
		y.line(3, "- %s", strconv.Quote(key.AuthorizedLine()))
	}
	if p.MaxJobs != 0 {
		y.line(2, "max_jobs: %d", p.MaxJobs)
	}
	if p.MaxConnections != 0 {
		y.line(2, "max_connections: %d", p.MaxConnections)
	}
	for _, extra := range p.Extra {
		y.line(2, "%s", extra)
	}
}

// yaml collects lines. Quoted strings of Go are strings of YAML too as long as
// they are ASCII, and here they are.
type yaml struct{ strings.Builder }

func (y *yaml) line(depth int, format string, args ...any) {
	fmt.Fprintf(y, strings.Repeat("  ", depth)+format+"\n", args...)
}

func quoteList(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = strconv.Quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// Machine is the line for the machines file of a client that has key: one line,
// whose systems and features are the union over all builders.
func (p *Proxy) Machine(key testbed.Key) testbed.Machine {
	m := testbed.Machine{Store: "ssh-ng://" + p.host.Name(), Key: key, Systems: []string{}}
	for _, b := range p.Spec().Builders {
		m.Systems = append(m.Systems, b.Systems...)
		m.Features = append(append(m.Features, b.Features...), b.MandatoryFeatures...)
		m.MaxJobs += b.MaxJobs
	}
	m.Systems = union(m.Systems)
	m.Features = union(m.Features)
	// The proxy queues by itself: a client should send all it has.
	m.MaxJobs = max(4*m.MaxJobs, 32)
	return m
}

func union(all []string) []string {
	slices.Sort(all)
	return slices.Compact(all)
}

// MachinesField makes field 8 of a line of a machines file of a public key such
// as HostKey, for clients that know the proxy by another name.
func MachinesField(key string) string { return base64.StdEncoding.EncodeToString([]byte(key)) }
