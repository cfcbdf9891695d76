package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A lab is the hosts that the benches run on.
type lab struct {
	bed     *testbed.Bed
	builder *testbed.Host
	decoy   *testbed.Host            // nil unless a bench wants it
	clients map[string]*testbed.Host // by version of Nix
	hub     *testbed.Host            // nil unless its column is wanted
	proxies map[string]*world.Proxy  // by way
	ways    []*way
	serial  serial
}

// openLab starts the hosts. The caller closes the lab.
func openLab(ctx context.Context, o options, log *slog.Logger) (*lab, error) {
	bed, err := testbed.New(ctx, testbed.Options{Log: log})
	if err != nil {
		return nil, err
	}
	l := &lab{bed: bed, clients: map[string]*testbed.Host{}, proxies: map[string]*world.Proxy{}, serial: newSerial()}
	if err := l.open(ctx, o); err != nil {
		return nil, errors.Join(err, bed.Close())
	}
	return l, nil
}

func (l *lab) close() error { return l.bed.Close() }

func (l *lab) open(ctx context.Context, o options) error {
	if err := l.startEnds(ctx, o); err != nil {
		return err
	}
	key := l.clientKey()
	for _, name := range wayNames {
		if !slices.Contains(o.columns, name) {
			continue
		}
		w, err := l.openWay(ctx, name, key, o)
		if err == nil && o.line > 0 {
			w, err = l.behindLine(ctx, w, key, o.line)
		}
		if err != nil {
			return fmt.Errorf("open the way %s: %w", name, err)
		}
		l.ways = append(l.ways, w)
	}
	return nil
}

func (l *lab) clientKey() testbed.Key { return l.bed.UserKey("client") }

// startEnds starts the builder and a client of each version that is needed.
func (l *lab) startEnds(ctx context.Context, o options) error {
	key := l.clientKey()
	specs := []testbed.HostSpec{{
		Name: "builder", Kind: testbed.Builder, Nix: o.builder, MaxJobs: jobs, OnDisk: o.storeOnDisk(),
		Authorize: map[string][]testbed.Key{
			testbed.TrustedAccount: {key, l.bed.UserKey("hub"), world.BuilderKey(l.bed, "proxy")},
		},
	}}
	if o.wantsDecoy() {
		specs = append(specs, testbed.HostSpec{Name: decoy, Kind: testbed.Builder, Nix: o.builder, Features: []string{decoy}, OnDisk: o.storeOnDisk()})
	}
	ends := len(specs)
	versions := o.clientVersions()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for i, version := range versions {
		specs = append(specs, testbed.HostSpec{
			Name: fmt.Sprintf("client%d", i+1), Kind: testbed.Client, Nix: version, Keys: []testbed.Key{key}, OnDisk: o.storeOnDisk(),
			Binds: map[string]string{discarder: self},
		})
	}
	hosts, err := l.bed.StartAll(ctx, specs...)
	if err != nil {
		return err
	}
	l.builder = hosts[0]
	if ends > 1 {
		l.decoy = hosts[1]
	}
	for i, version := range versions {
		l.clients[version] = hosts[ends+i]
	}
	return nil
}

func (o options) wantsDecoy() bool {
	return slices.ContainsFunc(o.tasks(), func(t task) bool { return t.bench.decoy })
}

func (o options) storeOnDisk() []string {
	if o.disk {
		return []string{"/nix"}
	}
	return nil
}

func (l *lab) openWay(ctx context.Context, name string, key testbed.Key, o options) (*way, error) {
	switch name {
	case proxy:
		return l.openProxy(ctx, name, "", key, o)
	case unaudited:
		return l.openProxy(ctx, name, "audit: off\n", key, o)
	case haproxy:
		return l.openHAProxy(ctx, key)
	case hub:
		return l.openHub(ctx, key, o)
	default:
		return newWay(direct, "nix@", l.builder, key), nil
	}
}

func (l *lab) openProxy(ctx context.Context, name, extra string, key testbed.Key, o options) (*way, error) {
	builders := []world.Builder{{Host: l.builder, MaxJobs: jobs}}
	if l.decoy != nil {
		builders = append(builders, world.Builder{Host: l.decoy, Features: []string{decoy}, MandatoryFeatures: []string{decoy}})
	}
	p, err := world.StartProxy(ctx, l.bed, world.ProxySpec{
		Name:        name,
		Extra:       extra,
		Builders:    builders,
		Principals:  []world.Principal{{Name: "client", Keys: []testbed.Key{key}, Extra: []string{"jump: [builder]"}}},
		StateOnDisk: o.disk,
	})
	if err != nil {
		return nil, err
	}
	l.proxies[name] = p
	w := newWay(name, "", p.Host(), key)
	w.middle = p.Host()
	w.reset = func() error { return resetProxy(ctx, p) }
	return w, nil
}

// resetProxy starts the proxy again with an empty cache, as the same host.
func resetProxy(ctx context.Context, p *world.Proxy) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := p.Terminate(ctx); err != nil {
		return err
	}
	if _, err := shell(ctx, p.Host(), "rm -rf "+world.StateDir+"/cache "+world.StateDir+"/tmp"); err != nil {
		return err
	}
	return p.Start(ctx)
}

// haproxyConfig has one server, the builder, like all other ways: what is
// measured is what it costs to go through it.
const haproxyConfig = `defaults
  mode tcp
  timeout connect 5s
  timeout client 10m
  timeout server 10m
listen builders
  bind :22
  balance leastconn
  server builder %s:22
`

func (l *lab) openHAProxy(ctx context.Context, key testbed.Key) (*way, error) {
	h, err := l.bed.Start(ctx, testbed.HostSpec{Name: "haproxy"})
	if err != nil {
		return nil, err
	}
	if err := l.bed.AddKnownHost(h.Name(), l.bed.HostKey(l.builder.Name()).AuthorizedLine()); err != nil {
		return nil, err
	}
	const file = "/etc/haproxy.cfg"
	if err := h.WriteFile(ctx, file, fmt.Appendf(nil, haproxyConfig, l.builder.Addr())); err != nil {
		return nil, err
	}
	// It goes into the background once it listens, and ends with its host.
	if _, err := shell(ctx, h, "haproxy -D -f "+file); err != nil {
		return nil, err
	}
	w := newWay(haproxy, "nix@", h, key)
	w.middle = h
	return w, nil
}

// openHub lets the client in as an account that the hub does not trust: for a
// trusted one Nix does not pass builds on.
func (l *lab) openHub(ctx context.Context, key testbed.Key, o options) (*way, error) {
	own := l.bed.UserKey("hub")
	h, err := l.bed.Start(ctx, testbed.HostSpec{
		Name: "hub", Kind: testbed.Builder, Nix: o.builder, OnDisk: o.storeOnDisk(),
		NixConf:   []string{"max-jobs = 0"},
		Keys:      []testbed.Key{own},
		Authorize: map[string][]testbed.Key{testbed.GuestAccount: {key}},
		Machines:  []testbed.Machine{{Store: "ssh-ng://nix@" + l.builder.Name(), Key: own, MaxJobs: jobs}},
	})
	if err != nil {
		return nil, err
	}
	l.hub = h
	w := newWay(hub, testbed.GuestAccount+"@", h, key)
	w.middle = h
	w.reset = func() error { return emptyStore(ctx, h) }
	return w, nil
}

// emptyStore deletes all that nothing holds.
func emptyStore(ctx context.Context, h *testbed.Host) error {
	_, err := shell(ctx, h, "nix-store --gc")
	return err
}

// shell runs a script that must end with status 0 and returns what it printed.
func shell(ctx context.Context, h *testbed.Host, script string) (string, error) {
	res, err := h.Shell(ctx, script)
	if err != nil {
		return "", err
	}
	if res.Status != 0 {
		return "", fmt.Errorf("%s: %q ended with status %d\n%s", h.Name(), script, res.Status, res.Stderr)
	}
	return res.Stdout, nil
}
