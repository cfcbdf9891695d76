package e2e

import (
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A large upload goes on to the builder while it comes, once, and not at all if its
// client is lost. Guards against builds that wait for their inputs twice, against
// bytes that travel twice, and against a builder on which half an upload is left that
// keeps others from bringing the whole.
func TestUploadsAreFedAhead(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	f := &feeding{builder: hosts[0], client: hosts[1]}
	var err error
	if f.toBuilder, err = f.builder.Relay(testbed.RelaySpec{Port: 2222, Target: "builder:22"}); err != nil {
		t.Fatal(err)
	}
	f.proxy = startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: f.builder, Address: "builder:2222"}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	if f.toProxy, err = f.client.Relay(testbed.RelaySpec{Port: 22, Target: "proxy:22", BytesPerSecond: feedSize / 8}); err != nil {
		t.Fatal(err)
	}
	throttled := f.proxy.Machine(key)
	throttled.Store, throttled.HostKey = "ssh-ng://client", hostKeyField(f.proxy)
	setMachines(t, f.client, throttled)
	t.Run("once", f.testOnce)
	t.Run("client lost", f.testClientLost)
}

// feedSize is that of the inputs, in bytes.
const feedSize = 256 << 20

type feeding struct {
	builder, client    *testbed.Host
	proxy              *world.Proxy
	toBuilder, toProxy *testbed.Relay
}

// begin starts a build with a large input that nobody has seen, and returns when a
// part of that has reached the builder, before all of it has reached the proxy.
func (f *feeding) begin(t *testing.T, name string) (run *running, file string, before int64) {
	t.Helper()
	f.client.MustShell(t, fmt.Sprintf("head -c %d /dev/urandom >/root/%s-input", feedSize, name))
	file = writeExpression(t, f.client, testbed.Derivation{Name: name, Sources: []string{"/root/" + name + "-input"}})
	before, uploaded := f.sent(), f.uploaded()
	run = startBuild(t, f.client, file, []string{name})
	eventually(t, "the builder has a part of the upload", patience, func() bool { return f.sent()-before > feedSize/8 })
	if n := f.uploaded() - uploaded; n > feedSize*3/4 {
		t.Errorf("the proxy had %d of %d bytes by then", n, feedSize)
	}
	return run, file, before
}

func (f *feeding) sent() int64     { to, _ := f.toBuilder.Bytes(); return to }
func (f *feeding) uploaded() int64 { to, _ := f.toProxy.Bytes(); return to }

// wantOnce wants that the builder was sent what one input takes.
func (f *feeding) wantOnce(t *testing.T, bytes int64) {
	t.Helper()
	if bytes < feedSize || bytes > feedSize*11/10 {
		t.Errorf("%d bytes went to the builder for an input of %d", bytes, feedSize)
	}
}

func (f *feeding) testOnce(t *testing.T) {
	run, _, before := f.begin(t, "once")
	run.mustSucceed(t)
	f.wantOnce(t, f.sent()-before)
	waitLine(t, f.proxy, 0, world.Message("fed ahead", "path", "-once-input"))
}

func (f *feeding) testClientLost(t *testing.T) {
	mark := f.proxy.Mark()
	run, file, _ := f.begin(t, "lost")
	run.kill()
	path := waitLine(t, f.proxy, mark, world.Message("feed ahead ended", "path", "-lost-input")).Text("path")
	if valid := f.builder.MustShell(t, "nix-store --check-validity "+path+" 2>/dev/null && echo valid || echo not"); strings.TrimSpace(valid) != "not" {
		t.Errorf("half an upload is %s on the builder", valid)
	}
	before := f.sent()
	startBuild(t, f.client, file, []string{"lost"}).mustSucceed(t)
	f.wantOnce(t, f.sent()-before)
	f.builder.MustShell(t, "nix-store --verify-path "+path)
}
