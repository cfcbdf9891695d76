package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// followLoad takes samples until that is no longer possible, and says why.
func (b *builder) followLoad(ctx context.Context, every time.Duration) error {
	if b.target.socket != "" {
		return b.followOwnLoad(ctx, every)
	}
	p, err := b.startLoad(ctx)
	if err != nil {
		return err
	}
	defer p.Close()
	return b.askForLoad(ctx, p, every)
}

// followOwnLoad takes samples of this machine, for the builder that is its daemon.
func (b *builder) followOwnLoad(ctx context.Context, every time.Duration) error {
	for {
		sample, err := ownLoad()
		if err != nil {
			return err
		}
		b.loadKnown(ctx, sample)
		if !pause(ctx, every+jitter(every)) {
			return ctx.Err()
		}
	}
}

// startLoad starts the script on a connection that leaves a place for builds.
func (b *builder) startLoad(ctx context.Context) (*remoteProcess, error) {
	for {
		if !b.loadHasRoom() {
			return nil, errOneSession
		}
		c, err := b.reserveForLoad(ctx)
		if err != nil {
			return nil, err
		}
		if !c.proven(ctx) {
			b.giveBack(c)
			continue
		}
		p, err := b.startOn(ctx, c, loadScript)
		switch {
		case errors.Is(err, errRefused) && b.refused(c): // there may be another connection
		case err != nil:
			return nil, b.noShell(c, err)
		default:
			return p, nil
		}
	}
}

// noShell explains why the script was not started.
func (b *builder) noShell(c *conn, err error) error {
	switch {
	case c.lost() != nil:
		return &lostLoad{c.lost()}
	case errors.Is(err, errRefused):
		return fmt.Errorf("allows no session for it: %w", err)
	case Broken(err): // whose text has the whole script
		return fmt.Errorf("does not let account '%s' run a shell", b.target.user)
	}
	return err
}

func (b *builder) loadHasRoom() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.channels >= 2
}

// reserveForLoad returns a connection with a place. That there is none to be had is
// told as any other failure of the builder: it is noticed before a build needs it.
func (b *builder) reserveForLoad(ctx context.Context) (*conn, error) {
	limited, cancel := context.WithTimeout(ctx, b.pool.opts.ConnectTimeout+b.pool.opts.HandshakeTimeout)
	defer cancel()
	c, err := b.reserve(limited, false)
	if err == nil {
		return c, nil
	}
	if ctx.Err() == nil && limited.Err() == nil && !b.connected() {
		b.noteOutcome(err)
	}
	return nil, &lostLoad{err}
}

// startOn runs a command in a place of a connection; the place is given back unless
// the error is errRefused. It gives up as startDaemon does.
func (b *builder) startOn(ctx context.Context, c *conn, command string) (*remoteProcess, error) {
	type outcome struct {
		p   *remoteProcess
		err error
	}
	limited, cancel := context.WithTimeout(ctx, b.pool.opts.SessionTimeout)
	defer cancel()
	done := make(chan outcome)
	b.pool.running.Go(func() {
		p, err := c.start(command)
		select {
		case done <- outcome{p, err}:
			return
		case <-limited.Done():
		}
		switch {
		case err == nil:
			p.Close()
		case errors.Is(err, errRefused):
			b.giveBack(c)
		}
	})
	select {
	case o := <-done:
		return o.p, o.err
	case <-limited.Done():
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	c.retire()
	return nil, fmt.Errorf("%w: it starts nothing", ErrLoadLate)
}

// loadAnswer is what came of one question.
type loadAnswer struct {
	sample Load
	err    error
}

// askForLoad asks a script that runs, again and again.
func (b *builder) askForLoad(ctx context.Context, p *remoteProcess, every time.Duration) error {
	talk, stop := context.WithCancel(ctx)
	defer stop()
	questions, answers := make(chan int), make(chan loadAnswer)
	b.pool.running.Go(func() { converse(talk, p, questions, answers) })
	var ahead time.Duration
	for n := 1; ; n++ {
		select {
		case questions <- n:
		case <-ctx.Done():
			return ctx.Err()
		}
		sample, err := b.awaitLoad(ctx, p, answers, n, every)
		if err != nil {
			return err
		}
		if n == 1 {
			ahead = sample.ClockAhead
		}
		sample.ClockAhead = ahead
		b.loadKnown(ctx, sample)
		if !pause(ctx, every+jitter(every)) {
			return ctx.Err()
		}
	}
}

// converse puts questions to a script and hands on what it answers. It ends with
// the first error, and with ctx as soon as the process has ended.
func converse(ctx context.Context, p io.ReadWriter, questions <-chan int, answers chan<- loadAnswer) {
	in := newLoadReader(p)
	for {
		var n int
		select {
		case n = <-questions:
		case <-ctx.Done():
			return
		}
		a := ask(p, in, n)
		select {
		case answers <- a:
		case <-ctx.Done():
			return
		}
		if a.err != nil {
			return
		}
	}
}

// ask puts one question. It is long enough for what answers instead of a shell to
// see that it is not in its protocol.
func ask(p io.Writer, in *loadReader, number int) (a loadAnswer) {
	if _, a.err = fmt.Fprintf(p, "sample %d\n", number); a.err != nil {
		return a
	}
	if number == 1 {
		a.sample, a.err = in.first(time.Now)
	} else {
		a.sample, a.err = in.next(number)
	}
	return a
}

// awaitLoad waits for an answer. Of one that takes long, from a builder that has
// answered before, it says so and waits on.
func (b *builder) awaitLoad(ctx context.Context, p *remoteProcess, answers <-chan loadAnswer, number int, every time.Duration) (Load, error) {
	began := time.Now()
	patience := b.pool.opts.SessionTimeout
	if number > 1 {
		patience = loadStale * every
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case a := <-answers:
			if a.err != nil {
				return Load{}, b.loadFault(p, a.err)
			}
			return a.sample, nil
		case <-ctx.Done():
			return Load{}, ctx.Err()
		case <-late.C:
		}
		waited := time.Since(began)
		if number == 1 || waited >= max(loadGiveUp, patience) {
			return Load{}, b.noAnswer(waited)
		}
		b.loadUnknown(ctx, b.noAnswer(waited))
		late.Reset(max(loadGiveUp, patience) - waited)
	}
}

// noAnswer is late only from a builder that can answer.
func (b *builder) noAnswer(waited time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.load.at.IsZero() {
		return fmt.Errorf("does not answer within %s what its load is", waited.Round(time.Second))
	}
	return fmt.Errorf("%w since %s", ErrLoadLate, b.load.at.UTC().Format("15:04:05 UTC"))
}

// loadFault explains why a script does not answer any more. What says something else
// is cut off instead of heard to its end, which may never come.
func (b *builder) loadFault(p *remoteProcess, err error) error {
	if !errors.Is(err, io.EOF) {
		p.ch.Close()
	}
	p.Close()
	said := p.remark()
	if cause := p.lost(); cause != nil {
		return &lostLoad{cause}
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("does not run a shell for account '%s'%s", b.target.user, said)
	}
	return err
}

// checkLoad asks for the load once, on the connection of a session.
func (b *builder) checkLoad(ctx context.Context, session process) (Load, error) {
	remote, ssh := session.(*remoteProcess)
	if !ssh {
		return ownLoad()
	}
	p, err := b.startBeside(ctx, remote, loadScript)
	if err != nil {
		return Load{}, err
	}
	defer p.Close()
	limited, cancel := context.WithTimeout(ctx, b.pool.opts.SessionTimeout)
	defer cancel()
	questions, answers := make(chan int, 1), make(chan loadAnswer)
	questions <- 1
	b.pool.running.Go(func() { converse(limited, p, questions, answers) })
	return b.awaitLoad(ctx, p, answers, 1, 0)
}

// startBeside runs a script on the connection of a session.
func (b *builder) startBeside(ctx context.Context, session *remoteProcess, script string) (*remoteProcess, error) {
	b.mu.Lock()
	session.conn.take()
	b.mu.Unlock()
	p, err := b.startOn(ctx, session.conn, script)
	if errors.Is(err, errRefused) {
		b.giveBack(session.conn)
		return nil, errOneSession
	}
	if err != nil {
		return nil, b.noShell(session.conn, err)
	}
	return p, nil
}
