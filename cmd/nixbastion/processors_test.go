package main

import (
	"runtime"
	"testing"
	"time"
)

// Guards against a busy proxy on one processor, and against one that changes its
// mind with every pause.
func TestProcessorsFollowTheUse(t *testing.T) {
	const tick = processorInterval
	var c processorChoice
	for i, step := range []struct {
		use     float64
		elapsed time.Duration
		want    processorChange
	}{
		{0, tick, 0}, {0.7, tick, 0}, {0.76, tick, toMany},
		{1.9, tick, 0}, {0.6, oneAfter, 0}, {0.4, oneAfter - tick, 0}, {0.5, tick, 0},
		{0.4, oneAfter - tick, 0}, {0.4, tick, toOne},
		{0.4, oneAfter, 0}, {0.74, tick, 0}, {1, tick, toMany}, {0.1, oneAfter - 1, 0}, {0.1, 1, toOne},
	} {
		if got := c.next(step.use, step.elapsed); got != step.want {
			t.Fatalf("step %d, %.2f cores for %s: %d, want %d", i, step.use, step.elapsed, got, step.want)
		}
	}
}

func TestBusyProcessGetsAllProcessors(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Fatal("needs two processors")
	}
	t.Setenv("GOMAXPROCS", "")
	all := runtime.GOMAXPROCS(0)
	stop := tuneProcessors()
	wantProcessors(t, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for end := time.Now().Add(10 * time.Second); runtime.GOMAXPROCS(0) == 1 && time.Now().Before(end); {
		}
	}()
	<-done
	wantProcessors(t, all)
	stop()
	wantProcessors(t, all)
}

func TestProcessorsAreAllBackAtTheEnd(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	all := runtime.GOMAXPROCS(0)
	stop := tuneProcessors()
	wantProcessors(t, 1)
	stop()
	wantProcessors(t, all)
}

// An admin's own word counts.
func TestProcessorsOfTheEnvironmentStay(t *testing.T) {
	t.Setenv("GOMAXPROCS", "2")
	all := runtime.GOMAXPROCS(0)
	stop := tuneProcessors()
	defer stop()
	time.Sleep(2 * processorInterval)
	wantProcessors(t, all)
}

// wantProcessors waits for a setting that another goroutine makes.
func wantProcessors(t *testing.T, want int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); runtime.GOMAXPROCS(0) != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d processors, want %d", runtime.GOMAXPROCS(0), want)
		}
	}
}
