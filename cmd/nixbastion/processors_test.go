package main

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// Guards against a busy proxy on one processor, against one that is held up by a
// disk, and against one that changes its mind with every pause.
func TestProcessorsFollowTheUse(t *testing.T) {
	const tick = processorInterval
	var c processorChoice
	for i, step := range []struct {
		cores float64
		queue float64
		span  time.Duration
		want  processorChange
	}{
		{0, 0, tick, 0}, {0.7, 0.7, tick, 0}, {0.76, 0, tick, toMany},
		{1.9, 0, tick, 0}, {0.6, 0, oneAfter, 0}, {0.4, 0, oneAfter - tick, 0}, {0.5, 0, tick, 0},
		{0.4, 0, oneAfter - tick, 0}, {0.4, 0, tick, toOne},
		{0.4, 0, oneAfter, 0}, {0.74, 0, tick, 0}, {1, 0, tick, toMany}, {0.1, 0, oneAfter - 1, 0}, {0.1, 0, 1, toOne},
		{0.1, 0.8, tick, toMany}, {0.1, 7, oneAfter, 0}, {0.1, 0, oneAfter, toOne},
	} {
		cpu, waited := step.cores*float64(step.span), step.queue*float64(step.span)
		u := processorUse{span: step.span, cpu: time.Duration(cpu), waited: time.Duration(waited)}
		if got := c.next(u); got != step.want {
			t.Fatalf("step %d: %d, want %d", i, got, step.want)
		}
	}
}

// Guards against a runtime that notes more or fewer of the waits than we think: of
// five goroutines on one processor four wait.
func TestWaitedTimeIsThatOfAllGoroutines(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(before)
	const goroutines = 5
	var all sync.WaitGroup
	start := readProcessorUse()
	for range goroutines {
		all.Go(func() {
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
				for range 100_000 {
				}
				runtime.Gosched()
			}
		})
	}
	all.Wait()
	u := readProcessorUse().minus(start)
	if queue := u.waited.Seconds() / u.span.Seconds(); queue < 2 || queue > 2*goroutines {
		t.Errorf("on average %.1f of %d goroutines wait", queue, goroutines)
	}
}

func TestBusyProcessGetsAllProcessors(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Fatal("needs two processors")
	}
	all := defaultProcessors(t)
	stop := tuneProcessors()
	wantProcessors(t, 1)
	var busy sync.WaitGroup
	for range 4 { // others wait, however little of the machine the process gets
		busy.Go(func() {
			for end := time.Now().Add(20 * time.Second); runtime.GOMAXPROCS(0) == 1 && time.Now().Before(end); {
			}
		})
	}
	busy.Wait()
	wantProcessors(t, all)
	stop()
	wantProcessors(t, all)
}

func TestProcessorsAreAllBackAtTheEnd(t *testing.T) {
	all := defaultProcessors(t)
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

// defaultProcessors returns how many the runtime uses where the environment says
// nothing, as from now on.
func defaultProcessors(t *testing.T) int {
	t.Setenv("GOMAXPROCS", "")
	before := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	runtime.SetDefaultGOMAXPROCS()
	return runtime.GOMAXPROCS(0)
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
