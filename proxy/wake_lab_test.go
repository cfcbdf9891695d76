package proxy

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// bed is a lab's builder that sleeps: nothing listens at its address then.
type bed struct {
	*labBuilder
	t       testing.TB
	address string

	mu       sync.Mutex // guards what follows
	commands []string
	fails    error // of the next wake command
}

// beds puts builders of a lab to bed. Nobody has asked for them yet.
func (l *lab) beds(sleepAfter time.Duration, builders ...*labBuilder) []*bed {
	l.Helper()
	var beds []*bed
	for _, b := range builders {
		bed := &bed{labBuilder: b, t: l.TB, address: b.listener.Addr().String()}
		b.die()
		beds = append(beds, bed)
		for i := range l.proxy.policy.Current().Builders {
			if p := &l.proxy.policy.Current().Builders[i]; p.Name == b.name {
				p.Wake = policy.Wake{Command: []string{"wake", b.name}, Timeout: time.Minute}
				if sleepAfter > 0 {
					p.Wake.Sleep, p.Wake.After = []string{"sleep", b.name}, sleepAfter
				}
			}
		}
	}
	l.proxy.sleepers.run = func(_ context.Context, argv, _ []string) (string, error) {
		i := slices.IndexFunc(beds, func(b *bed) bool { return b.name == argv[1] })
		return "", beds[i].command(argv[0])
	}
	l.proxy.sleepers.update(l.proxy.policy.Current().Builders)
	return beds
}

func (b *bed) command(what string) error {
	b.mu.Lock()
	b.commands = append(b.commands, what)
	err := b.fails
	b.mu.Unlock()
	switch {
	case what == "sleep": // of whose connections this end hears in a moment
		for range 100 {
			if b.connections() == 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if n := b.connections(); n > 0 {
			b.t.Errorf("%s is put to sleep with %d connections", b.name, n)
		}
		b.die()
	case err == nil:
		b.getUp()
	}
	return err
}

// getUp has the builder listen again at its address.
func (b *bed) getUp() {
	listener, err := net.Listen("tcp", b.address)
	if err != nil {
		b.t.Errorf("%s gets up: %v", b.name, err)
		return
	}
	b.listener = listener
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			b.track(conn, true)
			serving.Go(func() {
				defer b.track(conn, false)
				defer conn.Close()
				b.serve(conn, &serving)
			})
		}
	})
	b.t.Cleanup(func() {
		listener.Close()
		b.cut()
		serving.Wait()
	})
}

func (b *bed) ran() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.commands, " ")
}

// Guards against builds that fail, or go nowhere, since their builder sleeps, and
// against a builder that is woken by those who only look.
func TestBuildWakesItsBuilder(t *testing.T) {
	b1 := newLabBuilder("b1")
	b1.maxJobs = 2
	l := newLab(t, b1)
	sleeping := l.beds(0, b1)[0]
	l.proxy.lookAtBuilders()
	eventually(t, "the builder counts as asleep", func() bool {
		return strings.Contains(l.admin("status"), "b1  asleep  0/2 busy")
	})
	if reason := l.proxy.refusal(&policy.Principal{Domain: "default", NoBuilder: policy.NoBuilderRefuse}); reason != "" {
		t.Errorf("clients are sent away: %s", reason)
	}
	if got := sleeping.ran(); got != "" {
		t.Errorf("ran %q for nobody", got)
	}
	var log lines
	result, err := l.client("alice").build(t.Context(), &log, "one")
	mustSucceed(t, result, err)
	if err := <-l.begin("bob", "two"); err != nil {
		t.Error(err)
	}
	if got := sleeping.ran(); got != "wake" {
		t.Errorf("ran %q", got)
	}
	for _, want := range []string{"waking builder 'b1' (up to 60 s)", "builder 'b1' is awake after "} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %q in:\n%s", want, &log)
		}
	}
}

// Guards against a build that fails with the builder that does not wake.
func TestBuilderThatDoesNotWakeMeansAnother(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	l := newLab(t, b1, b2)
	sleeping := l.beds(0, b1)[0]
	sleeping.fails = context.DeadlineExceeded
	l.proxy.router.SetUp("b2", false, "not yet")
	var log lines
	alice := l.client("alice")
	ended := make(chan error, 1)
	var result *nix.BuildResult
	go func() {
		var err error
		result, err = alice.build(t.Context(), &log, "one")
		ended <- err
	}()
	eventually(t, "the builder is woken", func() bool { return sleeping.ran() == "wake" })
	if err := <-ended; err != nil || result.Status.Success() || !strings.Contains(result.ErrorMsg, "could not be woken") {
		t.Errorf("with no other builder: %+v, %v", result, err)
	}
	l.proxy.router.SetUp("b2", true, "")
	if err := <-l.begin("alice", "two"); err != nil {
		t.Error(err)
	}
	if got := b2.built(); !slices.Equal(got, []string{"two"}) || sleeping.ran() != "wake" {
		t.Errorf("b2 built %q, ran %q", got, sleeping.ran())
	}
}

// Guards against a builder that is put to sleep with connections open or outputs on
// their way, and against one that builds no more after it has slept.
func TestIdleBuilderSleepsAndIsWokenAgain(t *testing.T) {
	b1 := newLabBuilder("b1")
	read := make(chan struct{})
	b1.onNar = func(context.Context, nix.StorePath) { <-read }
	l := newLab(t, b1)
	sleeping := l.beds(300*time.Millisecond, b1)[0]
	ended := l.begin("alice", "one")
	eventually(t, "the outputs are on their way", func() bool { return len(b1.given()) == 1 })
	time.Sleep(time.Second) // in which nothing may happen
	if got := sleeping.ran(); got != "wake" {
		t.Errorf("ran %q while an output is fetched", got)
	}
	close(read)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	eventually(t, "the builder sleeps", func() bool { return l.proxy.sleepers.isAsleep("b1") })
	if err := <-l.begin("bob", "two"); err != nil {
		t.Error(err)
	}
	if got := sleeping.ran(); !strings.HasPrefix(got, "wake sleep wake") {
		t.Errorf("ran %q", got)
	}
}
