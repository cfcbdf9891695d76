package upstream

import "time"

// Late is for how long the builder has owed a sign of life: a question stands
// unanswered since then, and nothing else has arrived on the connection either. A
// machine that is stopped, or behind a dead line, is late; one that is only silent
// answers. Late puts the question unless something has just arrived, so whoever wants
// to know in time calls it every few seconds. It returns at once. It is 0 for this
// machine's daemon, which has no connection that could be late, and for a
// connection that is known to be lost, which every operation tells.
func (s *Session) Late() time.Duration { return s.d.process.late() }

// Hung says that the builder is not waited for any more, having been late for so
// long: the pool takes it for down until it answers on a new connection, and uses this
// one for nothing new before something arrives on it. The session itself goes on.
// The error says so.
func (s *Session) Hung(late time.Duration) *Error {
	b := s.d.builder
	fault := b.target.faultf(Hung, "", "no sign of life for %s", late.Round(time.Second))
	s.d.process.giveUp()
	b.noteOutcome(fault)
	return fault
}

// Stale reports of a session that was lost that it may have been so before it was
// taken: it came from among those that wait for a user, and the builder was not
// heard since. That says nothing about the builder.
func (s *Session) Stale() bool {
	return s.waited && s.d.process.received() == s.before
}

// late is as in [Session.Late].
func (c *conn) late() time.Duration {
	if c.lost() != nil || c.link.net.quiet() < c.builder.pool.opts.ProofAfter {
		return 0
	}
	c.askOnce()
	asked := c.asked.Load()
	if asked == 0 { // answered already
		return 0
	}
	return max(0, time.Since(c.link.net.opened)-time.Duration(max(asked, c.link.net.heard.Load())))
}

// giveUp keeps new users off the connection until something arrives on it.
func (c *conn) giveUp() { c.mute.Store(c.link.net.received.Load()) }

func (p *remoteProcess) late() time.Duration { return p.conn.late() }

func (p *remoteProcess) giveUp() { p.conn.giveUp() }

func (p *remoteProcess) received() int64 { return p.conn.link.net.received.Load() }

func (p *localProcess) late() time.Duration { return 0 }

func (p *localProcess) giveUp() {}

// received differs with every call: a socket that ends shows that to who takes it.
func (p *localProcess) received() int64 { return p.asked.Add(1) }
