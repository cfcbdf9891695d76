package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"nixbastion/internal/nix/worker"
	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// An arena is a proxy with hosts of somebody hostile and of somebody good, and a
// balancer between.
type arena struct {
	proxy                   *world.Proxy
	hostile, good, balancer *testbed.Host
	bad, key, stranger      testbed.Key
}

// What an arena's hosts have besides OpenSSH.
var arenaPackages = []string{"ssh-audit", "haproxy"}

// startArena makes one with more lines below ssh in the policy.
func startArena(t *testing.T, limits string, change func(*world.ProxySpec)) *arena {
	t.Helper()
	bed := testbed.ForTest(t)
	y := &arena{bad: bed.UserKey("bad"), key: bed.UserKey("alice"), stranger: bed.UserKey("stranger")}
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder},
		testbed.HostSpec{Name: "hostile", Kind: testbed.Client, Nix: testbed.Nix226, Packages: arenaPackages, Keys: []testbed.Key{y.bad}},
		testbed.HostSpec{Name: "balancer", Kind: testbed.Client, Nix: testbed.Nix226, Packages: arenaPackages},
		testbed.HostSpec{Name: "good", Kind: testbed.Client, Keys: []testbed.Key{y.key, y.stranger}})
	y.hostile, y.balancer, y.good = hosts[1], hosts[2], hosts[3]
	spec := world.ProxySpec{
		Builders: []world.Builder{{Host: hosts[0]}},
		Principals: []world.Principal{
			{Name: "bad", Keys: []testbed.Key{y.bad}, MaxConnections: 100_000, Extra: []string{"connections_per_minute: 1000000"}},
			{Name: "alice", Keys: []testbed.Key{y.key}},
		},
		Extra: fmt.Sprintf("ssh: {proxy_protocol: [%s]%s}\n", y.balancer.Addr(), limits),
	}
	if change != nil {
		change(&spec)
	}
	y.proxy = startProxy(t, bed, spec)
	setMachines(t, y.good, y.proxy.Machine(y.key))
	return y
}

// Each kind of hostile peer has its limit, and who means well does not notice. The
// last two leave penalties behind.
func TestHostilePeersHarmNobody(t *testing.T) {
	y := startArena(t, ", session_memory: 32MiB", nil)
	t.Run("ssh-audit", y.testAudit)
	t.Run("a balancer and a stranger with one", y.testBalancer)
	t.Run("sessions that never read", func(t *testing.T) { y.testNeverRead(t, 8, 4) })
	t.Run("sockets that trickle", func(t *testing.T) { y.testTrickle(t, 1000, 20) })
	t.Run("keys that nobody has", y.testStrangersKeys)
}

func TestSoakTricklingSocketsKeepNobodyOut(t *testing.T) {
	onlyInSoak(t)
	startArena(t, "", nil).testTrickle(t, 10_000, 500)
}

func TestSoakSessionsThatNeverReadAreBounded(t *testing.T) {
	onlyInSoak(t)
	startArena(t, "", nil).testNeverRead(t, 64, 64)
}

// Whoever tries keys that nobody has is kept out, whatever key comes then, and nobody
// else is. Guards against penalties that OpenSSH's own client does not bring about.
func (y *arena) testStrangersKeys(t *testing.T) {
	from := y.good.Addr().String()
	const enough = 20 // three, if each takes no time
	for n := 0; ; n++ {
		answer := startScript(t, y.good, "ssh -i "+y.stranger.File()+" nix@proxy help").wait(t).Stderr
		if n >= 3 && !strings.Contains(answer, "Permission denied (publickey)") {
			break
		}
		wantText(t, "the answer to a stranger's key", answer, "Permission denied (publickey)")
		if n == enough {
			t.Fatalf("not kept out after %d refused logins", n)
		}
	}
	waitLine(t, y.proxy, 0, world.Message("ssh source is kept out", "addr", from))
	if res := startScript(t, y.good, "ssh -i "+y.key.File()+" nix@proxy help").wait(t); res.Status == 0 {
		t.Error("somebody got in from a source that is kept out")
	}
	waitLine(t, y.proxy, 0, world.Message("ssh connection refused: its source failed to log in", "addr", from))
	conn, _, _, err := dialSSH(t.Context(), y.proxy.Host(), y.proxy, y.key)
	if err != nil {
		t.Fatalf("from another source: %v", err)
	}
	conn.Close()
	wantText(t, "the admin's status", y.proxy.Host().MustShell(t, world.Binary+" status --config "+world.ConfigFile), "per_source_penalties ")
}

// logIn logs in and out again, and returns how long the former took.
func (y *arena) logIn(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	conn, channels, requests, err := dialSSH(t.Context(), y.good, y.proxy, y.key)
	if err != nil {
		t.Fatalf("login: %v", err)
	}
	took := time.Since(began)
	ssh.NewClient(conn, channels, requests).Close()
	return took
}

const trickleMemory = 150 << 20

// testTrickle shows that sockets that trickle bytes keep nobody out, and cost little.
// Guards against places for strangers that are held for ever, and against memory for
// each.
func (y *arena) testTrickle(t *testing.T, sockets, logins int) {
	line := counted(t)
	peak := y.proxy.PeakRssAnon()
	crowd := newTricklers(t, y, sockets)
	var took []time.Duration
	for range logins {
		took = append(took, y.logIn(t))
		time.Sleep(20 * time.Millisecond)
	}
	line.saw(peak())
	slow := percentile(took, 99)
	line.note("%d sockets were opened, a login took %v, 99%% up to %v", crowd.opened.Load(), median(took), slow)
	t.Logf("%s; %s", strings.Join(line.notes, "; "), mebibytes(line.peak))
	if line.peak > trickleMemory {
		t.Errorf("the proxy took up to %s, want at most %s", mebibytes(line.peak), mebibytes(trickleMemory))
	}
	if n := crowd.opened.Load(); n < int64(sockets) {
		t.Errorf("%d sockets were opened: nothing was shown", n)
	}
	if soak() && slow >= 500*time.Millisecond {
		t.Errorf("99%% of logins took up to %v, want less than 500ms", slow)
	}
}

func percentile(all []time.Duration, n int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[(len(sorted)-1)*n/100]
}

// tricklers are sockets that send a byte now and then. One that is closed is opened
// again, not too often.
type tricklers struct {
	opened atomic.Int64
}

func newTricklers(t *testing.T, y *arena, n int) *tricklers {
	t.Helper()
	c := &tricklers{}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); all.Wait() })
	first := make(chan struct{}, n)
	for i := range n {
		all.Go(func() {
			once := first
			for ctx.Err() == nil {
				conn, err := y.hostile.Dial(ctx, "proxy:22")
				if err != nil {
					continue
				}
				c.opened.Add(1)
				if once != nil {
					once <- struct{}{}
					once = nil
				}
				trickle(ctx, conn, time.Duration(i%500)*time.Millisecond)
				sleep(ctx, 10*time.Second)
			}
		})
	}
	for range n {
		select {
		case <-first:
		case <-time.After(patience):
			t.Fatal("not all sockets could be opened")
		}
	}
	return c
}

func trickle(ctx context.Context, conn net.Conn, phase time.Duration) {
	defer conn.Close()
	sleep(ctx, phase)
	for _, b := range []byte("SSH-2.0-" + strings.Repeat("x", 200)) {
		if _, err := conn.Write([]byte{b}); err != nil || ctx.Err() != nil {
			return
		}
		sleep(ctx, 500*time.Millisecond)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

const unreadMemory = 512 << 20

// testNeverRead shows that sessions whose client reads nothing of what it asked for, and
// sends on all the same, take a bounded amount of memory; those beyond it are refused
// with a sentence, and others do not notice. Guards against windows of 2 MiB without
// number.
func (y *arena) testNeverRead(t *testing.T, connections, channels int) {
	line := counted(t)
	paths, _ := build(t, y.good, testbed.Derivation{Name: "large", OutputSize: 4 << 20})
	peak := y.proxy.PeakRssAnon()
	n := &neverReaders{y: y, path: paths[0]}
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(4)
	for range connections {
		g.Go(func() error { return n.connect(ctx, t, channels) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	build(t, y.good, testbed.Derivation{Name: "meanwhile", OutputSize: 8 << 20, Random: true})
	line.saw(peak())
	line.note("%d sessions were opened and %d refused", n.opened.Load(), n.refused.Load())
	t.Logf("%s; %s", strings.Join(line.notes, "; "), mebibytes(line.peak))
	if line.peak > unreadMemory {
		t.Errorf("the proxy took up to %s, want at most %s", mebibytes(line.peak), mebibytes(unreadMemory))
	}
	if n.opened.Load() < 5 || n.refused.Load() == 0 {
		t.Errorf("%d sessions were opened and %d refused: nothing was shown", n.opened.Load(), n.refused.Load())
	}
	if text, _ := n.sentence.Load().(string); !strings.Contains(text, "too much memory") {
		t.Errorf("refused with %q", text)
	}
	log := y.proxy.LogText()
	if lines := strings.Count(log, `"ssh session refused"`); lines == 0 || lines > 200 {
		t.Errorf("%d lines say that sessions are refused", lines)
	}
}

// neverReaders ask for a path in each of their sessions, do not read it, and send what
// nobody asked for.
type neverReaders struct {
	y               *arena
	path            string
	opened, refused atomic.Int64
	sentence        atomic.Value
}

// connect opens a connection and as many sessions as it gets.
func (n *neverReaders) connect(ctx context.Context, t *testing.T, channels int) error {
	conn, chans, requests, err := dialSSH(ctx, n.y.hostile, n.y.proxy, n.y.bad)
	if err != nil {
		return err
	}
	client := ssh.NewClient(conn, chans, requests)
	t.Cleanup(func() { client.Close() })
	for range channels {
		full := make(chan error, 1)
		go func() { full <- n.open(ctx, client) }()
		select {
		case err := <-full:
			var refusal *ssh.OpenChannelError
			switch {
			case errors.As(err, &refusal):
				n.refused.Add(1)
				n.sentence.Store(refusal.Message)
			case err != nil:
				return err
			default:
				n.opened.Add(1)
			}
		case <-time.After(5 * time.Second): // nothing is read of this connection any more
			return nil
		}
	}
	return nil
}

func (n *neverReaders) open(ctx context.Context, client *ssh.Client) error {
	pipes, err := execDaemon(client)
	if err != nil {
		return err
	}
	if _, err := worker.NewClient(ctx, pipes, worker.ClientOptions{}); err != nil {
		return err
	}
	const opNarFromPath = 38
	request := binary.LittleEndian.AppendUint64(nil, opNarFromPath)
	request = binary.LittleEndian.AppendUint64(request, uint64(len(n.path)))
	request = append(request, n.path...)
	request = append(request, make([]byte, (8-len(n.path)%8)%8)...)
	_, err = pipes.Write(append(request, make([]byte, 2<<20-64<<10)...))
	return err
}

// With all files in use the proxy accepts nobody, without turning in circles; who is
// there goes on, and so do builders and admin. Guards against accept in a loop, and
// against connections that take the last file from everybody.
func TestAcceptPausesWhenFilesAreUsedUp(t *testing.T) { testFiles(t, 140) }

func TestSoakAcceptPausesWhenFilesAreUsedUp(t *testing.T) {
	onlyInSoak(t)
	testFiles(t, 19_000) // a process may have 20,000 here, and this one has the other ends
}

func testFiles(t *testing.T, files int) {
	const reserve = 64
	y := startArena(t, ", max_connections: 100000, client_alive_interval: 10m", func(spec *world.ProxySpec) {
		spec.Host.Binds = map[string]string{"/usr/local/bin/real-nixbastion": os.Getenv("NIXBASTION_BIN")}
		spec.Binary = limitedProgram(t, files)
	})
	there, channels, requests, err := dialSSH(t.Context(), y.good, y.proxy, y.key)
	if err != nil {
		t.Fatal(err)
	}
	client := ssh.NewClient(there, channels, requests)
	defer client.Close()
	crowd := fillUp(t, y, files-reserve-1) // alice is there already
	waiting, err := y.hostile.Dial(t.Context(), "proxy:22")
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	waitLine(t, y.proxy, 0, world.Message("ssh connections at their limit, new ones wait"))

	before, err := y.proxy.CPU()
	if err != nil {
		t.Fatal(err)
	}
	waiting.SetReadDeadline(time.Now().Add(time.Second))
	if n, err := waiting.Read(make([]byte, 100)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection beyond the limit got %d bytes, %v", n, err)
	}
	after, err := y.proxy.CPU()
	if err != nil {
		t.Fatal(err)
	}
	if used := after - before; used > time.Second/2 {
		t.Errorf("the proxy used %v of CPU in a second in which nobody wanted anything", used)
	}
	pipes, err := execDaemon(client)
	if err != nil {
		t.Fatalf("a session on a connection that is there: %v", err)
	}
	if _, err := worker.NewClient(t.Context(), pipes, worker.ClientOptions{}); err != nil {
		t.Errorf("a session on a connection that is there: %v", err)
	}
	if status := y.proxy.Host().MustShell(t, world.Binary+" status --config "+world.ConfigFile); !strings.Contains(status, "builder") {
		t.Errorf("the admin got %q", status)
	}
	crowd[0].Close()
	waiting.SetReadDeadline(time.Now().Add(patience))
	if n, err := waiting.Read(make([]byte, 100)); n == 0 {
		t.Errorf("the connection that waited is not served after another one left: %v", err)
	}
}

// limitedProgram is the proxy with so many files.
func limitedProgram(t *testing.T, files int) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nixbastion")
	script := fmt.Sprintf("#!/bin/bash\nulimit -n %d && exec -a \"$0\" /usr/local/bin/real-nixbastion \"$@\"\n", files)
	if err := os.WriteFile(file, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// fillUp logs in n times and stays.
func fillUp(t *testing.T, y *arena, n int) []ssh.Conn {
	t.Helper()
	crowd := make([]ssh.Conn, n)
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(4)
	for i := range crowd {
		g.Go(func() error {
			conn, channels, requests, err := dialSSH(ctx, y.hostile, y.proxy, y.bad)
			if err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			crowd[i] = conn
			ssh.NewClient(conn, channels, requests)
			return nil
		})
	}
	t.Cleanup(func() {
		for _, conn := range crowd {
			if conn != nil {
				conn.Close()
			}
		}
	})
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return crowd
}
