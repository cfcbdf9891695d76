package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// bulkGCPercent is GOGC while little memory is in use. A transfer keeps a
	// few MiB alive and makes garbage by the gigabyte: 400 instead of Go's 100
	// saves a fifth of its CPU.
	bulkGCPercent = 400
	// usualGCPercent is Go's own GOGC, and the least that is ever set.
	usualGCPercent = 100
	// garbageBudget is how much garbage may pile up between the two, in bytes: a
	// thousand idle connections keep 40 MiB alive, and four times that is not
	// for them to cost.
	garbageBudget = 48 << 20
)

// tuneMemory trades memory for CPU as long as that is cheap, unless the admin
// has said otherwise in the environment.
func tuneMemory() {
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(bulkGCPercent)
	tuneAfterCollection(bulkGCPercent)
}

// tuneAfterCollection runs again after each garbage collection, on a goroutine
// of the runtime: the collection finds that nobody holds the mark.
func tuneAfterCollection(current int) {
	mark := new(struct{ *byte }) // not an empty struct: those are never collected
	runtime.AddCleanup(mark, func(current int) {
		wanted := gcPercent(liveHeap())
		if wanted != current {
			debug.SetGCPercent(wanted)
		}
		tuneAfterCollection(wanted)
	}, current)
}

// liveHeap is what the last collection left, in bytes.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}

// gcPercent returns the GOGC with which garbage stays within its budget, where
// that is between the two bounds.
func gcPercent(live uint64) int {
	if live == 0 {
		return bulkGCPercent
	}
	const step = 20 // so that it changes seldom: each change stops the program for a moment
	percent := int(min(garbageBudget*100/live, bulkGCPercent))
	return max(percent/step*step, usualGCPercent)
}
