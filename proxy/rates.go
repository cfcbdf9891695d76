package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	tokens "golang.org/x/time/rate"

	"nixbastion/internal/nix"
)

// maxRated is how many principals are remembered: more than a policy has.
const maxRated = 16384

// rates bound how often principals do something in a minute.
type rates struct {
	mu sync.Mutex
	by *simplelru.LRU[string, *tokens.Limiter]
}

func newRates() *rates {
	by, err := simplelru.NewLRU[string, *tokens.Limiter](maxRated, nil)
	if err != nil {
		panic(err) // the size is a constant above zero
	}
	return &rates{by: by}
}

// of is the rate of a principal, which may have changed: so many a minute, and so
// many at once.
func (r *rates) of(principal string, perMinute int) *tokens.Limiter {
	limit := tokens.Limit(float64(perMinute) / 60)
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.by.Get(principal)
	if !ok {
		l = tokens.NewLimiter(limit, perMinute)
		r.by.Add(principal, l)
	}
	if l.Limit() != limit {
		l.SetLimit(limit)
		l.SetBurst(perMinute)
	}
	return l
}

// awaitTurn waits until a principal may begin another build, and says so to the client.
func (b *builds) awaitTurn(ctx context.Context, s *session, drvPath nix.StorePath, log nix.Logger) error {
	p := s.principal
	turn := b.rates.of(p.Name, int(p.BuildsPerMinute)).Reserve()
	wait := turn.Delay()
	if wait <= 0 {
		return nil
	}
	text := max(wait.Round(time.Second), time.Second).String()
	nix.Line(log, fmt.Sprintf("waiting %s with '%s': %s began more than %d builds a minute (builds_per_minute)",
		text, drvPath, p.Name, p.BuildsPerMinute))
	b.refusals.note(DelayedBuild, slog.LevelWarn, "build waits: too many in a minute", "principal", p.Name, "drv", drvPath.String(), "for", text)
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		turn.Cancel()
		return context.Cause(ctx)
	}
}
