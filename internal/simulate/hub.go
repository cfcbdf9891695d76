package simulate

// hub is one nix-daemon that all clients list, with the machines as its builders.
// Its lock files count all slots, and what it has is not built again. Each build
// has a worker of its own, and a worker that found no slot, or the same build
// under way, looks again after a while: nobody tells it.
type hub struct {
	*run
	has     []bool // by build
	running []bool
}

func newHub(r *run) policy {
	return &hub{run: r, has: make([]bool, len(r.trace.Builds)), running: make([]bool, len(r.trace.Builds))}
}

func (h *hub) choose(*client, int) (*machine, bool) { return nil, true }

func (h *hub) connected(c *client, build int, _ *machine) { h.try(c, build) }

func (h *hub) try(c *client, build int) {
	if h.has[build] {
		c.has(build)
		return
	}
	m := h.slot(build)
	if m == nil {
		h.after(h.costs.Poll, func() { h.try(c, build) })
		return
	}
	m.reserved++
	h.running[build] = true
	h.after(h.costs.Hop, func() { h.build(c, build, m) })
}

func (h *hub) slot(build int) *machine {
	if h.running[build] {
		return nil
	}
	return h.nixChoice(build, func(m *machine) int { return m.reserved })
}

func (h *hub) build(c *client, build int, m *machine) {
	h.carry(build, m, steps{returned: func() {
		m.reserved--
		h.has[build], h.running[build] = true, false
		c.has(build)
	}})
}
