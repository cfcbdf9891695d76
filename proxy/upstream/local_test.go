package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
	"nixbastion/policy"
)

// localDaemon is a daemon of this machine at a socket of its own.
type localDaemon struct {
	socket string
	store  nix.Store
	opts   worker.ServeOptions
	// answer, if set, is what happens to a connection instead.
	answer func(net.Conn)
	// linger holds up the end of each connection's process.
	linger func()

	listener net.Listener
	taken    atomic.Int32 // connections
	open     atomic.Int32
	done     sync.WaitGroup
}

// startDaemon makes a daemon that obeys the test; prepare may be nil.
func startDaemon(t *testing.T, prepare func(*localDaemon)) *localDaemon {
	t.Helper()
	d := &localDaemon{store: &fakeStore{}, opts: worker.ServeOptions{DaemonVersion: "2.34.8", Trust: nix.Trusted}}
	if prepare != nil {
		prepare(d)
	}
	dir, err := os.MkdirTemp("", "nix") // short: a socket's name has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d.socket = filepath.Join(dir, "socket")
	d.listen(t)
	t.Cleanup(d.stop)
	return d
}

func (d *localDaemon) listen(t *testing.T) {
	t.Helper()
	var err error
	if d.listener, err = net.Listen("unix", d.socket); err != nil {
		t.Fatal(err)
	}
	d.done.Go(func() {
		for {
			conn, err := d.listener.Accept()
			if err != nil {
				return
			}
			d.taken.Add(1)
			d.open.Add(1)
			d.done.Go(func() {
				defer d.open.Add(-1)
				defer conn.Close()
				d.serve(conn)
			})
		}
	})
}

func (d *localDaemon) serve(conn net.Conn) {
	if d.answer != nil {
		d.answer(conn)
		return
	}
	worker.Serve(context.Background(), conn, d.store, d.opts)
	if d.linger != nil {
		d.linger()
	}
}

func (d *localDaemon) stop() {
	d.listener.Close()
	d.done.Wait()
}

// localWorld is a pool with the daemon of this machine as its builder b1.
func localWorld(t *testing.T, d *localDaemon, opts Options) *world {
	t.Helper()
	w := &world{T: t, pool: NewPool(opts)}
	w.pool.Update([]policy.Builder{{Name: "b1", Socket: d.socket, MaxJobs: 2}})
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		w.pool.Close(ctx)
	})
	return w
}

// Guards against a local daemon that needs other rules than a builder far away:
// a session is used again, one waits ready, and a check tells the same things.
func TestLocalDaemonIsABuilder(t *testing.T) {
	d := startDaemon(t, nil)
	w := localWorld(t, d, Options{})
	w.get().Release()
	for d.taken.Load() < 2 || w.idle() < 2 { // the second is opened in advance
		time.Sleep(time.Millisecond)
	}
	for range 10 {
		s := w.get()
		w.works(s)
		s.Release()
	}
	if n := d.taken.Load(); n != 2 {
		t.Errorf("%d connections for one user after the other", n)
	}
	r, err := w.pool.Check(t.Context(), "b1")
	if err != nil {
		t.Fatal(err)
	}
	if r.Nix != "2.34.8" || r.Trust != nix.Trusted || r.Address != "unix://"+d.socket || r.Protocol != "1.38" || r.User == "" {
		t.Errorf("report: %+v", r)
	}
}

func (w *world) idle() int {
	b := w.pool.builders["b1"]
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.idle)
}

// Guards against a slot that is free while its build still runs: the end of a
// session is that of what the daemon forked, in the middle of a build, too.
func TestLocalSessionEndsWithItsProcess(t *testing.T) {
	ending, ended := make(chan struct{}), make(chan struct{})
	building := make(chan struct{})
	d := startDaemon(t, func(d *localDaemon) {
		d.store = &fakeStore{build: func(ctx context.Context, _ nix.Logger) (*nix.BuildResult, error) {
			close(building)
			<-ctx.Done() // the hang-up
			close(ending)
			<-ended
			return nil, ctx.Err()
		}}
	})
	w := localWorld(t, d, Options{})
	s := w.get()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-building
		cancel()
	}()
	if _, err := s.BuildDerivation(ctx, nix.Discard, somePaths(1)[0], &nix.BasicDerivation{}, nix.BuildNormal); !errors.Is(err, context.Canceled) || Broken(err) {
		t.Errorf("build: %v", err)
	}
	<-ending
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.d.process.(*localProcess).awaits(short); err == nil {
		t.Error("session counts as ended while its process runs")
	}
	close(ended)
	if err := s.End(t.Context()); err != nil {
		t.Errorf("end: %v", err)
	}
}

// awaits waits for the end without asking for it.
func (p *localProcess) awaits(ctx context.Context) error {
	select {
	case <-p.left:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Guards against waiting for ever for a daemon that does not let go, and against
// calling that an end.
func TestLocalProcessThatDoesNotEnd(t *testing.T) {
	release := make(chan struct{})
	d := startDaemon(t, func(d *localDaemon) { d.linger = func() { <-release } })
	w := localWorld(t, d, Options{EndTimeout: 100 * time.Millisecond})
	if err := w.get().End(t.Context()); !errors.Is(err, ErrNotSeenToEnd) {
		t.Errorf("end: %v", err)
	}
	close(release)
}

// Guards against the account and the setting that an admin has to fix not being
// named, and against a daemon that is not there being a riddle.
func TestLocalDaemonThatDoesNotServeUs(t *testing.T) {
	account := "account '" + ownAccount() + "'"
	for name, c := range map[string]struct {
		prepare func(*localDaemon)
		dialErr error
		kind    Kind
		words   []string
	}{
		"not trusted": {func(d *localDaemon) { d.opts.Trust = nix.NotTrusted }, nil, Untrusted,
			[]string{account, "trusted-users", "nix.conf", "unix://"}},
		"not allowed": {func(d *localDaemon) { d.answer = func(net.Conn) {} }, nil, Protocol,
			[]string{account, "allowed-users", "unix://"}},
		"refused": {func(d *localDaemon) { d.opts.Refuse = "not today" }, nil, Untrusted, []string{account, "not today"}},
		"no daemon": {nil, os.ErrNotExist, Unreachable,
			[]string{"unix://", "nix-daemon must run on this machine"}},
		"no permission": {nil, os.ErrPermission, Auth, []string{account, "unix://"}},
		"something else": {func(d *localDaemon) {
			d.answer = func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n") }
		}, nil, Protocol, []string{"HTTP/1.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t, c.prepare)
			opts := Options{}
			if c.dialErr != nil {
				opts.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, c.dialErr }
			}
			w := localWorld(t, d, opts)
			w.refused(c.kind, c.words...)
		})
	}
}

// Guards against a daemon that is asked for more sessions than a builder gets,
// and against a place that is not given back.
func TestLocalSessionsAreBounded(t *testing.T) {
	d := startDaemon(t, nil)
	w := localWorld(t, d, Options{})
	const most = 10 // 2 * MaxJobs + 6
	for range 2 {
		var sessions []*Session
		for range most {
			sessions = append(sessions, w.get())
		}
		short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if _, err := w.pool.Get(short, "b1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one too many: %v", err)
		}
		cancel()
		more := make(chan error)
		go func() {
			s, err := w.pool.Get(t.Context(), "b1")
			if err == nil {
				err = s.End(t.Context())
			}
			more <- err
		}()
		for _, s := range sessions {
			if err := s.End(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if err := <-more; err != nil {
			t.Errorf("after a place was free: %v", err)
		}
	}
}

// Guards against an idle session of a daemon that was restarted being given out,
// and against a builder that stays down after that.
func TestRestartedLocalDaemonIsFoundAgain(t *testing.T) {
	restart, cut := context.WithCancel(t.Context())
	d := startDaemon(t, func(d *localDaemon) {
		d.answer = func(c net.Conn) {
			if restart.Err() == nil { // the new daemon is not cut
				stop := context.AfterFunc(restart, func() { c.Close() })
				defer stop()
			}
			worker.Serve(context.Background(), c, &fakeStore{}, worker.ServeOptions{Trust: nix.Trusted})
		}
	})
	w := localWorld(t, d, Options{BackOffMin: time.Millisecond, OnState: nil})
	s := w.get()
	cut()
	var err error
	for err == nil { // up to the moment in which it is cut
		err = s.AddTempRoots(t.Context(), somePaths(1))
	}
	w.isFault(err, Lost, "unix://")
	s.Release()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if s, err := w.pool.Get(t.Context(), "b1"); err == nil {
			if _, err = s.QueryValidPaths(t.Context(), nil, false); err == nil {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("builder does not come back")
		}
	}
}

// Guards against a burst of builds that finds the daemon's backlog full and
// calls the builder down.
func TestFullBacklogIsTriedAgain(t *testing.T) {
	d := startDaemon(t, nil)
	var tries atomic.Int32
	w := localWorld(t, d, Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if tries.Add(1) <= 2 {
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.EAGAIN)}
		}
		return dialNet(ctx, network, address)
	}})
	w.works(w.get())
}

// Guards against a shutdown that hangs on a local session in use, and against
// descriptors that are left behind.
func TestCloseCutsLocalSessions(t *testing.T) {
	before := descriptors(t)
	d := startDaemon(t, nil)
	w := localWorld(t, d, Options{})
	s := w.get()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	started := time.Now()
	if err := w.pool.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close: %v", err)
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	w.isFault(s.AddTempRoots(t.Context(), somePaths(1)), Lost, "closed")
	d.stop()
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// descriptors counts those of this process that are sockets or epolls.
func descriptors(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	for _, e := range entries {
		to, _ := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if strings.HasPrefix(to, "socket:") || strings.Contains(to, "eventpoll") {
			n++
		}
	}
	return n
}

// Guards against a builder that moves to the socket and is reached over ssh
// until the next start, or the other way round.
func TestSocketIsAnotherWay(t *testing.T) {
	far := newTarget(&policy.Builder{Name: "b1", Address: "b1:22"})
	near := newTarget(&policy.Builder{Name: "b1", Socket: "/run/socket"})
	other := newTarget(&policy.Builder{Name: "b1", Socket: "/run/other"})
	for _, pair := range [][2]*target{{far, near}, {near, far}, {near, other}} {
		if pair[0].sameAs(pair[1]) {
			t.Error(fmt.Errorf("%s counts as %s", pair[0].address, pair[1].address))
		}
	}
	if !near.sameAs(newTarget(&policy.Builder{Name: "b1", Socket: "/run/socket", MaxJobs: 9})) {
		t.Error("a socket does not count as itself")
	}
}
