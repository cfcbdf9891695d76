package simulate

import "time"

// scheduler gives out places on machines. It is never called while it calls.
type scheduler interface {
	// submit asks for a place for a build on behalf of a client, and granted is
	// called once, perhaps at once, when there is one.
	submit(c *client, build int, granted func(place))
	// join says that another client waits for a build that was submitted. It may have
	// a place already.
	join(c *client, build int)
	// due is when recheck has something to do of which no other call tells; false
	// if never.
	due() (time.Duration, bool)
	recheck()
}

// place is a slot on a machine.
type place interface {
	machine() *machine
	// transferred says that the inputs are there: some bytes had to be sent.
	transferred(bytes int64, took time.Duration)
	// began says that the machine has begun to build.
	began()
	// built says that the build has ended and gives the slot back.
	built()
}

// middle is a proxy that speaks the protocol: what is under way is waited for,
// what was built is answered, and all else is placed by a scheduler, on behalf of
// the client that asked first.
type middle struct {
	*run
	scheduler scheduler
	has       []bool            // by build
	waiting   map[int][]*client // by build
	wake      time.Duration     // when recheck is planned; 0 if it is not
}

func newMiddle(r *run, s scheduler) *middle {
	return &middle{run: r, scheduler: s, has: make([]bool, len(r.trace.Builds)), waiting: map[int][]*client{}}
}

func (m *middle) choose(*client, int) (*machine, bool) { return nil, true }

func (m *middle) connected(c *client, build int, _ *machine) {
	if m.has[build] {
		c.has(build)
		return
	}
	m.waiting[build] = append(m.waiting[build], c)
	if len(m.waiting[build]) > 1 {
		m.scheduler.join(c, build)
		m.arm()
		return
	}
	m.scheduler.submit(c, build, func(p place) { m.after(0, func() { m.build(build, p) }) })
	m.arm()
}

func (m *middle) build(build int, p place) {
	m.carry(build, p.machine(), steps{
		transferred: p.transferred,
		begins:      p.began,
		ends: func() {
			p.built()
			m.arm()
		},
		returned: func() { m.answer(build) },
	})
	m.arm()
}

func (m *middle) answer(build int) {
	m.has[build] = true
	for _, c := range m.waiting[build] {
		c.has(build)
	}
	delete(m.waiting, build)
}

// arm plans the next recheck. An earlier plan stays: it finds nothing to do.
func (m *middle) arm() {
	due, ok := m.scheduler.due()
	if !ok || m.wake != 0 && m.wake <= due {
		return
	}
	m.wake = max(due, m.now+1)
	m.at(m.wake, func() {
		m.wake = 0
		m.scheduler.recheck()
		m.arm()
	})
}
