package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"nixbastion/policy"
	"nixbastion/proxy/upstream"
	"nixbastion/route"
)

// A builder with a wake command that cannot be reached is asleep, and gets builds all
// the same: whoever holds the first lease there has it woken, for all who come until
// it answers. One with a sleep command is put to sleep when nobody has used it for
// long enough (wake_idle.go):
//
//	awake ── cannot be reached ──> asleep ── needed ──> waking ──> awake, or failed
//	awake ── idle ──> falling ──> asleep
//	failed ── answers ──> awake
//	failed ── cannot be reached, after a pause ──> asleep
//
// A builder that could not be woken is down, and tried like every other that is.
// Builders that the admin has drained are not put to sleep: he works there.

const (
	// wakeDialPause is between two tries to reach a builder that is waking.
	wakeDialPause = time.Second
	// firstWakePause is how long a builder that could not be woken is not woken again.
	// It doubles with each failure in a row, up to longestWakePause.
	firstWakePause   = time.Minute
	longestWakePause = 30 * time.Minute
)

var (
	errWakeTimeout  = errors.New("it did not answer in time")
	errSleepTimeout = errors.New("the command did not end in time")
)

// sleepState is how a builder with a wake command is.
type sleepState uint8

const (
	// awake builders can be reached, as far as known.
	awake sleepState = iota
	asleep
	waking
	falling
	failed
)

// wakePool is what of a pool is needed here.
type wakePool interface {
	Reach(ctx context.Context, builder string) error
	Look(ctx context.Context, builder string) error
	Sleep(ctx context.Context, builder string, idle time.Duration) bool
	Wake(builder string)
	Asleep(builder string) bool
	Idle(builder string) time.Duration
}

var _ wakePool = (*upstream.Pool)(nil)

// sleepers are all builders with a wake command.
type sleepers struct {
	pool   wakePool
	router *route.Router
	// drained reports whether the admin has drained a builder.
	drained func(builder string) bool
	run     func(ctx context.Context, argv, env []string) (output string, err error)
	log     *slog.Logger

	// ctx ends with the proxy, and running counts what works here until then.
	ctx     context.Context
	stop    context.CancelCauseFunc
	running sync.WaitGroup

	// shared reports whether another process uses the builders too: none is put to sleep.
	// It is set before any builder is known.
	shared func() bool

	mu     sync.Mutex // guards what follows and all sleepers; no pool is called with it, which calls here
	closed bool
	all    map[string]*sleeper
}

// sleeper is one of them. Guarded by sleepers.mu.
type sleeper struct {
	name    string
	address string
	config  policy.Wake
	// ctx ends when it is removed.
	ctx    context.Context
	remove context.CancelCauseFunc

	state sleepState
	// down is what the pool says of it, users are those who are about to get a
	// session.
	down  bool
	users int
	// job is there while it is waking, turn while it is falling: closed at the end.
	job  *awakening
	turn chan struct{}
	// took is how long it took to wake last; 0 if that is not known.
	took time.Duration
	// What follows is about failures in a row: no further try before until.
	failure error
	fails   uint
	until   time.Time

	idle *time.Timer
}

// awakening is one try to wake a builder, for all who wait for it.
type awakening struct {
	done chan struct{} // closed when the rest is set
	took time.Duration
	err  error
}

func newSleepers(ctx context.Context, pool wakePool, router *route.Router, drained func(string) bool, log *slog.Logger) *sleepers {
	s := &sleepers{pool: pool, router: router, drained: drained, run: runCommand, log: log, all: map[string]*sleeper{}}
	s.ctx, s.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	return s
}

// close ends all commands and waits for them.
func (s *sleepers) close(cause error) {
	s.mu.Lock()
	s.closed = true
	for _, w := range s.all {
		w.stopIdle()
	}
	s.mu.Unlock()
	s.stop(cause)
	s.running.Wait()
}

// spawn runs work unless the sleepers are closed. The caller holds mu.
func (s *sleepers) spawn(work func()) {
	if !s.closed {
		s.running.Go(work)
	}
}

// update takes over the builders of a policy. A builder that was asleep and has no
// wake command any more is one like all others.
func (s *sleepers) update(builders []policy.Builder) {
	for _, name := range s.exchange(builders) {
		s.pool.Wake(name)
		s.router.SetAsleep(name, false, 0)
	}
}

func (s *sleepers) exchange(builders []policy.Builder) (gone []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.all
	s.all = map[string]*sleeper{}
	for i := range builders {
		b := &builders[i]
		if len(b.Wake.Command) == 0 {
			continue
		}
		w := before[b.Name]
		if w == nil {
			w = &sleeper{name: b.Name}
			w.ctx, w.remove = context.WithCancelCause(s.ctx)
		}
		delete(before, b.Name)
		w.config, w.address = b.Wake, b.Address
		s.all[b.Name] = w
		s.awaitIdle(w, w.config.After)
	}
	for name, w := range before {
		w.stopIdle()
		w.remove(errNoWake)
		gone = append(gone, name)
	}
	return gone
}

var errNoWake = errors.New("its wake command was taken out of the policy")

// need wakes a builder that is asleep. It returns when the builder is awake or cannot
// be woken, or ctx ends, and tells the client what happens. A builder is not put to
// sleep before release is called, after the caller has got a session.
func (s *sleepers) need(ctx context.Context, builder string, tell func(line string)) (release func(), err error) {
	for {
		job, turn, limit := s.enter(builder)
		switch {
		case turn != nil:
			tell(fmt.Sprintf("builder '%s' is falling asleep; it is woken then", builder))
			if err := awaitDone(ctx, turn); err != nil {
				return nil, err
			}
			continue
		case job == nil && s.pool.Asleep(builder):
			s.mistaken(builder)
			continue
		case job == nil:
			return func() { s.leave(builder) }, nil
		}
		tell(fmt.Sprintf("waking builder '%s' (up to %s)", builder, durationText(limit)))
		if err := awaitDone(ctx, job.done); err != nil {
			return nil, err
		}
		if job.err != nil {
			return nil, &upstream.Error{Builder: builder, Kind: upstream.Unreachable, Err: job.err}
		}
		tell(fmt.Sprintf("builder '%s' is awake after %s", builder, durationText(job.took)))
	}
}

func awaitDone(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// durationText writes a time for people, in seconds, or in minutes where nothing much
// is lost by that.
func durationText(d time.Duration) string {
	if d >= 10*time.Minute || d > time.Minute && d%time.Minute == 0 {
		return fmt.Sprintf("%.0f min", d.Minutes())
	}
	return fmt.Sprintf("%.0f s", d.Seconds())
}

// enter counts a user of a builder that is awake, or returns what is to be waited
// for: it begins to be woken, if nobody has begun, or falls asleep just now.
func (s *sleepers) enter(builder string) (job *awakening, turn chan struct{}, limit time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.all[builder]
	switch {
	case w == nil:
		return nil, nil, 0
	case w.state == falling:
		return nil, w.turn, 0
	case w.state == waking:
		return w.job, nil, w.config.Timeout
	case w.state == failed && time.Now().Before(w.until):
		job := &awakening{done: make(chan struct{}), err: w.failure}
		close(job.done)
		return job, nil, w.config.Timeout
	case w.state == awake:
		w.users++
		return nil, nil, 0
	}
	w.state = waking
	w.job = &awakening{done: make(chan struct{})}
	job = w.job
	config, address := w.config, w.address
	if s.closed {
		job.err = errShutdown
		close(job.done)
	}
	s.spawn(func() { s.awaken(w, job, config, address) })
	return job, nil, config.Timeout
}

func (s *sleepers) leave(builder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.all[builder]; w != nil && w.users > 0 {
		w.users--
	}
}

// mistaken takes back that a builder is awake, with the user whom enter counted.
func (s *sleepers) mistaken(builder string) {
	s.leave(builder)
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.all[builder]; w != nil && w.state == awake {
		w.state = asleep
	}
}

// awaken runs the wake command and then waits until the builder answers.
func (s *sleepers) awaken(w *sleeper, job *awakening, config policy.Wake, address string) {
	ctx, cancel := context.WithTimeoutCause(w.ctx, config.Timeout, errWakeTimeout)
	defer cancel()
	s.log.Info("waking builder", "builder", w.name, "up_to_seconds", config.Timeout.Seconds())
	began := time.Now()
	err := s.command(ctx, w.name, address, "wake command", config.Command)
	if err == nil {
		err = s.reach(ctx, w.name)
	}
	job.took = time.Since(began)
	if err != nil && w.ctx.Err() == nil {
		err = s.notWoken(w, err)
	}
	if err == nil {
		s.woken(w, job.took)
	}
	job.err = err
	close(job.done)
}

// command runs one of the commands and logs what it printed.
func (s *sleepers) command(ctx context.Context, builder, address, what string, argv []string) error {
	output, err := s.run(ctx, argv, []string{"NIXBASTION_BUILDER=" + builder, "NIXBASTION_ADDRESS=" + address})
	if err != nil {
		s.log.Warn(what+" failed", "builder", builder, "error", err, "output", output)
		return commandError(what, output, err)
	}
	s.log.Info(what+" has ended", "builder", builder, "output", output)
	return nil
}

// reach tries to get a session until one comes, or ctx ends.
func (s *sleepers) reach(ctx context.Context, builder string) error {
	for {
		err := s.pool.Reach(ctx, builder)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(wakeDialPause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), userText(err))
		}
	}
}

// woken makes a builder awake.
func (s *sleepers) woken(w *sleeper, took time.Duration) {
	s.mu.Lock()
	w.state, w.job, w.took = awake, nil, took
	w.failure, w.fails, w.until = nil, 0, time.Time{}
	s.awaitIdle(w, w.config.After)
	s.mu.Unlock()
	s.router.SetUp(w.name, true, "")
	s.router.SetAsleep(w.name, false, 0)
	s.log.Info("builder is awake", "builder", w.name, "seconds", took.Seconds())
}

// notWoken makes a builder be down that could not be woken, and returns the reason:
// from now on it is tried as any other. Nil means that it was there after all.
func (s *sleepers) notWoken(w *sleeper, cause error) error {
	reason := fmt.Errorf("could not be woken: %w", cause)
	s.mu.Lock()
	pause := min(firstWakePause<<min(w.fails, 16), longestWakePause)
	w.state, w.job, w.failure, w.until = failed, nil, reason, time.Now().Add(pause)
	w.fails++
	s.mu.Unlock()
	s.log.Warn("builder could not be woken", "builder", w.name, "error", cause, "next_try_after_seconds", pause.Seconds())
	s.router.SetUp(w.name, false, reason.Error())
	s.router.Fault(w.name, reason.Error())
	s.router.SetAsleep(w.name, false, 0)
	s.pool.Wake(w.name)
	if s.pool.Look(w.ctx, w.name) == nil {
		return nil
	}
	return reason
}

// unreachable says of a builder that cannot be reached whether it is asleep. The
// pool asks.
func (s *sleepers) unreachable(builder string) bool {
	s.mu.Lock()
	w := s.all[builder]
	if w == nil || w.state == waking || w.state == failed && time.Now().Before(w.until) {
		s.mu.Unlock()
		return false
	}
	if w.state != falling {
		w.state = asleep
	}
	w.down = false
	w.stopIdle()
	took := w.expected()
	s.mu.Unlock()
	s.router.SetAsleep(builder, true, took)
	s.router.SetUp(builder, true, "")
	s.log.Info("builder cannot be reached and counts as asleep", "builder", builder)
	return true
}

// expected is how long it will probably take to wake the builder.
func (w *sleeper) expected() time.Duration {
	if w.took > 0 {
		return w.took
	}
	return w.config.Timeout / 4
}

// setUp takes what the pool says of a builder on to the router. As long as a builder
// is down since it could not be woken, that is the reason.
func (s *sleepers) setUp(builder string, up bool, reason string) {
	s.mu.Lock()
	if w := s.all[builder]; w != nil {
		w.down = !up
		switch {
		case w.state != failed:
		case up:
			w.state, w.failure, w.fails, w.until = awake, nil, 0, time.Time{}
			s.awaitIdle(w, w.config.After)
		default:
			reason = w.failure.Error()
		}
	}
	s.mu.Unlock()
	s.router.SetUp(builder, up, reason)
}

// isAsleep reports whether a builder must be woken before it gives a session.
func (s *sleepers) isAsleep(builder string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.all[builder]
	return w != nil && w.state == asleep
}

// stateOf is a word for people; empty for a builder that is like all others.
func (s *sleepers) stateOf(builder string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.all[builder]
	switch {
	case w == nil:
		return ""
	case w.state == asleep || w.state == falling:
		return "asleep"
	case w.state == waking:
		return "waking"
	}
	return ""
}
