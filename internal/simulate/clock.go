package simulate

import (
	"container/heap"
	"time"
)

// clock is the virtual time and what is to happen. Events of one moment happen in
// the order in which they were planned, so that a run can be repeated.
type clock struct {
	now    time.Duration
	events events
	seq    int
}

type event struct {
	at  time.Duration
	seq int
	do  func()
}

func (c *clock) at(t time.Duration, do func()) {
	c.seq++
	heap.Push(&c.events, event{max(t, c.now), c.seq, do})
}

func (c *clock) after(d time.Duration, do func()) { c.at(c.now+d, do) }

// step does what is next and reports whether there was anything.
func (c *clock) step() bool {
	if len(c.events) == 0 {
		return false
	}
	e := heap.Pop(&c.events).(event)
	c.now = e.at
	e.do()
	return true
}

type events []event

func (e events) Len() int      { return len(e) }
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e events) Less(i, j int) bool {
	if e[i].at != e[j].at {
		return e[i].at < e[j].at
	}
	return e[i].seq < e[j].seq
}

func (e *events) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	(*e)[last] = event{}
	*e = (*e)[:last]
	return x
}
