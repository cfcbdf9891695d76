package simulate

// plain is Nix as it comes: each client lists all machines, knows only its own
// lock files, and connects to the least load / speed. So all clients together
// send a machine more than it has slots for, and what is too much waits there.
type plain struct{ *run }

func (p plain) choose(c *client, build int) (*machine, bool) {
	m := p.nixChoice(build, func(m *machine) int { return c.held[m.index] })
	if m != nil {
		c.held[m.index]++
	}
	return m, m != nil
}

func (p plain) connected(c *client, build int, m *machine) {
	p.carry(build, m, steps{returned: func() {
		c.held[m.index]--
		c.has(build)
	}})
}

// nixChoice is the rule of Nix's build hook (build-remote.cc): of the machines
// with a free slot the one with the least load / speed, then the fastest, then
// the least load, then the first.
func (r *run) nixChoice(build int, load func(*machine) int) *machine {
	var best *machine
	for _, i := range r.fitting[build] {
		if m := r.machines[i]; load(m) < m.Slots && (best == nil || nixPrefers(m, load(m), best, load(best))) {
			best = m
		}
	}
	return best
}

func nixPrefers(a *machine, loadA int, b *machine, loadB int) bool {
	perA, perB := float64(loadA)/a.Speed, float64(loadB)/b.Speed
	switch {
	case perA != perB:
		return perA < perB
	case a.Speed != b.Speed:
		return a.Speed > b.Speed
	}
	return loadA < loadB
}
