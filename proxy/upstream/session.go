package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
	"nixbastion/policy"
)

// Session is a session with a builder's Nix, in whichever protocol, of which the
// holder is the only user. It is a [nix.Store], one operation at a time; all of
// its errors that are the builder's fault are an [Error]. What the session
// uploads, builds and names as a temporary root is kept from the builder's
// garbage collector until the session ends, and may be at any time after Release.
//
// The end of an operation's context ends the session: the builder is told at once,
// of a build within a second, and the operation returns when it has obeyed, or after
// Options.EndTimeout.
type Session struct {
	d *daemon
	// over is set by Release and End: from then on the daemon has another user.
	over atomic.Bool
	// waited says that it came from among idle ones, and before is what had been
	// received then.
	waited bool
	before int64
	// left ends the use of the builder, see [Pool.Idle]; nil if it does not count.
	left func()
}

func newSession(d *daemon) *Session {
	return &Session{d: d, waited: d.waited, before: d.process.received()}
}

var (
	_ nix.Store          = (*Session)(nil)
	_ nix.TempRooter     = (*Session)(nil)
	_ nix.MissingQuerier = (*Session)(nil)
	_ nix.OutputMapper   = (*Session)(nil)
	_ nix.PathLister     = (*Session)(nil)
	_ nix.PathWalker     = (*Session)(nil)
)

// Builder returns the name of the builder.
func (s *Session) Builder() string { return s.d.builder.target.name }

// Release ends the use of the session: it goes to the next user if it is exactly
// between two operations and neither too old nor too full, and is ended
// otherwise. Only the first call of Release or End counts.
func (s *Session) Release() {
	if s.over.Swap(true) {
		return
	}
	s.d.builder.park(s.d)
	s.leave()
}

func (s *Session) leave() {
	if s.left != nil {
		s.left()
	}
}

// End ends the session and waits until it was seen that nothing of it runs on
// the builder. If that does not happen in Options.EndTimeout, the channel is
// closed, and the whole connection where that does not help, unless the builder is
// silent altogether; the error then is [ErrNotSeenToEnd], as it is when ctx ends
// before.
func (s *Session) End(ctx context.Context) error {
	if s.over.Swap(true) {
		return nil
	}
	defer s.leave()
	p := s.d.process
	p.Close()
	select {
	case <-p.gone():
	case <-ctx.Done():
		return fmt.Errorf("builder '%s': %w: %w", s.Builder(), ErrNotSeenToEnd, ctx.Err())
	}
	if p.endSeen() {
		return nil
	}
	if cause := p.lost(); cause != nil {
		return fmt.Errorf("builder '%s': %w: %w", s.Builder(), ErrNotSeenToEnd, cause)
	}
	return fmt.Errorf("builder '%s': %w", s.Builder(), ErrNotSeenToEnd)
}

// Close ends the session without waiting for its end.
func (s *Session) Close() error {
	if !s.over.Swap(true) {
		s.d.process.Close()
		s.leave()
	}
	return nil
}

// fault makes an Error of one that says that the session broke, or that the
// builder does not let us build.
func (s *Session) fault(err error) error {
	t := s.d.builder.target
	var refused *nix.RemoteError
	if errors.As(err, &refused) && refusesAccount(refused.Message) {
		return t.refused(clean(refused.Message))
	}
	var broken *worker.ConnError
	if !errors.As(err, &broken) {
		return err
	}
	said := s.d.process.remark()
	switch cause := s.d.process.lost(); {
	case cause != nil:
		return t.faultf(Lost, "", "%w (%w)", cause, err)
	case broken.Corrupt:
		return t.faultf(Protocol, "", "%w%s", err, said)
	case t.protocol == policy.ProtocolServe && said.gaveUp():
		return t.gaveUp(s.d.command, broken.Op, said)
	}
	return t.faultf(Lost, "", "'%s' ended%s: %w", s.d.command, said, err)
}

// narReader makes Errors of those that come while a NAR is read.
type narReader struct {
	io.ReadCloser
	s *Session
}

func (n narReader) Read(p []byte) (int, error) {
	got, err := n.ReadCloser.Read(p)
	if err == nil || err == io.EOF {
		return got, err
	}
	return got, n.s.fault(err)
}
