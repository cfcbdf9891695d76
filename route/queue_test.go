package route

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// waitingRequest is an Acquire that runs on a goroutine of its own.
type waitingRequest struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu   sync.Mutex
	said []string

	lease *Lease // after done
	err   error  // after done
}

// start acquires in the background and returns once that waits or is over. It is
// for tests inside a synctest bubble.
func start(t *testing.T, r *Router, req Request) *waitingRequest {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &waitingRequest{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.lease, w.err = r.Acquire(ctx, req, w.onWait)
	}()
	synctest.Wait()
	return w
}

func (w *waitingRequest) onWait(news Waiting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, news.String())
}

func (w *waitingRequest) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.said) == 0 {
		return ""
	}
	return w.said[len(w.said)-1]
}

func (w *waitingRequest) waits() bool {
	synctest.Wait()
	return !isClosed(w.done)
}

// got returns the builder, empty while it waits or if it failed.
func (w *waitingRequest) got() string {
	if w.waits() || w.lease == nil {
		return ""
	}
	return w.lease.Builder()
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// TestSlotsAreNeverExceeded guards against two requests that see the same free slot.
func TestSlotsAreNeverExceeded(t *testing.T) {
	r := newRouter(linux("b1", 2), linux("b2", 3).fast(2))
	running := map[string]*atomic.Int32{"b1": {}, "b2": {}, "p0": {}, "p1": {}, "p2": {}, "p3": {}}
	max := map[string]int32{"b1": 2, "b2": 3, "p0": 1, "p1": 1, "p2": 1, "p3": 1}
	enter := func(name string) {
		if n := running[name].Add(1); n > max[name] {
			t.Errorf("%d run at once on %s", n, name)
		}
	}
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			req := askLinux()
			req.Principal, req.PrincipalMaxJobs = fmt.Sprint("p", i%4), 1
			for range 8 {
				lease, err := r.Acquire(t.Context(), req, func(Waiting) {})
				if err != nil {
					t.Error(err)
					return
				}
				enter(lease.Builder())
				enter(req.Principal)
				running[lease.Builder()].Add(-1)
				running[req.Principal].Add(-1)
				lease.Release()
			}
		})
	}
	all.Wait()
	if len(r.lanes)+len(r.principals)+r.waiting != 0 || busy(r, "b1")+busy(r, "b2") != 0 {
		t.Errorf("left behind: %+v", r.Status())
	}
}

// Guards against builders with more builds than slots where the queue is longer than a
// plan looks at.
func TestSlotsAreNotExceededBehindThePlan(t *testing.T) {
	const builders = 50
	b := newBench(builders, 0)
	b.learn()
	for b.waiting < 1000 {
		b.ask()
	}
	for range 300 {
		b.now = b.now.Add(100 * time.Millisecond)
		l := b.running[0]
		b.running = b.running[1:]
		l.Built()
		for _, p := range b.places {
			if p.busy > p.MaxJobs {
				t.Fatalf("%s has %d builds, and %d slots", p.Name, p.busy, p.MaxJobs)
			}
		}
	}
	if b.waiting > 1000-150 {
		t.Errorf("%d still wait: slots were not filled", b.waiting)
	}
}

// TestFirstComeFirstServed guards against a request that is overtaken by a later one
// for the same slots, whoever asks.
func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(linux("b1", 1))
		lease := take(t, r, askLinux())
		var queue []*waitingRequest
		for i := range 6 {
			req := askLinux()
			req.Principal = fmt.Sprint("p", i%2)
			queue = append(queue, start(t, r, req))
		}
		for i, first := range queue {
			lease.Release()
			if first.waits() {
				t.Fatalf("request %d waits though a slot is free: %s", i, first.last())
			}
			for j, later := range queue[i+1:] {
				if !later.waits() {
					t.Fatalf("request %d was served before request %d", i+1+j, i)
				}
			}
			lease = first.lease
		}
	})
}

// TestQueueIsPassedByWhoCanRun guards against a request that holds up others which
// builders could run that it cannot use.
func TestQueueIsPassedByWhoCanRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(linux("b1", 1), arm("b2", 1))
		lease := take(t, r, askLinux())
		first := start(t, r, askLinux())
		take(t, r, ask("aarch64-linux"))
		expect(t, "first", first.last(), "waiting: next in the queue; for b1 in about 1m0s; b1 1/1 busy, b2 system is aarch64-linux, not x86_64-linux")
		second := start(t, r, ask("aarch64-linux"))
		expect(t, "second", second.last(), "waiting: next in the queue; b2 1/1 busy, b1 system is x86_64-linux, not aarch64-linux")
		lease.Release()
		expect(t, "first", first.got(), "b1")
		second.cancel()
	})
}

// TestPrincipalLimit guards against one principal that takes all slots, and against
// its queue holding up others.
func TestPrincipalLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(linux("b1", 3))
		alice := askLinux()
		alice.PrincipalMaxJobs = 1
		lease := take(t, r, alice)
		second := start(t, r, alice)
		expect(t, "second", second.last(), "waiting: next in the queue; alice runs 1 of at most 1 builds; b1 1/3 busy")
		bob := askLinux()
		bob.Principal = "bob"
		take(t, r, bob)
		lease.Release()
		expect(t, "second", second.got(), "b1")

		third := start(t, r, alice)
		alice.PrincipalMaxJobs = 2
		fourth := start(t, r, alice)
		expect(t, "third, after the limit was raised", third.got(), "b1")
		if !fourth.waits() {
			t.Error("the raised limit was passed")
		}
		fourth.cancel()
	})
}

// Guards against a queue that goes on under the limit of before, until its principal asks
// for another build or for ever, as requests of before are made again.
func TestLimitsOfPrincipalsHoldForThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(linux("b1", 4))
		alice := askLinux()
		alice.PrincipalMaxJobs = 1
		limit := func(n int) {
			a := alice.Asker
			a.PrincipalMaxJobs = n
			r.SetAskers([]Asker{a})
		}
		first := take(t, r, alice)
		second, third := start(t, r, alice), start(t, r, alice)
		limit(2)
		expect(t, "second, after the limit was raised", second.got(), "b1")
		if !third.waits() {
			t.Error("the raised limit was passed")
		}
		fourth := start(t, r, alice) // says 1
		limit(3)
		expect(t, "third, although a later request says less", third.got(), "b1")
		limit(1)
		first.Release()
		second.lease.Release()
		if !fourth.waits() {
			t.Error("the lowered limit was passed")
		}
		third.lease.Release()
		expect(t, "fourth", fourth.got(), "b1")
		r.SetAskers(nil)
		alice.PrincipalMaxJobs = 2
		expect(t, "fifth, of a principal that is not in the policy", start(t, r, alice).got(), "b1")
	})
}

// TestCancelFreesThePlace guards against a client that left and is still waited for.
func TestCancelFreesThePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(linux("b1", 1))
		lease := take(t, r, askLinux())
		first, second := start(t, r, askLinux()), start(t, r, askLinux())
		expect(t, "second", second.last(), "waiting: 1 ahead; b1 1/1 busy")
		first.cancel()
		if first.waits() || !errors.Is(first.err, context.Canceled) {
			t.Fatalf("the cancelled request ended with %v", first.err)
		}
		time.Sleep(tellEvery) // of the bubble's clock
		synctest.Wait()
		expect(t, "second", second.last(), "waiting: next in the queue; b1 1/1 busy")
		lease.Release()
		expect(t, "second", second.got(), "b1")
	})
}

// TestCancelGivesBackWhatCameTooLate guards against a slot that is lost for ever
// because it was given in the moment in which the client left.
func TestCancelGivesBackWhatCameTooLate(t *testing.T) {
	r := newRouter(linux("b1", 1))
	lease := take(t, r, askLinux())
	w, err := r.enter(askLinux(), func() {})
	if err != nil {
		t.Fatal(err)
	}
	lease.Release()
	if w.lease == nil {
		t.Fatal("not placed")
	}
	r.leave(w)
	take(t, r, askLinux()).Release()
}

// TestEndedContextTakesNothing guards against work for a client that has left.
func TestEndedContextTakesNothing(t *testing.T) {
	r := newRouter(linux("b1", 1))
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the client is gone")
	cancel(gone)
	if _, err := r.Acquire(ctx, askLinux(), nil); !errors.Is(err, gone) || busy(r, "b1") != 0 {
		t.Errorf("got %v with %d busy", err, busy(r, "b1"))
	}
}

// TestReleaseCountsOnce guards against a slot that is freed twice.
func TestReleaseCountsOnce(t *testing.T) {
	r := newRouter(linux("b1", 2))
	take(t, r, askLinux())
	lease := take(t, r, askLinux())
	lease.Release()
	lease.Release()
	if busy(r, "b1") != 1 {
		t.Errorf("%d busy after one of two was released twice", busy(r, "b1"))
	}
}

// TestQueueIsBounded guards against a queue without end, and against a refusal of
// what need not wait.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{QueueLimit: 1})
		r.SetBuilders([]Builder{linux("b1", 1), arm("b2", 1)})
		take(t, r, askLinux())
		first := start(t, r, askLinux())
		if _, err := r.Acquire(t.Context(), askLinux(), nil); !errors.Is(err, ErrQueueFull) {
			t.Errorf("got %v", err)
		}
		take(t, r, ask("aarch64-linux"))
		refused(t, r, askLinux("kvm"), NoneMatches, "a 'x86_64-linux' with features {kvm} is required to build, but no builder can run it:\n"+
			"  b1: lacks feature kvm\n  b2: system is aarch64-linux, not x86_64-linux; lacks feature kvm")
		first.cancel()
		first.waits()
		second := start(t, r, askLinux())
		expect(t, "second", second.last(), "waiting: next in the queue; b1 1/1 busy, b2 system is aarch64-linux, not x86_64-linux")
		second.cancel()
	})
}

// TestReloadWhileWaiting guards against requests that wait for a builder which is
// gone, or do not see one that is new, and against leases that a reload breaks.
func TestReloadWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(linux("b1", 1), linux("k", 1).with("kvm"))
		take(t, r, askLinux())
		onGone := take(t, r, askLinux("kvm"))
		plain, kvm := start(t, r, askLinux()), start(t, r, askLinux("kvm"))

		r.SetBuilders([]Builder{linux("b1", 1)})
		var none *NoBuilderError
		if kvm.waits() || !errors.As(kvm.err, &none) || none.Kind != NoneMatches {
			t.Errorf("nobody can run it any more, and it ended with %v", kvm.err)
		}
		expect(t, "plain", plain.last(), "waiting: next in the queue; b1 1/1 busy")
		if got := busy(r, "k"); got != 1 {
			t.Errorf("the lease on the removed builder counts %d", got)
		}

		r.SetBuilders([]Builder{linux("b1", 1), linux("k", 1).with("kvm")})
		if !plain.waits() {
			t.Error("a builder that came back forgot its taken slot")
		}
		r.SetBuilders([]Builder{linux("b1", 1), linux("new", 1)})
		expect(t, "plain", plain.got(), "new")
		onGone.Release()
		onGone.Release()
		if got := busy(r, "k"); got != -1 {
			t.Errorf("the removed builder is still known, with %d busy", got)
		}
	})
}

// TestReloadWithFewerSlots guards against more builds than there are slots now.
func TestReloadWithFewerSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(linux("b1", 3))
		leases := []*Lease{take(t, r, askLinux()), take(t, r, askLinux()), take(t, r, askLinux())}
		r.SetBuilders([]Builder{linux("b1", 1)})
		next := start(t, r, askLinux())
		for i, want := range []string{"2/1", "1/1"} {
			leases[i].Release()
			if !next.waits() {
				t.Fatal("placed above the new number of slots")
			}
			expect(t, "next", next.last(), "waiting: next in the queue; b1 "+want+" busy")
		}
		leases[2].Release()
		expect(t, "next", next.got(), "b1")
	})
}

// TestDownBuildersAreSkipped guards against builds on a builder that cannot be
// reached while another can, and against a connection that ends a suspension.
func TestDownBuildersAreSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(linux("b1", 1).fast(9), linux("b2", 1))
		r.SetUp("b1", false, "connection refused")
		take(t, r, askLinux())
		next := start(t, r, askLinux())
		expect(t, "next", next.last(), "waiting: next in the queue; b2 1/1 busy, b1 down: connection refused")
		r.Suspend("b1", "out of disk", time.Now().Add(time.Minute))
		r.SetUp("b1", true, "")
		expect(t, "next, suspended", next.got(), "")
		time.Sleep(time.Minute) // of the bubble's clock
		expect(t, "next, after the suspension", next.got(), "b1")
	})
}

// TestSuspensionCanBeLifted guards against a penalty that only time ends.
func TestSuspensionCanBeLifted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(linux("b1", 1))
		r.Suspend("b1", "out of disk", time.Now().Add(time.Hour))
		req := askLinux()
		req.Patience = 2 * time.Hour
		w := start(t, r, req)
		r.Suspend("b1", "", time.Time{})
		expect(t, "lifted", w.got(), "b1")
	})
}

// TestPatienceWithBuildersThatAreDown guards against a hang while everything is
// down, and against a failure in the moment in which a connection is made anew.
func TestPatienceWithBuildersThatAreDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(linux("b1", 1), arm("b2", 1))
		r.SetUp("b1", false, "connection refused")
		req := askLinux()
		req.Patience = 3 * time.Second
		first := start(t, r, req)
		time.Sleep(2 * time.Second) // of the bubble's clock
		second := start(t, r, req)
		time.Sleep(time.Second)
		var none *NoBuilderError
		if first.waits() || !errors.As(first.err, &none) || none.Kind != AllDown {
			t.Fatalf("ended with %v", first.err)
		}
		if !second.waits() {
			t.Fatal("the second one had no patience of its own")
		}
		r.SetUp("b1", true, "")
		expect(t, "second", second.got(), "b1")

		third := start(t, r, req)
		time.Sleep(time.Hour)
		expect(t, "third, busy is not down", third.last(), "waiting: next in the queue; for b1 in about 1m0s; b1 1/1 busy, b2 system is aarch64-linux, not x86_64-linux")
		r.SetUp("b1", false, "reset")
		time.Sleep(3 * time.Second)
		if third.waits() || !errors.As(third.err, &none) {
			t.Errorf("ended with %v", third.err)
		}
	})
}

// TestRecheckFollowsAnotherClock guards those that drive the router with a clock of
// their own.
func TestRecheckFollowsAnotherClock(t *testing.T) {
	now := frozen()
	r := New(Options{Now: func() time.Time { return now }})
	r.SetBuilders([]Builder{linux("b1", 1)})
	r.Suspend("b1", "", now.Add(time.Hour))
	var lease *Lease
	if _, err := r.Submit(askLinux(), func(l *Lease, err error) { lease = l }); err != nil {
		t.Fatal(err)
	}
	if due := r.NextDue(); lease != nil || !due.Equal(now.Add(time.Hour)) {
		t.Fatalf("lease %v, next due %s", lease, due)
	}
	now = now.Add(time.Hour)
	r.Recheck()
	if lease == nil || !r.NextDue().IsZero() {
		t.Fatalf("lease %v, next due %s", lease, r.NextDue())
	}
}

// TestTheLaterOfTwoBuildersCounts guards the slots of a builder that is named twice.
func TestTheLaterOfTwoBuildersCounts(t *testing.T) {
	r := newRouter(linux("b1", 1), linux("b1", 2))
	take(t, r, askLinux())
	take(t, r, askLinux())
	want := "a 'x86_64-linux' with features {}: waits for b1\n  estimate: 1m0s at speed 1, a guess\n  b1: 2/2 busy, speed 1, nothing missing; done in 2m3s (wait 1m0s, build 1m0s, crowding 0.6s, penalty 2.4s)"
	expect(t, "decision", r.Explain(askLinux()).String(), want)
	want = "a 'x86_64-linux' with features {kvm}: no builder can run it\n  estimate: 1m0s at speed 1, a guess\n  b1: lacks feature kvm"
	expect(t, "decision", r.Explain(askLinux("kvm")).String(), want)
}

// TestRemovedBuildersForgetTheirTroubles guards against a builder that comes back and
// is still down, though nobody watches it any more.
func TestRemovedBuildersForgetTheirTroubles(t *testing.T) {
	r := newRouter(linux("b1", 2))
	take(t, r, askLinux())
	r.SetUp("b1", false, "connection refused")
	r.SetBuilders(nil)
	r.SetUp("b1", false, "connection refused")
	r.SetBuilders([]Builder{linux("b1", 2)})
	take(t, r, askLinux())
}

// TestNewsIsToldOnceAndRarely guards against silence, against a line that only
// repeats the last one, and against ten thousand lines for one in the back.
func TestNewsIsToldOnceAndRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(linux("b1", 1))
		lease := take(t, r, askLinux())
		var ahead []*waiter
		for range 1000 {
			w, err := r.enter(askLinux(), func() {})
			if err != nil {
				t.Fatal(err)
			}
			ahead = append(ahead, w)
		}
		last := start(t, r, askLinux())
		for _, w := range ahead {
			lease.Release()
			lease = w.lease
			time.Sleep(2 * tellEvery) // of the bubble's clock
		}
		synctest.Wait()
		lines := slices.Clone(last.said)
		expect(t, "at once", lines[0], "waiting: 1000 ahead; b1 1/1 busy")
		for i := range 10 {
			expect(t, "near the front", lines[len(lines)-2-i], fmt.Sprintf("waiting: %d ahead; b1 1/1 busy", i+1))
		}
		expect(t, "at last", lines[len(lines)-1], "waiting: next in the queue; b1 1/1 busy")
		if len(lines) > 80 || len(slices.Compact(lines)) != len(last.said) {
			t.Errorf("%d lines", len(last.said))
		}
		lease.Release()
		expect(t, "last", last.got(), "b1")
	})
}

// TestNewsOfThePrincipal guards against a reason that is not true any more: in front,
// everything that changes is told, and nothing else.
func TestNewsOfThePrincipal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		builders := []Builder{linux("b1", 1), linux("b2", 1).only("kvm")}
		r := newRouter(builders...)
		bob, alice := askLinux(), askLinux("kvm")
		bob.Principal, alice.PrincipalMaxJobs = "bob", 1
		take(t, r, bob)
		lease := take(t, r, alice)
		alice.Features = nil
		w := start(t, r, alice)
		r.SetBuilders(builders)
		r.SetUp("b1", true, "")
		synctest.Wait()
		lease.Release()
		time.Sleep(tellEvery) // of the bubble's clock
		synctest.Wait()
		want := []string{
			"waiting: next in the queue; alice runs 1 of at most 1 builds; b1 1/1 busy, b2 needs mandatory feature kvm",
			"waiting: next in the queue; for b1 in about 55s; b1 1/1 busy, b2 needs mandatory feature kvm",
		}
		if !slices.Equal(w.said, want) {
			t.Errorf("said %q", w.said)
		}
		w.cancel()
	})
}

// TestNewsOnTheAskersGoroutine guards callers whose onWait writes to a stream:
// it must not run beside itself, nor after Acquire returned, and may call the router.
func TestNewsOnTheAskersGoroutine(t *testing.T) {
	r := newRouter(linux("b1", 1))
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			written := 0 // unguarded: -race sees a second goroutine
			lease, err := r.Acquire(t.Context(), askLinux(), func(Waiting) {
				r.Status() // deadlocks under the router's lock
				written++
			})
			if err != nil {
				t.Error(err)
				return
			}
			written++
			lease.Release()
		})
	}
	all.Wait()
}

// TestStatusShowsTheQueue guards what a status command prints.
func TestStatusShowsTheQueue(t *testing.T) {
	r := New(Options{Now: frozen})
	r.SetBuilders([]Builder{linux("b2", 1), linux("b1", 1).with("kvm")})
	r.SetUp("b2", false, "connection refused")
	take(t, r, askLinux())
	for _, req := range []Request{askLinux("kvm"), askLinux()} {
		if _, err := r.enter(req, func() {}); err != nil {
			t.Fatal(err)
		}
	}
	s := r.Status()
	for i, want := range []string{"b1 [d] 1/1  false", "b2 [d] 0/1 down: connection refused false"} {
		b := s.Builders[i]
		expect(t, "builder", fmt.Sprintf("%s %s %d/%d %s %v", b.Name, b.Domains, b.Busy, b.MaxJobs, b.Trouble, b.Removed), want)
	}
	for i, want := range []string{
		"alice d x86_64-linux [kvm] 03:04:05 waiting: next in the queue; b1 1/1 busy, b2 lacks feature kvm",
		"alice d x86_64-linux [] 03:04:05 waiting: 1 ahead; b1 1/1 busy, b2 down: connection refused",
	} {
		q := s.Queue[i]
		expect(t, "queue", fmt.Sprint(q.Principal, " ", q.Domain, " ", q.System, " ", q.Features, " ", q.Since.Format("15:04:05"), " ", q.Waiting), want)
	}
}

// TestDownNamesEveryBuilderOfTheDomain guards against a principal that is sent
// away although a builder of its domain is up, or told of those of others.
func TestDownNamesEveryBuilderOfTheDomain(t *testing.T) {
	other := linux("b3", 1)
	other.Domains = []string{"e"}
	r := newRouter(linux("b1", 1), linux("b2", 1), other)
	r.SetUp("b1", false, "unreachable")
	expect(t, "one is up", r.Down("d"), "")
	r.SetUp("b2", false, "host key")
	expect(t, "none is up", r.Down("d"), "b1 is down: unreachable, b2 is down: host key")
	expect(t, "another domain", r.Down("e"), "")
	expect(t, "a domain without builders", r.Down("f"), "domain 'f' has no builder")
	r.SetUp("b1", true, "")
	expect(t, "one came back", r.Down("d"), "")
}

// Guards against a request that takes what another builder lacks for what its own does: a
// reload between the look at the builders and the place in the queue may have numbered
// them anew.
func TestReloadBeforeTheQueueIsNoticed(t *testing.T) {
	r := newRouter(linux("b1", 1), linux("b2", 1))
	id := r.Intern("/nix/store/x")
	r.NoteHeld("b2", id)
	req := askLinux()
	req.Inputs = []Input{{ID: id, Size: 1 << 30}}
	w := r.prepare(req)
	w.ended = func() {}
	r.SetBuilders([]Builder{linux("b2", 1), linux("b3", 1)})
	r.lock()
	r.enqueue(w)
	lacks := slices.Clone(w.lacks)
	r.unlock()
	if want := []float32{0, 1 << 30}; !slices.Equal(lacks, want) {
		t.Errorf("b2 and b3 are thought to lack %v bytes, want %v", lacks, want)
	}
}
