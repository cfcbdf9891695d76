package simulate

import (
	"slices"
	"time"
)

// client is a host that wants builds, during a run. Its daemon has one worker
// loop, which gives ready builds to hooks, one after another, and waits for each
// hook's answer.
type client struct {
	*Client
	index int
	run   *run

	// unmet is how many things each build still waits for: the moment at which it
	// is asked for, and the dependencies that this client wants too.
	unmet      map[int]int
	dependants map[int][]int

	ready      []int
	connecting bool
	// postponed are tried again together, at a poll.
	postponed []int

	held     []int // by machine: the slots that its own lock files say it has taken
	jobs     int   // the same where it lists one machine that stands for all
	left     int
	finished time.Duration
}

func newClient(r *run, c *Client, index int) *client {
	mine := &client{
		Client: c, index: index, run: r, unmet: map[int]int{}, dependants: dependants(r.trace, c.Asks),
		held: make([]int, len(r.machines)), left: len(c.Asks),
	}
	for _, ask := range c.Asks {
		mine.unmet[ask.Build] = 1
	}
	for dep, waiting := range mine.dependants {
		if _, wanted := mine.unmet[dep]; !wanted {
			continue // it has that
		}
		for _, build := range waiting {
			mine.unmet[build]++
		}
	}
	return mine
}

func (c *client) begin() {
	for _, ask := range c.Asks {
		c.run.at(ask.At, func() { c.met(ask.Build) })
	}
}

// met notes that one thing which a build waited for is there.
func (c *client) met(build int) {
	c.unmet[build]--
	if c.unmet[build] == 0 {
		c.ready = append(c.ready, build)
		c.hook()
	}
}

// has notes that the output of a build is at the client.
func (c *client) has(build int) {
	c.left--
	c.finished = c.run.now
	for _, next := range c.dependants[build] {
		c.met(next)
	}
}

// hook finds places for ready builds until one connects or none is left.
func (c *client) hook() {
	for !c.connecting && len(c.ready) > 0 {
		build := c.ready[0]
		c.ready = c.ready[1:]
		m, ok := c.run.policy.choose(c, build)
		if !ok {
			c.postpone(build)
			continue
		}
		c.connecting = true
		c.run.after(c.run.connect(), func() {
			c.connecting = false
			c.run.policy.connected(c, build, m)
			c.hook()
		})
	}
}

func (c *client) postpone(build int) {
	c.postponed = append(c.postponed, build)
	if len(c.postponed) == 1 {
		c.run.after(c.run.costs.Poll, c.retry)
	}
}

// retry takes all that was postponed before what has become ready since.
func (c *client) retry() {
	c.ready = slices.Concat(c.postponed, c.ready)
	c.postponed = nil
	c.hook()
}
