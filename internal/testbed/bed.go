package testbed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Options say how a bed is made. The zero value is good.
type Options struct {
	// Log tells about slow steps; nil discards.
	Log *slog.Logger
}

// A Bed is a private network and the hosts on it. Its methods may be called
// from several goroutines, except Close.
type Bed struct {
	log    *slog.Logger
	dir    string   // on disk, for what hosts share and what is too large for memory
	lock   *os.File // held while the bed lives, so that nobody sweeps it
	net    *netns   // has the bridge that the hosts' cables end in
	parent cgroup

	keys *keyring

	mu    sync.Mutex // guards hosts and the files of names in dir
	hosts map[string]*Host
	count int // hosts ever started; makes addresses and names of cables
}

// New makes an empty bed, and removes what crashed processes left. The caller
// ends it with Close. ctx bounds New alone.
func New(ctx context.Context, o Options) (*Bed, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := checkPrivileges(); err != nil {
		return nil, err
	}
	if err := ensureMachine(ctx, o.Log); err != nil {
		return nil, fmt.Errorf("testbed: %w", err)
	}
	b := &Bed{log: o.Log, hosts: map[string]*Host{}, keys: newKeyring()}
	if err := b.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("make bed: %w", err), b.Close())
	}
	return b, nil
}

func (b *Bed) open(ctx context.Context) error {
	if err := b.makeFolder(ctx); err != nil {
		return err
	}
	for _, name := range []string{"hosts", "known_hosts"} {
		if err := os.WriteFile(filepath.Join(b.dir, name), nil, 0o644); err != nil {
			return err
		}
	}
	if err := b.addName(netip.MustParseAddr("127.0.0.1"), "localhost"); err != nil {
		return err
	}
	b.parent = newCgroup(filepath.Base(b.dir))
	var err error
	if b.net, err = newNetns(); err != nil {
		return err
	}
	return makeBridge(ctx, b.net)
}

// Close ends all hosts and everything that runs in them, and removes the bed's
// folder. Nothing of the bed is left when it returns without error.
func (b *Bed) Close() error {
	var g errgroup.Group
	for _, h := range b.hosts {
		g.Go(h.Stop)
	}
	err := g.Wait()
	if b.net != nil {
		err = errors.Join(err, b.net.close())
	}
	err = errors.Join(err, b.parent.remove())
	if b.dir != "" {
		err = errors.Join(err, os.RemoveAll(b.dir))
	}
	if b.lock != nil {
		err = errors.Join(err, b.lock.Close())
	}
	return err
}

// StartAll starts several hosts at once and returns them in the order of
// specs. It fails if one does not come up; the others run until Close.
func (b *Bed) StartAll(ctx context.Context, specs ...HostSpec) ([]*Host, error) {
	hosts := make([]*Host, len(specs))
	g, ctx := errgroup.WithContext(ctx)
	for i, spec := range specs {
		g.Go(func() (err error) {
			hosts[i], err = b.Start(ctx, spec)
			return err
		})
	}
	return hosts, g.Wait()
}

// Start adds a host and returns when its daemons answer. It unpacks the root of
// the host's Nix version first if this machine has none yet, which takes a
// minute. ctx bounds Start alone; the host runs until Stop or Close.
func (b *Bed) Start(ctx context.Context, spec HostSpec) (*Host, error) {
	h, err := b.start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start host %s: %w", spec.Name, err)
	}
	return h, nil
}

func (b *Bed) start(ctx context.Context, spec HostSpec) (*Host, error) {
	spec = spec.withDefaults()
	if err := spec.check(); err != nil {
		return nil, err
	}
	h, err := b.admit(spec)
	if err != nil {
		return nil, err
	}
	if err := h.boot(ctx); err != nil {
		return nil, errors.Join(err, h.Stop(), b.forget(h))
	}
	return h, nil
}

// admit gives a new host its address and makes its name known to all others.
func (b *Bed) admit(spec HostSpec) (*Host, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hosts[spec.Name] != nil {
		return nil, errors.New("the name is taken")
	}
	b.count++
	h := &Host{
		bed:   b,
		spec:  spec,
		addr:  hostAddr(b.count),
		cable: fmt.Sprintf("h%d", b.count),
		dir:   filepath.Join(b.dir, spec.Name),
	}
	if err := b.addName(h.addr, spec.Name); err != nil {
		return nil, err
	}
	key := b.keys.host(spec.Name).AuthorizedLine()
	if err := b.appendKnownHost([]string{spec.Name, h.addr.String()}, key); err != nil {
		return nil, err
	}
	b.hosts[spec.Name] = h
	return h, os.Mkdir(h.dir, 0o755)
}

// forget frees the name of a host that did not come up.
func (b *Bed) forget(h *Host) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.hosts, h.spec.Name)
	return os.RemoveAll(h.dir)
}

// addName adds a line to the file that every host has as /etc/hosts.
func (b *Bed) addName(addr netip.Addr, name string) error {
	return appendLine(filepath.Join(b.dir, "hosts"), fmt.Sprintf("%s %s", addr, name))
}

// appendLine writes in place: hosts have bound this very file into their roots.
func appendLine(file, line string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	return errors.Join(err, f.Close())
}
