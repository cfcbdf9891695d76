package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"nixbastion/policy"
	"nixbastion/proxy/upstream"
	"nixbastion/route"
)

// loadEvery is how often a builder is asked for its load where the policy does not
// say.
const loadEvery = 5 * time.Second

// loadBack is how far a value must come back behind its threshold, as a part of it,
// until builds are sent again: or they would come and go with each sample.
const loadBack = 0.9

// loads keeps builds from builders that are busy with other work, by the thresholds
// of the policy. What is not known keeps nobody away.
//
// Memory, pressure and disk are what they are. A load average has our own builds in
// it, which must not keep away the ones behind them: each may use all cores, as Nix
// lets it by default, so the cores are taken off for each of ours. The kernel's
// average fades over a minute; our share is averaged alike, or the load of builds
// that have just ended would be taken for somebody else's.
type loads struct {
	// limits are those of a builder of the policy, with its max_jobs.
	limits func(builder string) (limits policy.LoadLimits, maxJobs int, known bool)
	// busy counts our builds on a builder.
	busy func(builder string) int
	// overloaded is told when a builder gets no builds, and why; and with "" when it
	// gets them again.
	overloaded func(builder, reason string)
	log        *slog.Logger

	mu       sync.Mutex // guards what follows
	builders map[string]*judgement
}

// judgement is what is thought of a builder. Samples of one come one at a time.
type judgement struct {
	limits policy.LoadLimits
	// ours is how many builds we had there, averaged over the last minute, at the time
	// of the last sample.
	ours float64
	at   time.Time
	// over has the thresholds that are passed, and since when in words.
	over [measures]string
}

func (j *judgement) reason() string {
	return strings.Join(slices.DeleteFunc(slices.Clone(j.over[:]), func(s string) bool { return s == "" }), "; ")
}

func newLoads(live *policy.Live, router *route.Router, log *slog.Logger) *loads {
	return &loads{
		limits: func(builder string) (policy.LoadLimits, int, bool) { return loadLimits(live.Current(), builder) },
		busy:   router.Busy, overloaded: router.SetOverloaded, log: log, builders: map[string]*judgement{},
	}
}

func loadLimits(pol *policy.Policy, builder string) (limits policy.LoadLimits, maxJobs int, known bool) {
	b := pol.BuilderNamed(builder)
	if b == nil {
		return policy.LoadLimits{}, 0, false
	}
	return b.Load, b.MaxJobs, true
}

// note takes what the pool says of a builder's load. One that owes an answer is
// thought of as before.
func (l *loads) note(builder string, load upstream.Load, err error) {
	if errors.Is(err, upstream.ErrLoadLate) {
		return
	}
	before, after := l.judge(builder, load, err)
	if before == after {
		return
	}
	l.overloaded(builder, after)
	if after == "" {
		l.log.Info("builder gets builds again", "builder", builder, "was", before)
	} else {
		l.log.Info("builder gets no builds for now", "builder", builder, "reason", after)
	}
}

// judge returns why a builder got no builds, and why it gets none now.
func (l *loads) judge(builder string, load upstream.Load, err error) (before, after string) {
	limits, maxJobs, known := l.limits(builder)
	busy := l.busy(builder)
	l.mu.Lock()
	defer l.mu.Unlock()
	j := l.builders[builder]
	switch {
	case !known:
		delete(l.builders, builder)
		return "", ""
	case j == nil:
		// What an earlier process had built there may still be in the average.
		j = &judgement{ours: float64(maxJobs)}
		l.builders[builder] = j
	}
	before = j.reason()
	if err != nil || limits != j.limits {
		j.over, j.limits = [measures]string{}, limits
	}
	if err == nil {
		j.age(busy, time.Now())
		j.compare(load)
	}
	return before, j.reason()
}

// keep forgets builders that are not in the policy any more.
func (l *loads) keep(builders []policy.Builder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.builders {
		if !slices.ContainsFunc(builders, func(b policy.Builder) bool { return b.Name == name }) {
			delete(l.builders, name)
		}
	}
}

// age brings our share up to now, with so many builds since the last sample.
func (j *judgement) age(busy int, now time.Time) {
	if !j.at.IsZero() {
		rest := math.Exp(-now.Sub(j.at).Minutes())
		j.ours = j.ours*rest + float64(busy)*(1-rest)
	}
	j.at = now
}

// The things that have a threshold.
const (
	measureLoad = iota
	measurePressure
	measureMemory
	measureDisk
	measures
)

// compare sees which thresholds are passed. The words are those of when that began.
func (j *judgement) compare(load upstream.Load) {
	share := j.ours * float64(load.Cores)
	others := max(load.Load1-share, 0) / float64(load.Cores)
	j.most(measureLoad, others, j.limits.MaxLoad, func() string { return loadText(load, share, j.limits.MaxLoad) })
	waits, what := pressureOf(load)
	j.most(measurePressure, waits, j.limits.MaxPressure, func() string {
		return fmt.Sprintf("something waits for %s %.0f %% of the time, more than %g %%", what, waits, j.limits.MaxPressure)
	})
	j.least(measureMemory, load.MemoryAvailable, j.limits.MinMemory, "of memory available")
	j.least(measureDisk, load.DiskFree, j.limits.MinDisk, "free on /nix/store")
}

func loadText(load upstream.Load, share, limit float64) string {
	ours := ""
	if share >= 0.5 {
		ours = fmt.Sprintf(", of which our own builds may be %.1f,", share)
	}
	return fmt.Sprintf("load %.1f%s on %d cores is over %g per core", load.Load1, ours, load.Cores, limit)
}

// pressureOf is the worse one of memory and disk.
func pressureOf(load upstream.Load) (percent float64, what string) {
	switch p := load.Pressure; {
	case p == nil:
		return 0, ""
	case p.Memory > p.IO:
		return p.Memory, "memory"
	default:
		return p.IO, "the disk"
	}
}

func (j *judgement) most(measure int, value, limit float64, words func() string) {
	j.set(measure, limit > 0 && value > limit, limit > 0 && value > limit*loadBack, words)
}

func (j *judgement) least(measure int, value, limit int64, what string) {
	j.set(measure, value < limit, float64(value) < float64(limit)/loadBack, func() string {
		return fmt.Sprintf("%s %s, less than %s", upstream.Bytes(value), what, upstream.Bytes(limit))
	})
}

// set notes that a threshold is passed, or that one that was passed still is.
func (j *judgement) set(measure int, begins, stays bool, words func() string) {
	switch {
	case begins:
		j.over[measure] = cmp.Or(j.over[measure], words())
	case !stays:
		j.over[measure] = ""
	}
}
