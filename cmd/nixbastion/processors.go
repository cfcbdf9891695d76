package main

import (
	"os"
	"runtime"
	"sync"
	"time"
)

// A packet goes through the hands of several goroutines. With one processor
// (GOMAXPROCS) the next one just runs; with more, another thread is woken for it,
// which costs more than most of what they do. So there is one while one is enough.
const (
	// processorInterval is how often that is looked at.
	processorInterval = 200 * time.Millisecond
	// manyAbove is the CPU use, in cores, beyond which one is not enough.
	manyAbove = 0.75
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
	used, since := cpuTime(), time.Now()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		nowUsed, now := cpuTime(), time.Now()
		elapsed := now.Sub(since)
		switch c.next(float64(nowUsed-used)/float64(elapsed), elapsed) {
		case toMany:
			runtime.SetDefaultGOMAXPROCS()
		case toOne:
			runtime.GOMAXPROCS(1)
		}
		used, since = nowUsed, now
	}
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

// next takes the CPU use of the time since the last call, in cores.
func (c *processorChoice) next(use float64, elapsed time.Duration) processorChange {
	if !c.many {
		if c.many = use > manyAbove; c.many {
			c.quiet = 0
			return toMany
		}
		return 0
	}
	if use >= oneBelow {
		c.quiet = 0
		return 0
	}
	if c.quiet += elapsed; c.quiet < oneAfter {
		return 0
	}
	c.many = false
	return toOne
}
