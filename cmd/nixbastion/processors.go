package main

import (
	"os"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"
)

// A packet goes through the hands of several goroutines. With one processor
// (GOMAXPROCS) the next one just runs; with more, another thread is woken for it,
// which costs more than most of what they do. So there is one while one is enough:
// while it is not busy, and nobody waits for it because it is held up by a disk.
const (
	// processorInterval is how often that is looked at.
	processorInterval = 200 * time.Millisecond
	// manyAbove is the CPU use, in cores, beyond which one is not enough, and
	// queueAbove the mean number of goroutines that wait for it.
	manyAbove  = 0.75
	queueAbove = 0.75
	// oneBelow is the use below which one would be, and oneAfter for how long.
	oneBelow = 0.5
	oneAfter = 3 * time.Second
)

// tuneProcessors gives the process one processor, or all that the machine lets it
// have while it has much to do, unless the admin has said otherwise in the
// environment. The returned function ends that and leaves it all.
func tuneProcessors() (stop func()) {
	if os.Getenv("GOMAXPROCS") != "" {
		return func() {}
	}
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { watchProcessors(done) })
	return func() {
		close(done)
		running.Wait()
	}
}

func watchProcessors(done <-chan struct{}) {
	defer runtime.SetDefaultGOMAXPROCS()
	runtime.GOMAXPROCS(1)
	var c processorChoice
	tick := time.NewTicker(processorInterval)
	defer tick.Stop()
	last := readProcessorUse()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		now := readProcessorUse()
		switch c.next(now.minus(last)) {
		case toMany:
			runtime.SetDefaultGOMAXPROCS()
		case toOne:
			runtime.GOMAXPROCS(1)
		}
		last = now
	}
}

// processorUse is what the process has used up to a moment, or between two.
type processorUse struct {
	at     time.Time     // the later one
	span   time.Duration // between the two
	cpu    time.Duration // of all threads
	waited time.Duration // by all goroutines, from when they could run until they did
}

func readProcessorUse() processorUse {
	return processorUse{at: time.Now(), cpu: cpuTime(), waited: waitedTime()}
}

func (u processorUse) minus(before processorUse) processorUse {
	return processorUse{at: u.at, span: u.at.Sub(before.at), cpu: u.cpu - before.cpu, waited: u.waited - before.waited}
}

// waitsNoted is of how many waits the runtime notes one (its gTrackingPeriod).
const waitsNoted = 8

// waitedTime is what all goroutines have waited so far, at least.
func waitedTime() time.Duration {
	sample := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindFloat64Histogram {
		return 0
	}
	var seconds float64
	h := sample[0].Value.Float64Histogram()
	for i, count := range h.Counts {
		seconds += float64(count) * max(0, h.Buckets[i]) // the first bound is -Inf
	}
	return time.Duration(seconds * waitsNoted * float64(time.Second))
}

// A processorChange is what is to be done; the zero value is nothing.
type processorChange int

const (
	toOne processorChange = iota + 1
	toMany
)

// processorChoice decides; the zero value has one processor.
type processorChoice struct {
	many  bool
	quiet time.Duration // for how long one would have been enough
}

// next takes the use since the last call.
func (c *processorChoice) next(u processorUse) processorChange {
	cores, queue := u.cpu.Seconds()/u.span.Seconds(), u.waited.Seconds()/u.span.Seconds()
	if !c.many {
		if c.many = cores > manyAbove || queue > queueAbove; c.many {
			c.quiet = 0
			return toMany
		}
		return 0
	}
	if cores >= oneBelow || queue > queueAbove {
		c.quiet = 0
		return 0
	}
	if c.quiet += u.span; c.quiet < oneAfter {
		return 0
	}
	c.many = false
	return toOne
}
