package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// idleMemory is what the proxy may take for a thousand clients that do nothing,
// in bytes.
const idleMemory = 150 << 20

// A thousand clients that are logged in and do nothing cost little, and none of
// them is lost while it answers keep-alives. Guards against buffers, goroutines
// and garbage per connection.
func TestThousandIdleConnectionsNeedLittleMemory(t *testing.T) { testIdle(t, 1) }

func TestSoakThousandIdleConnectionsNeedLittleMemory(t *testing.T) {
	onlyInSoak(t)
	testIdle(t, 3)
}

// testIdle keeps the clients for some keep-alives: without a session, then with
// one each, then after a few of them have worked, which leaves garbage behind.
func testIdle(t *testing.T, keepAlives int64) {
	const clients, workers = 1000, 40
	line := counted(t)
	proxy, from, key := startIdleProxy(t)
	began, err := proxy.RssAnon()
	if err != nil {
		t.Fatal(err)
	}
	peak := proxy.PeakRssAnon()
	all := newCrowd(t, proxy, from, key, clients)
	all.first(t, clients, (*idler).logIn)
	rest := restingMemory(t, proxy, all, keepAlives)
	line.note("at rest %s before, %s with %d connections", mebibytes(began), mebibytes(rest), clients)

	all.first(t, clients, (*idler).openSession)
	withSessions := restingMemory(t, proxy, all, keepAlives)
	line.note("%s with a session on each", mebibytes(withSessions))

	all.first(t, workers, (*idler).ask)
	line.note("%s when some have worked", mebibytes(restingMemory(t, proxy, all, keepAlives)))
	line.saw(peak())
	t.Logf("the proxy takes %s; most %s", strings.Join(line.notes, "; "), mebibytes(line.peak))
	if line.peak > idleMemory {
		t.Errorf("the proxy took up to %s, want at most %s", mebibytes(line.peak), mebibytes(idleMemory))
	}
	all.wantAlive(t)
}

// restingMemory is what the proxy takes once all clients have answered some
// keep-alives.
func restingMemory(t *testing.T, proxy *world.Proxy, all *crowd, keepAlives int64) int64 {
	t.Helper()
	all.awaitKeepAlives(t, keepAlives)
	rss, err := proxy.RssAnon()
	if err != nil {
		t.Fatal(err)
	}
	return rss
}

// startIdleProxy makes a proxy that has a builder which it never needs, and a
// host from which clients come.
func startIdleProxy(t *testing.T) (*world.Proxy, *testbed.Host, testbed.Key) {
	t.Helper()
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: hosts[0]}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}, MaxConnections: 1200}},
	})
	setMachines(t, hosts[1], proxy.Machine(key))
	return proxy, hosts[1], key
}

// A crowd is many clients of this process on a host of the bed.
type crowd struct {
	proxy *world.Proxy
	from  *testbed.Host
	key   testbed.Key
	all   []*idler
	// answered is signalled at each keep-alive.
	answered chan struct{}
}

// An idler is one client that does nothing.
type idler struct {
	*crowd
	conn       *ssh.Client
	session    *worker.Client
	keepAlives atomic.Int64  // answered
	gone       chan struct{} // closed when the connection ended
}

func newCrowd(t *testing.T, proxy *world.Proxy, from *testbed.Host, key testbed.Key, n int) *crowd {
	c := &crowd{proxy: proxy, from: from, key: key, answered: make(chan struct{}, 1)}
	for range n {
		c.all = append(c.all, &idler{crowd: c, gone: make(chan struct{})})
	}
	t.Cleanup(c.leave)
	return c
}

// first has the first n clients do something, a few at a time.
func (c *crowd) first(t *testing.T, n int, do func(*idler, context.Context) error) {
	t.Helper()
	const atOnce = 4 // far from what looks like a flood of logins
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(atOnce)
	for _, i := range c.all[:n] {
		g.Go(func() error { return do(i, ctx) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// awaitKeepAlives returns when each client has answered n more.
func (c *crowd) awaitKeepAlives(t *testing.T, n int64) {
	t.Helper()
	goals := make([]int64, len(c.all))
	for k, i := range c.all {
		goals[k] = i.keepAlives.Load() + n
	}
	deadline := time.After(patience + time.Duration(n)*time.Minute)
	for k, i := range c.all {
		for i.keepAlives.Load() < goals[k] {
			select {
			case <-c.answered:
			case <-i.gone:
				t.Fatalf("client %d lost its connection", k)
			case <-deadline:
				t.Fatalf("client %d was not asked for a sign of life", k)
			}
		}
	}
}

func (c *crowd) wantAlive(t *testing.T) {
	t.Helper()
	for k, i := range c.all {
		select {
		case <-i.gone:
			t.Errorf("client %d lost its connection", k)
		default:
		}
	}
}

func (c *crowd) leave() {
	var leaving sync.WaitGroup
	for _, i := range c.all {
		if i.conn != nil {
			i.conn.Close()
			leaving.Go(func() { <-i.gone })
		}
	}
	leaving.Wait()
}

func (i *idler) logIn(ctx context.Context) error {
	conn, channels, requests, err := dialSSH(ctx, i.from, i.proxy, i.key)
	if err != nil {
		return err
	}
	i.conn = ssh.NewClient(conn, channels, i.answerAll(requests))
	go func() { conn.Wait(); close(i.gone) }()
	return nil
}

// answerAll counts what asks for a sign of life, and leaves the answer to the
// SSH library.
func (i *idler) answerAll(requests <-chan *ssh.Request) <-chan *ssh.Request {
	passed := make(chan *ssh.Request)
	go func() {
		defer close(passed)
		for r := range requests {
			passed <- r
			i.keepAlives.Add(1)
			select {
			case i.answered <- struct{}{}:
			default:
			}
		}
	}()
	return passed
}

// openSession runs the handshake of Nix's protocol and then says nothing.
func (i *idler) openSession(ctx context.Context) (err error) {
	pipes, err := execDaemon(i.conn)
	if err != nil {
		return err
	}
	i.session, err = worker.NewClient(ctx, pipes, worker.ClientOptions{})
	return err
}

// ask has the proxy look for paths that it does not have, a few times.
func (i *idler) ask(ctx context.Context) error {
	const times, paths = 200, 200
	var wanted []nix.StorePath
	for n := range paths {
		path, err := nix.ParseStorePath(fmt.Sprintf("%s/%032d-nobody-has-this", nix.StoreDir, n))
		if err != nil {
			return err
		}
		wanted = append(wanted, path)
	}
	for range times {
		valid, err := i.session.QueryValidPaths(ctx, wanted, false)
		if err != nil {
			return err
		}
		if len(valid) != 0 {
			return fmt.Errorf("the proxy has %v, which nobody made", valid)
		}
	}
	return nil
}

// dialSSH logs in to the proxy from a host, whose host key must be the proxy's.
func dialSSH(ctx context.Context, from *testbed.Host, proxy *world.Proxy, key testbed.Key) (ssh.Conn, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	conn, err := from.Dial(ctx, proxy.Host().Name()+":22")
	if err != nil {
		return nil, nil, nil, err
	}
	hostKey, _, _, _, err := ssh.ParseAuthorizedKey([]byte(proxy.HostKey()))
	if err != nil {
		return nil, nil, nil, err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, proxy.Host().Name(), &ssh.ClientConfig{
		User:            "nix",
		Auth:            []ssh.AuthMethod{ssh.PublicKeys(key.Signer())},
		HostKeyCallback: ssh.FixedHostKey(hostKey),
	})
	if err != nil {
		return nil, nil, nil, errors.Join(err, ignoreClosed(conn.Close()))
	}
	return c, channels, requests, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// daemonPipes are the streams of a remote nix-daemon.
type daemonPipes struct {
	io.Reader
	io.WriteCloser
	session *ssh.Session
}

func (p *daemonPipes) Close() error { return p.session.Close() }

// execDaemon asks for nix-daemon on a connection.
func execDaemon(conn *ssh.Client) (*daemonPipes, error) {
	session, err := conn.NewSession()
	if err != nil {
		return nil, err
	}
	p := &daemonPipes{session: session}
	if p.Reader, err = session.StdoutPipe(); err != nil {
		return nil, err
	}
	if p.WriteCloser, err = session.StdinPipe(); err != nil {
		return nil, err
	}
	return p, session.Start("nix-daemon --stdio")
}
