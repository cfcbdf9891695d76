package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"nixbastion/internal/simulate"
	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A Fleet is the hosts for one trace. The bed's owner ends it.
type Fleet struct {
	bed   *testbed.Bed
	trace *simulate.Trace

	builders, clients []*testbed.Host // as in the trace
	// Nil unless their way was asked for.
	hub, haproxy *testbed.Host
	proxy        *world.Proxy

	rounds int // so far
}

// Open starts the hosts of a trace and of ways. The order of machines and clients
// is the trace's.
func Open(ctx context.Context, bed *testbed.Bed, trace *simulate.Trace, ways ...string) (*Fleet, error) {
	f := &Fleet{bed: bed, trace: trace}
	if err := f.startEnds(ctx); err != nil {
		return nil, err
	}
	for _, name := range ways {
		if err := f.openWay(ctx, name); err != nil {
			return nil, fmt.Errorf("open the way %s: %w", name, err)
		}
	}
	return f, f.writeSources(ctx)
}

// clientKey is the key of a client: each is a principal of its own.
func (f *Fleet) clientKey(i int) testbed.Key { return f.bed.UserKey(f.trace.Clients[i].Name) }

func (f *Fleet) clientKeys() []testbed.Key {
	keys := make([]testbed.Key, len(f.trace.Clients))
	for i := range keys {
		keys[i] = f.clientKey(i)
	}
	return keys
}

func (f *Fleet) hubKey() testbed.Key { return f.bed.UserKey("hub") }

func (f *Fleet) startEnds(ctx context.Context) error {
	var specs []testbed.HostSpec
	for _, m := range f.trace.Machines {
		spec := testbed.HostSpec{
			Name: m.Name, Kind: testbed.Builder, MaxJobs: m.Slots, Speed: m.Speed, Features: allFeatures(m),
			Authorize: map[string][]testbed.Key{
				testbed.TrustedAccount: append(f.clientKeys(), f.hubKey(), world.BuilderKey(f.bed, "proxy")),
			},
		}
		systems := systemsOf(m)
		spec.System, spec.ExtraPlatforms = systems[0], systems[1:]
		specs = append(specs, spec)
	}
	for i, c := range f.trace.Clients {
		specs = append(specs, testbed.HostSpec{Name: c.Name, Kind: testbed.Client, Keys: []testbed.Key{f.clientKey(i)}})
	}
	hosts, err := f.bed.StartAll(ctx, specs...)
	if err != nil {
		return err
	}
	f.builders, f.clients = hosts[:len(f.trace.Machines)], hosts[len(f.trace.Machines):]
	return nil
}

// writeSources gives every client the inputs that nobody builds: files with the same
// bytes everywhere.
func (f *Fleet) writeSources(ctx context.Context) error {
	sizes := map[string]int64{}
	for _, b := range f.trace.Builds {
		for _, s := range b.Sources {
			sizes[s.Path] = s.Size
		}
	}
	script := "set -e; mkdir -p " + sourceDir + "; cd " + sourceDir + "\n"
	for path, size := range sizes {
		script += fmt.Sprintf("yes %s | head -c %d >%[1]s\n", path, size)
	}
	return onAll(f.clients, func(_ int, h *testbed.Host) error { return shell(ctx, h, script) })
}

const sourceDir = "/root/trace"

// empty makes the next run begin like the first.
func (f *Fleet) empty(ctx context.Context) error {
	if f.proxy != nil {
		if err := f.emptyProxy(ctx); err != nil {
			return err
		}
	}
	hosts := append(append([]*testbed.Host{}, f.builders...), f.clients...)
	if f.hub != nil {
		hosts = append(hosts, f.hub)
	}
	return onAll(hosts, func(_ int, h *testbed.Host) error { return shell(ctx, h, collectGarbage) })
}

// collectGarbage tries more than once: sessions that end beside it take their files
// away while it reads them.
const collectGarbage = `for n in 1 2 3 4 5; do
	nix-store --gc >/dev/null 2>/tmp/gc.err && exit 0
	sleep 0.5
done
cat /tmp/gc.err >&2; exit 1`

// emptyProxy starts the proxy again, as the same host with nothing in its store, that
// has learned no more than the trace's estimates.
func (f *Fleet) emptyProxy(ctx context.Context) error {
	if err := f.proxy.Terminate(ctx); err != nil {
		return err
	}
	err := shell(ctx, f.proxy.Host(), "find "+world.StateDir+" -mindepth 1 -maxdepth 1 ! -name 'ssh_host*' -exec rm -rf {} +")
	if err != nil {
		return err
	}
	learned, err := json.Marshal(f.trace.History())
	if err != nil {
		return err
	}
	if err := f.proxy.Host().WriteFile(ctx, learnedFile, learned); err != nil {
		return err
	}
	return f.proxy.Start(ctx)
}

// learnedFile is where the proxy keeps what it has learned.
const learnedFile = world.StateDir + "/estimates.json"

// onAll does something on hosts at the same time.
func onAll(hosts []*testbed.Host, do func(int, *testbed.Host) error) error {
	errs := make(chan error, len(hosts))
	for i, h := range hosts {
		go func() { errs <- do(i, h) }()
	}
	var all []error
	for range hosts {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// shell runs a script that must end with status 0.
func shell(ctx context.Context, h *testbed.Host, script string) error {
	res, err := h.Shell(ctx, script)
	if err == nil && res.Status != 0 {
		err = fmt.Errorf("%s: %q ended with status %d\n%s", h.Name(), script, res.Status, res.Stderr)
	}
	return err
}
