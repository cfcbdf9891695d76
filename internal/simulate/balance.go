package simulate

// balancer is a proxy of TCP connections: it gives each new one to a machine,
// whatever will be built there. In its favour it has a pool for each kind of
// build, so that none reaches a machine that cannot run it. Clients list it as one
// machine with all slots that there are.
type balancer struct {
	*run
	pick func(fitting []int) *machine
}

func (b *balancer) choose(c *client, build int) (*machine, bool) {
	if c.jobs == b.slots() {
		return nil, false
	}
	m := b.pick(b.fitting[build])
	m.connected++
	c.jobs++
	return m, true
}

func (b *balancer) connected(c *client, build int, m *machine) {
	b.carry(build, m, steps{returned: func() {
		m.connected--
		c.jobs--
		c.has(build)
	}})
}

// roundRobin gives connections in turn; opened counts those of each machine, so
// that pools that overlap share turns.
func roundRobin(r *run) policy {
	opened := make([]int, len(r.machines))
	return &balancer{r, func(fitting []int) *machine {
		m := r.least(fitting, func(m *machine) (float64, bool) { return float64(opened[m.index]), true })
		opened[m.index]++
		return m
	}}
}

// leastConnections gives a connection to the machine with the fewest, and of
// equals to the one that was given none for longest, as HAProxy does.
func leastConnections(r *run) policy {
	given, turn := make([]int, len(r.machines)), 0
	return &balancer{r, func(fitting []int) *machine {
		m := r.least(fitting, func(m *machine) (float64, bool) {
			return float64(m.connected)*1e9 + float64(given[m.index]), true
		})
		turn++
		given[m.index] = turn
		return m
	}}
}
