package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"nixbastion/internal/simulate"
	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// The ways of placing builds.
const (
	// Direct: each client lists all builders and knows of nobody else.
	Direct = "direct"
	// HAProxy gives each connection to the builder with the fewest. It knows neither
	// systems nor features: all builders must be able to run all builds.
	HAProxy = "HAProxy"
	// Hub is a nix-daemon between, whose builders are the trace's.
	Hub = "hub"
	// Proxy is this project.
	Proxy = "proxy"
)

// Ways are all, in the order of tables.
var Ways = []string{Direct, HAProxy, Hub, Proxy}

// manyJobs is what a client may ask for at once where the way queues by itself.
const manyJobs = 64

func (f *Fleet) openWay(ctx context.Context, name string) (err error) {
	switch name {
	case Direct:
		return nil
	case HAProxy:
		f.haproxy, err = f.openHAProxy(ctx)
	case Hub:
		f.hub, err = f.openHub(ctx)
	case Proxy:
		f.proxy, err = f.openProxy(ctx)
	default:
		err = fmt.Errorf("there is no such way; there are %s", strings.Join(Ways, ", "))
	}
	return err
}

// machines are the lines of the machines file of a client.
func (f *Fleet) machines(way string, client int) []testbed.Machine {
	key := f.clientKey(client)
	switch way {
	case Direct:
		return f.builderLines(key)
	case HAProxy:
		return []testbed.Machine{f.oneLine("ssh-ng://nix@"+f.haproxy.Name(), key, f.slots())}
	case Hub:
		return []testbed.Machine{f.oneLine("ssh-ng://"+testbed.GuestAccount+"@"+f.hub.Name(), key, manyJobs)}
	default:
		return []testbed.Machine{f.oneLine("ssh-ng://"+f.proxy.Host().Name(), key, manyJobs)}
	}
}

// builderLines list the builders as they are.
func (f *Fleet) builderLines(key testbed.Key) []testbed.Machine {
	var lines []testbed.Machine
	for _, m := range f.trace.Machines {
		lines = append(lines, testbed.Machine{
			Store: "ssh-ng://nix@" + m.Name, Systems: systemsOf(m), Key: key, MaxJobs: m.Slots, SpeedFactor: m.Speed,
			Features: m.Features, Mandatory: m.Mandatory,
		})
	}
	return lines
}

// oneLine stands for all builders.
func (f *Fleet) oneLine(store string, key testbed.Key, jobs int) testbed.Machine {
	line := testbed.Machine{Store: store, Systems: []string{}, Key: key, MaxJobs: jobs}
	for _, m := range f.trace.Machines {
		line.Systems = append(line.Systems, systemsOf(m)...)
		line.Features = append(line.Features, allFeatures(m)...)
	}
	line.Systems, line.Features = union(line.Systems), union(line.Features)
	return line
}

func union(all []string) []string { return slices.Compact(slices.Sorted(slices.Values(all))) }

func (f *Fleet) slots() int {
	n := 0
	for _, m := range f.trace.Machines {
		n += m.Slots
	}
	return n
}

func systemsOf(m simulate.Machine) []string { return slices.Sorted(maps.Keys(m.Systems)) }

func allFeatures(m simulate.Machine) []string { return slices.Concat(m.Features, m.Mandatory) }

func (f *Fleet) openProxy(ctx context.Context) (*world.Proxy, error) {
	spec := world.ProxySpec{}
	for i, m := range f.trace.Machines {
		spec.Builders = append(spec.Builders, world.Builder{
			Host: f.builders[i], MaxJobs: m.Slots, SpeedFactor: m.Speed, SystemSpeeds: m.Systems,
			Features: m.Features, MandatoryFeatures: m.Mandatory,
		})
	}
	for i, c := range f.trace.Clients {
		spec.Principals = append(spec.Principals, world.Principal{Name: c.Name, Keys: []testbed.Key{f.clientKey(i)}})
	}
	return world.StartProxy(ctx, f.bed, spec)
}

// openHub lets clients in as an account that the hub does not trust: for a trusted
// one Nix does not pass builds on.
func (f *Fleet) openHub(ctx context.Context) (*testbed.Host, error) {
	return f.bed.Start(ctx, testbed.HostSpec{
		Name: "hub", Kind: testbed.Builder, NixConf: []string{"max-jobs = 0"},
		Keys:      []testbed.Key{f.hubKey()},
		Authorize: map[string][]testbed.Key{testbed.GuestAccount: f.clientKeys()},
		Machines:  f.builderLines(f.hubKey()),
	})
}

const haproxyConfig = `defaults
  mode tcp
  timeout connect 5s
  timeout client 60m
  timeout server 60m
listen builders
  bind :22
  balance leastconn
`

// openHAProxy shows clients the host key of whichever builder they get.
func (f *Fleet) openHAProxy(ctx context.Context) (*testbed.Host, error) {
	h, err := f.bed.Start(ctx, testbed.HostSpec{Name: "haproxy"})
	if err != nil {
		return nil, err
	}
	config := haproxyConfig
	for i, b := range f.builders {
		if err := f.bed.AddKnownHost(h.Name(), f.bed.HostKey(b.Name()).AuthorizedLine()); err != nil {
			return nil, err
		}
		config += fmt.Sprintf("  server builder%d %s:22\n", i, b.Addr())
	}
	const file = "/etc/haproxy.cfg"
	if err := h.WriteFile(ctx, file, []byte(config)); err != nil {
		return nil, err
	}
	// It goes into the background once it listens, and ends with its host.
	return h, shell(ctx, h, "haproxy -D -f "+file)
}
