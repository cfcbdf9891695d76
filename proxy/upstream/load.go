package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Load is how busy a builder is. What it says comes from the builder, which may
// lie; the numbers are within bounds that make sense.
type Load struct {
	// System is "Linux" or "Darwin".
	System string
	// Load1, Load5 and Load15 are the load averages of so many minutes, of the whole
	// machine: on Linux what waits for a disk counts, too.
	Load1, Load5, Load15 float64
	// Cores are the processors that are online.
	Cores int
	// MemoryTotal and MemoryAvailable are bytes; available is what programs can have
	// without swapping.
	MemoryTotal, MemoryAvailable int64
	// Pressure says for how much of the last 10 seconds something waited for a
	// resource; nil where the kernel does not tell.
	Pressure *Pressure
	// DiskFree are the bytes that ordinary users can still write to the file system
	// of /nix/store.
	DiskFree int64
	// ClockAhead is by how much the builder's clock was ahead of ours when it was
	// asked first, to a second or two.
	ClockAhead time.Duration
}

// Pressure has shares of the time in percent, 0 to 100 (PSI, some, avg10).
type Pressure struct{ CPU, Memory, IO float64 }

var (
	// ErrLoadLate says that a builder that told its load before owes an answer: it may
	// be too busy to give one.
	ErrLoadLate = errors.New("does not answer the question for its load")

	errLoadOff     = errors.New("is not asked for its load")
	errLoadUnasked = errors.New("was not asked for its load yet")
	errOneSession  = errors.New("allows one session on a connection, which is kept for builds")
)

const (
	// loadRetry is after how long a builder is asked again that cannot tell its load:
	// each try shows in its log.
	loadRetry = 10 * time.Minute
	// loadLateRetry is the same for one that did not answer. It doubles up to
	// loadRetry, since what does not end there is left behind.
	loadLateRetry = time.Minute
	// loadGiveUp is how long an answer is waited for.
	loadGiveUp = time.Minute
	// loadStale is after how many intervals a sample counts no more.
	loadStale = 4
)

// loadProbe is what the pool does to know a builder's load. The builder's mutex
// guards it.
//
// The probe runs from when the builder comes up, and keeps its channel, and so one
// connection, open until it is paused: what a builder without a connection does is
// to be known before builds go there.
type loadProbe struct {
	paused bool
	// cancel ends the probe that runs; nil if none does.
	cancel context.CancelFunc
	// next begins another one; nil if none was ever begun.
	next *time.Timer
	// late counts probes in a row that ended for want of an answer.
	late uint

	sample Load
	at     time.Time // of the sample; zero if there is none
	err    error     // why nothing is known, or ErrLoadLate
	logged string    // the reason that the log has
}

// loadEvery is how long to wait between two samples; 0 if none are taken. The
// caller holds mu.
func (b *builder) loadEvery() time.Duration {
	every := b.pool.opts.LoadEvery
	switch {
	case every == 0 || b.loadWish.off:
		return 0
	case b.loadWish.every > 0:
		return b.loadWish.every
	}
	return every
}

// Load returns what was last known of a builder's load and since when, or says why
// nothing is known now: a sample that is older than four intervals counts no more.
// It asks nobody.
func (p *Pool) Load(name string) (Load, time.Time, error) {
	p.mu.Lock()
	b := p.builders[name]
	p.mu.Unlock()
	if b == nil {
		return Load{}, time.Time{}, fmt.Errorf("builder '%s' %w", name, errUnknown)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	every, probe := b.loadEvery(), &b.load
	switch {
	case every == 0 || probe.paused:
		return Load{}, time.Time{}, errLoadOff
	case probe.err != nil:
		return Load{}, probe.at, probe.err
	case probe.at.IsZero():
		return Load{}, time.Time{}, errLoadUnasked
	case time.Since(probe.at) > loadStale*every:
		return Load{}, probe.at, ErrLoadLate
	}
	return probe.sample, probe.at, nil
}

// PauseLoad ends the probe of a builder's load, or lets it run again. Without a
// probe a connection that nobody uses is closed, so that the builder may sleep. An
// unknown name is ignored.
func (p *Pool) PauseLoad(name string, paused bool) {
	b, err := p.enter(name)
	if err != nil {
		return
	}
	defer p.running.Done()
	b.pauseLoad(paused)
}

func (b *builder) pauseLoad(paused bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.load.paused != paused && !b.retired {
		b.load.paused = paused
		b.restartLoad()
	}
}

// setLoadWish changes what the policy wants of the probe.
func (b *builder) setLoadWish(wish loadWish) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.loadWish != wish {
		b.loadWish = wish
		b.restartLoad()
	}
}

// restartLoad has the probe run as it should now. The caller holds mu.
func (b *builder) restartLoad() {
	b.stopLoad()
	b.load.err, b.load.at = nil, time.Time{}
	switch {
	case b.loadEvery() == 0 || b.load.paused:
		b.pool.running.Go(func() { b.reportLoad(b.pool.ctx, Load{}, errLoadOff) })
	case !b.health.down:
		b.loadAfter(0)
	}
}

// stopLoad ends the probe. The caller holds mu.
func (b *builder) stopLoad() {
	if b.load.cancel != nil {
		b.load.cancel()
		b.load.cancel = nil
	}
	if b.load.next != nil {
		b.load.next.Stop()
	}
}

// askLoad begins the probe of a builder that came up, unless one runs or failed a
// short while ago. The caller holds mu.
func (b *builder) askLoad(wasDown bool) {
	if b.load.cancel == nil && (b.load.next == nil || wasDown) {
		b.loadAfter(0)
	}
}

// loadAfter begins a probe after a pause. The caller holds mu.
func (b *builder) loadAfter(pause time.Duration) {
	if b.loadEvery() == 0 || b.load.paused || b.retired {
		return
	}
	if b.load.next != nil {
		b.load.next.Stop()
	}
	b.load.next = time.AfterFunc(pause, func() { b.pool.spawn(b.runLoad) })
}

// runLoad probes until that is no longer possible or wanted.
func (b *builder) runLoad() {
	ctx, every := b.beginLoad()
	if ctx == nil {
		return
	}
	b.endLoad(ctx, b.followLoad(ctx, every))
}

// beginLoad returns nil if no probe is to run now. One that is down is asked when
// it comes up.
func (b *builder) beginLoad() (context.Context, time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	every := b.loadEvery()
	if every == 0 || b.load.cancel != nil || b.load.paused || b.retired || b.health.down {
		return nil, 0
	}
	ctx, cancel := context.WithCancel(b.pool.ctx)
	b.load.cancel = cancel
	return ctx, every
}

// endLoad notes why a probe ended and when the next one begins, unless somebody
// else ended it, who knows what follows.
func (b *builder) endLoad(ctx context.Context, err error) {
	b.mu.Lock()
	if ctx.Err() != nil {
		b.mu.Unlock()
		return
	}
	b.load.cancel()
	b.load.cancel = nil
	b.load.err = err
	pause := b.loadPause(err)
	b.loadAfter(pause + jitter(pause))
	b.mu.Unlock()
	if !isLost(err) {
		b.loadUnknown(b.pool.ctx, err)
	}
}

// loadPause is how long to wait after a probe that ended with an error. The caller
// holds mu.
func (b *builder) loadPause(err error) time.Duration {
	switch {
	case isLost(err):
		return b.loadEvery()
	case errors.Is(err, ErrLoadLate):
		b.load.late++
		return min(loadLateRetry<<min(b.load.late-1, 8), loadRetry)
	}
	return loadRetry
}

// lostLoad says that a probe ended because its connection did, or that there was
// none. That says nothing of the load: the next sample does, or the builder is down.
type lostLoad struct{ cause error }

func (e *lostLoad) Error() string { return "cannot be asked for it: " + e.cause.Error() }

func (e *lostLoad) Unwrap() error { return e.cause }

func isLost(err error) bool {
	var lost *lostLoad
	return errors.As(err, &lost)
}

// jitter is up to a tenth of d to either side, so that not all builders are asked
// at once.
func jitter(d time.Duration) time.Duration {
	return time.Duration((rand.Float64() - 0.5) / 5 * float64(d))
}

// loadKnown takes a sample.
func (b *builder) loadKnown(ctx context.Context, sample Load) {
	b.mu.Lock()
	news := b.load.at.IsZero() || b.load.logged != ""
	if ctx.Err() == nil {
		b.load.sample, b.load.at, b.load.err, b.load.late, b.load.logged = sample, time.Now(), nil, 0, ""
	}
	b.mu.Unlock()
	if news {
		b.log.Info("builder's load is seen", "load", sample.Load1, "cores", sample.Cores, "memory", sample.MemoryTotal, "disk_free", sample.DiskFree)
	}
	b.reportLoad(ctx, sample, nil)
}

// loadUnknown takes the reason why nothing is known of the load, and logs it once.
func (b *builder) loadUnknown(ctx context.Context, err error) {
	b.mu.Lock()
	news := b.load.logged != err.Error()
	b.load.err, b.load.logged = err, err.Error()
	b.mu.Unlock()
	if news {
		b.log.Info("builder's load is not known", "reason", err.Error())
	}
	b.reportLoad(ctx, Load{}, err)
}

// reportLoad tells the owner of the pool, unless the probe was ended or another
// builder took this one's place.
func (b *builder) reportLoad(ctx context.Context, sample Load, err error) {
	b.reporting.Lock()
	defer b.reporting.Unlock()
	b.mu.Lock()
	retired := b.retired
	b.mu.Unlock()
	if !retired && ctx.Err() == nil {
		b.pool.opts.OnLoad(b.target.name, sample, err)
	}
}
