package proxy

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy/upstream"
)

const (
	// slowStart is after what time without a session on the chosen builder the
	// others are tried too: if all are gone, that is known when the first one is
	// given up, and not only after the time limits of one after the other.
	slowStart = 500 * time.Millisecond
	// connectTimeout is how long a builder may take to accept a connection.
	connectTimeout = 3 * time.Second
	// lookTimeout bounds the trial of the others. It is long enough to see a
	// connection fail, and with slowStart less than the 5 s in which a build
	// fails whose builders are all gone.
	lookTimeout = connectTimeout + 500*time.Millisecond
)

// session returns a session on a builder, and has the others looked at if that
// takes long. If there is none it returns when that is known of the others too.
func (t *tries) session(ctx context.Context, builder string) (*upstream.Session, error) {
	got, looked := make(chan struct{}), make(chan struct{})
	t.fetches.Go(func() {
		defer close(looked)
		timer := time.NewTimer(slowStart)
		defer timer.Stop()
		select {
		case <-got:
		case <-timer.C:
			t.lookAround(builder)
		}
	})
	sess, err := t.wokenSession(ctx, builder)
	close(got)
	if err != nil {
		select {
		case <-looked:
		case <-ctx.Done():
		}
	}
	return sess, err
}

// wokenSession returns a session on a builder, which is woken first if it is asleep.
func (t *tries) wokenSession(ctx context.Context, builder string) (*upstream.Session, error) {
	tell := func(line string) { nix.Line(t.log, line) }
	for again := false; ; again = true {
		release, err := t.sleepers.need(ctx, builder, tell)
		if err != nil {
			return nil, err
		}
		sess, err := t.pool.GetWith(ctx, builder, t.order.limits.settings())
		release()
		if err == nil || again || !t.sleepers.isAsleep(builder) {
			return sess, err
		}
		// Only this try has shown that it is asleep.
	}
}

// lookAround looks at every other builder of the domain.
func (t *tries) lookAround(instead string) {
	t.lookAt(slices.DeleteFunc(slices.Clone(t.policy.Current().Builders), func(b policy.Builder) bool {
		return b.Name == instead || !slices.Contains(b.Domains, t.order.principal.Domain)
	}))
}

// lookAt tries to get a session on each of some builders that are not drained, which
// is no use of them: the pool tells the router which are down. It does so for whatever
// follows, and ends with the proxy and not with a client.
func (b *builds) lookAt(builders []policy.Builder) {
	ctx, cancel := context.WithTimeout(b.fetchCtx, lookTimeout)
	defer cancel()
	var looking errgroup.Group
	looking.SetLimit(maxAsked)
	for _, builder := range builders {
		if b.drained(builder.Name) {
			continue
		}
		looking.Go(func() error {
			_ = b.pool.Look(ctx, builder.Name) // the pool tells
			return nil
		})
	}
	looking.Wait()
}
