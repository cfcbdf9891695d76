package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// Guards against garbage that grows with what idle clients keep alive.
func TestGarbageStaysWithinItsBudget(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, 400}, {mib, 400}, {12 * mib, 400},
		{13 * mib, 360}, {24 * mib, 200}, {40 * mib, 120}, {48 * mib, 100},
		{100 * mib, 100}, {10 << 30, 100}, {1 << 62, 100},
	} {
		if got := gcPercent(c.live); got != c.want {
			t.Errorf("GOGC is %d with %d MiB alive, want %d", got, c.live/mib, c.want)
		}
	}
}

// Guards against a setting that is made at the start and never again.
func TestCollectionsAreTunedWhileTheProgramRuns(t *testing.T) {
	before := debug.SetGCPercent(usualGCPercent)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "")
	tuneMemory()
	alive := make([]byte, 100<<20)
	wantPercent(t, usualGCPercent)
	runtime.KeepAlive(alive)
	alive = nil
	wantPercent(t, bulkGCPercent)
}

// wantPercent waits for a setting: cleanups run some time after a collection.
func wantPercent(t *testing.T, want int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		runtime.GC()
		got := debug.SetGCPercent(want)
		if got == want {
			return
		}
		debug.SetGCPercent(got)
		if time.Now().After(end) {
			t.Fatalf("GOGC is %d, want %d", got, want)
		}
	}
}

// An admin's own word counts.
func TestGCPercentOfTheEnvironmentStays(t *testing.T) {
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "77")
	tuneMemory()
	if got := debug.SetGCPercent(77); got != 77 {
		t.Errorf("GOGC is %d although the environment says 77", got)
	}
}
