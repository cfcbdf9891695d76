package proxy

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"nixbastion/proxy/upstream"
)

const (
	// slowStart is after what time without a session on the chosen builder the
	// others are tried too: if all are gone, that is known when the first one is
	// given up, and not only after the time limits of one after the other.
	slowStart = 500 * time.Millisecond
	// lookTimeout bounds that trial.
	lookTimeout = 5 * time.Second
	// connectTimeout is how long a builder may take to accept a connection. With
	// slowStart it is less than the 5 s in which a build fails whose builders are
	// all gone.
	connectTimeout = 3 * time.Second
)

// session returns a session on a builder, and has the others looked at if that
// takes long.
func (t *tries) session(ctx context.Context, builder string) (*upstream.Session, error) {
	got := make(chan struct{})
	defer close(got)
	t.fetches.Go(func() {
		timer := time.NewTimer(slowStart)
		defer timer.Stop()
		select {
		case <-got:
		case <-timer.C:
			t.lookAround(builder)
		}
	})
	return t.pool.Get(ctx, builder)
}

// lookAround tries to get a session on every other builder of the domain, and
// gives it back: the pool tells the router which are down. It does so for the
// builds that follow too, and ends with the proxy and not with the client.
func (t *tries) lookAround(instead string) {
	ctx, cancel := context.WithTimeout(t.fetchCtx, lookTimeout)
	defer cancel()
	var looking errgroup.Group
	looking.SetLimit(maxAsked)
	for _, b := range t.policy.Current().Builders {
		if b.Name == instead || !slices.Contains(b.Domains, t.order.principal.Domain) {
			continue
		}
		looking.Go(func() error {
			if sess, err := t.pool.Get(ctx, b.Name); err == nil {
				sess.Release()
			}
			return nil
		})
	}
	looking.Wait()
}
