package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// Names of the machines.
const (
	intelBuilder = "x86-builder"
	armBuilder   = "arm-builder"
	proxyHost    = "proxy"
)

// A plot is how the story differs from the one that is shown to people. The zero
// value is that one; tests make its claims false with others.
type plot struct {
	// beforeSharing, if not nil, runs before the second client's turn.
	beforeSharing func(context.Context, *stage) error
}

// A stage is the machines of the demo.
type stage struct {
	bed        *testbed.Bed
	builders   []*testbed.Host
	proxy      *world.Proxy
	alice, bob *testbed.Host
	plot       plot
	began      time.Time // when all was installed; zero if it never was
}

// raise starts the machines. The stage that it returns is never nil and must be
// closed, also after an error.
func raise(ctx context.Context, p *page, as plot) (*stage, error) {
	p.gap()
	p.text(`Five machines, each a network namespace of this one with a store of its own, with Nix and OpenSSH as Debian ships them:`)
	p.gap()
	for _, line := range cast {
		p.quote(line)
	}
	s := &stage{plot: as}
	w := startProgress(p)
	defer w.end()
	return s, s.start(ctx, w)
}

var cast = []string{
	intelBuilder + "   builds for x86_64-linux, has the feature kvm   Nix " + testbed.Nix234,
	armBuilder + "   says that it builds for aarch64-linux          Nix " + testbed.Nix226,
	proxyHost + "         nixbastion; needs no Nix",
	"alice         a client                                       Nix " + testbed.Nix234,
	"bob           a client                                       Nix " + testbed.Nix28,
}

func (s *stage) start(ctx context.Context, w *progress) (err error) {
	if err := testbed.Ensure(ctx, w.log(), testbed.Nix28, testbed.Nix226, testbed.Nix234); err != nil {
		return err
	}
	s.began = time.Now()
	if s.bed, err = testbed.New(ctx, testbed.Options{Log: w.log()}); err != nil {
		return err
	}
	alice, bob := clientKey(s.bed, "alice"), clientKey(s.bed, "bob")
	hosts, err := s.bed.StartAll(ctx,
		testbed.HostSpec{Name: intelBuilder, Kind: testbed.Builder, Nix: testbed.Nix234,
			System: "x86_64-linux", Features: []string{"kvm"}, MaxJobs: 2},
		testbed.HostSpec{Name: armBuilder, Kind: testbed.Builder, Nix: testbed.Nix226,
			System: "aarch64-linux", MaxJobs: 2},
		testbed.HostSpec{Name: "alice", Kind: testbed.Client, Nix: testbed.Nix234, Keys: []testbed.Key{alice}, NixConf: trustNobody},
		testbed.HostSpec{Name: "bob", Kind: testbed.Client, Nix: testbed.Nix28, Keys: []testbed.Key{bob}, NixConf: trustNobody},
	)
	if err != nil {
		return err
	}
	s.builders, s.alice, s.bob = hosts[:2], hosts[2], hosts[3]
	s.proxy, err = world.StartProxy(ctx, s.bed, s.proxySpec(alice, bob))
	if err != nil {
		return err
	}
	return s.furnishClients(ctx)
}

// trustNobody has a client trust no key but those that the story pastes.
var trustNobody = []string{"trusted-public-keys ="}

// signingKey is the name of the key by which the proxy signs.
const signingKey = "demo-1"

// clientKey is a key that lies on its host where people have theirs.
func clientKey(bed *testbed.Bed, owner string) testbed.Key {
	key := bed.UserKey(owner)
	key.Name = "id_ed25519"
	return key
}

func (s *stage) proxySpec(alice, bob testbed.Key) world.ProxySpec {
	return world.ProxySpec{
		Name: proxyHost,
		Builders: []world.Builder{
			{Host: s.builders[0], Systems: []string{"x86_64-linux"}, Features: []string{"kvm"}, MaxJobs: 2},
			{Host: s.builders[1], Systems: []string{"aarch64-linux"}, MaxJobs: 2},
		},
		Principals: []world.Principal{
			{Name: "alice", Keys: []testbed.Key{alice}, Role: "full"},
			{Name: "bob", Keys: []testbed.Key{bob}, Role: "full"},
		},
		Signing: map[string]world.Signing{"default": {Keys: []string{signingKey}}},
	}
}

// furnishClients brings the files of the story. It also takes away the host
// keys that the testbed gives to every host: clients shall know what the story
// pastes and nothing else.
func (s *stage) furnishClients(ctx context.Context) error {
	for _, client := range []*testbed.Host{s.alice, s.bob} {
		err := errors.Join(
			client.WriteFile(ctx, "/root/demo.nix", []byte(demoNix)),
			client.WriteFile(ctx, "/root/greeting.txt", []byte(greeting+"\n")),
			quietly(ctx, client, "umount /etc/ssh/ssh_known_hosts && ! test -s /etc/ssh/ssh_known_hosts"),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// quietly runs what the reader need not see.
func quietly(ctx context.Context, h *testbed.Host, script string) error {
	res, err := h.Shell(ctx, script)
	if err == nil && res.Status != 0 {
		err = fmt.Errorf("%s on %s ended with status %d: %s", script, h.Name(), res.Status, res.Stderr)
	}
	return err
}

// close takes the machines down.
func (s *stage) close() error {
	if s.bed == nil {
		return nil
	}
	return s.bed.Close()
}

// shownLogLines is how much of the proxy's log an error comes with.
const shownLogLines = 20

// withLog adds the end of the proxy's log to an error, if there is one.
func (s *stage) withLog(err error) error {
	if s.proxy == nil {
		return err
	}
	lines := s.proxy.LinesSince(0)
	var text strings.Builder
	for _, l := range lines[max(0, len(lines)-shownLogLines):] {
		text.WriteString("\n  " + l.Raw)
	}
	return fmt.Errorf("%w\n\nThe proxy's log ends with:%s", err, text.String())
}
