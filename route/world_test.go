package route

import (
	"math"
	"testing"
	"time"
)

// clockwork is a router with a clock of its own: builds take as long as the test says.
type clockwork struct {
	*Router
	t   *testing.T
	now time.Time
}

func newClockwork(t *testing.T, opts Options, builders ...Builder) *clockwork {
	c := &clockwork{t: t, now: frozen()}
	opts.Now = func() time.Time { return c.now }
	c.Router = New(opts)
	c.SetBuilders(builders)
	return c
}

func (c *clockwork) pass(d time.Duration) {
	c.now = c.now.Add(d)
	c.Recheck()
}

// placed is what became of a request; both are nil while it waits.
type placed struct {
	lease  *Lease
	err    error
	ticket *Ticket
}

func (p *placed) on() string {
	if p.lease == nil {
		return ""
	}
	return p.lease.Builder()
}

func (c *clockwork) ask(req Request) *placed {
	c.t.Helper()
	p := &placed{}
	ticket, err := c.Submit(req, func(l *Lease, err error) { p.lease, p.err = l, err })
	if err != nil {
		c.t.Fatal(err)
	}
	p.ticket = ticket
	return p
}

// build has a job built on a builder that must be free.
func (c *clockwork) build(job, builder string, took time.Duration) {
	c.t.Helper()
	req := job1(job)
	for _, b := range c.Status().Builders {
		if b.Name != builder {
			req.Exclude = append(req.Exclude, Exclusion{Builder: b.Name})
		}
	}
	p := c.ask(req)
	if p.on() != builder {
		c.t.Fatalf("%s is not built on %s: %v", job, builder, p.err)
	}
	p.lease.Began()
	c.pass(took)
	p.lease.Built()
}

func job1(name string) Request {
	req := askLinux()
	req.Job = name
	return req
}

func by(principal string, req Request) Request {
	req.Principal = principal
	return req
}

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 0.01*math.Abs(want)+1e-9 {
		t.Errorf("%s: got %g, want %g", what, got, want)
	}
}
