package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"nixbastion/internal/nix"
)

// Arrival is a path that somebody is about to bring: the output of a build.
// From its announcement on the path counts as valid in its domain, and readers
// follow it while it grows.
type Arrival struct {
	c     *Cache
	rec   *record
	grant Grant
	// pub is what arrives: ours, or that of somebody who came before; nil if
	// the path was valid already.
	pub  *publication
	lead bool
	used atomic.Bool
}

// Announce says that a path is about to arrive. Who gets an Arrival that is
// Needed must Fill or Abort it. If the path is valid or arriving already, the
// Arrival is not needed and Wait tells how that ends.
func (c *Cache) Announce(info *nix.PathInfo, g Grant) (*Arrival, error) {
	rec, err := c.admit(info, g)
	if err != nil {
		return nil, err
	}
	a := &Arrival{c: c, rec: rec, grant: g}
	release := c.claimPath(info.Path)
	defer release()
	k, seen := c.locate(g.Domain, info.Path)
	if seen != nil {
		a.pub = c.pendingAs(k, seen)
		return a, nil
	}
	mine := keyOf(g.Domain, info.Path)
	if other := c.holders(nil, true, mine)[mine]; other != nil {
		return nil, clash(info.Path, other)
	}
	a.lead = true
	a.pub, err = c.announce(rec, mine)
	return a, err
}

// announce makes the path visible in its domain. Nobody vouches for it before
// it is verified, and other domains do not see it until then.
func (c *Cache) announce(rec *record, k key) (*publication, error) {
	s, err := c.newSpool(forOutput, rec.info.References)
	if err != nil {
		return nil, err
	}
	p := newPublication(s)
	p.arriving = true
	p.records = map[key]*record{k: {info: rec.info, provenance: Claimed}}
	if err := c.enter(k, p); err != nil {
		s.discard(err)
		return nil, err
	}
	return p, nil
}

func (c *Cache) enter(k key, p *publication) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.pending[k] = p
	return nil
}

// Path is the path that is about to arrive.
func (a *Arrival) Path() nix.StorePath { return a.rec.info.Path }

// Needed reports whether the caller is the one to bring the path.
func (a *Arrival) Needed() bool { return a.lead }

// Fill streams the NAR into the cache. It reads exactly the NAR. It is called
// once; for an Arrival that is not Needed it takes the bytes like an upload. If
// it fails, those who follow fail too and the path is gone.
func (a *Arrival) Fill(ctx context.Context, nar io.Reader) (Outcome, error) {
	if a.used.Swap(true) {
		return 0, errors.New("arrival was filled or aborted before")
	}
	if !a.lead {
		s, err := a.c.newSpool(forOutput, a.rec.info.References)
		if err != nil {
			return 0, err
		}
		return a.c.receive(ctx, a.rec, s, nar, a.grant)
	}
	if err := a.pub.spool.take(ctx, a.rec.info, nar); err != nil {
		a.c.drop(a.pub.spool, a.pub, err)
		return 0, err
	}
	return a.c.commit(ctx, arrived(a.rec), a.pub.spool, a.grant, a.pub)
}

// Abort says that the path will not come, and why. It does nothing after Fill
// and for an Arrival that is not Needed.
func (a *Arrival) Abort(err error) {
	if !a.lead || a.used.Swap(true) {
		return
	}
	if err == nil {
		err = errors.New("aborted")
	}
	a.c.drop(a.pub.spool, a.pub, err)
}

// Wait returns when the path is verified, by whomever: AlreadyValid, or Differs
// if it turned out to have other bytes than were announced here. It returns the
// error that ended the arrival otherwise.
func (a *Arrival) Wait(ctx context.Context) (Outcome, error) {
	if a.pub != nil {
		select {
		case <-a.pub.settled:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		if a.pub.err != nil {
			return 0, fmt.Errorf("%s: %w", a.rec.info.Path, a.pub.err)
		}
	}
	_, rec := a.c.locate(a.grant.Domain, a.rec.info.Path)
	switch {
	case rec == nil:
		return 0, fmt.Errorf("%s: %w", a.rec.info.Path, nix.ErrNotFound)
	case !rec.sameBytes(a.rec):
		return Differs, nil
	}
	return AlreadyValid, nil
}
