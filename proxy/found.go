package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy/upstream"
)

// A path that the cache lacks and a builder of the client's domain lists is found:
// it is fetched from there into the cache, and answered when it was verified.
// Nobody is asked for a path that no builder lists, and whatever goes wrong with a
// builder, to the client the path is absent.

const (
	// inventoryPause is after how long, about, builders are asked again for what
	// they hold.
	inventoryPause = 5 * time.Minute
	// maxFetches is how many found paths come from one builder at the same time:
	// as many sessions as it has to spare for what is not a build.
	maxFetches = 4
	// maxFetchesEach is how many of them, from all builders, one principal may have
	// asked for, so that it does not take all of a builder's.
	maxFetchesEach = 3
)

var (
	errNobodyReads = errors.New("no client waits for this path any more")
	errNowhere     = errors.New("no builder that listed the path gave it")
)

// finder brings paths that only builders hold into the cache.
type finder struct {
	pool   *upstream.Pool
	cache  *cache.Cache
	policy *policy.Live
	log    *slog.Logger

	misses  *misses
	keepers *keepers

	// ctx ends with the proxy, and running counts what works for the finder until
	// then.
	ctx     context.Context
	stop    context.CancelCauseFunc
	running sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closed  bool
	fetches map[foundKey]*foundPath
	slots   map[string]*semaphore.Weighted // by "builder NAME" and "principal NAME"
}

// foundKey is a path in a domain: what one has found is no answer in another.
type foundKey struct {
	domain string
	path   nix.StorePath
}

// foundPath is one path on its way from a builder, for all who ask for it.
type foundPath struct {
	key       foundKey
	principal string // who asked first, and has it on his account
	cancel    context.CancelCauseFunc
	done      chan struct{} // closed when err is set
	err       error
	readers   int // guarded by finder.mu
}

func newFinder(ctx context.Context, pool *upstream.Pool, store *cache.Cache, live *policy.Live, log *slog.Logger) *finder {
	f := &finder{
		pool: pool, cache: store, policy: live, log: log, misses: newMisses(),
		fetches: map[foundKey]*foundPath{}, slots: map[string]*semaphore.Weighted{},
	}
	f.keepers = newKeepers(f)
	f.ctx, f.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	return f
}

// close ends all fetches and waits for them. What is asked for afterwards is
// absent.
func (f *finder) close(cause error) {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop(cause)
	f.running.Wait()
}

// spawn runs work unless the finder is closed, and reports whether it does.
func (f *finder) spawn(work func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.running.Go(work)
	}
	return !f.closed
}

// bring has a path that a builder of the principal's domain lists fetched into the
// cache, or waits for who fetches it already. It reports whether it is there now.
func (f *finder) bring(ctx context.Context, p *policy.Principal, path nix.StorePath) bool {
	key := foundKey{p.Domain, path}
	if len(f.holders(key)) == 0 {
		return false
	}
	found := f.join(key, p.Name)
	if found == nil {
		return false
	}
	defer f.leave(found)
	select {
	case <-found.done:
		return found.err == nil
	case <-ctx.Done():
		return false
	}
}

// holders are the builders that may serve a domain, list a path, are not asleep and
// were not found to lack it a moment ago, in the order of the policy. What is drained
// may still be read.
func (f *finder) holders(key foundKey) []string {
	var names []string
	for _, b := range f.policy.Current().Builders {
		if slices.Contains(b.Domains, key.domain) && f.pool.Lists(b.Name, key.path) && !f.pool.Asleep(b.Name) && !f.misses.has(key, b.Name) {
			names = append(names, b.Name)
		}
	}
	return names
}

// join attaches to the fetch of a path, or starts it; nil if the finder is closed.
// The caller must call leave once.
func (f *finder) join(key foundKey, principal string) *foundPath {
	f.mu.Lock()
	defer f.mu.Unlock()
	if found := f.fetches[key]; found != nil {
		found.readers++
		return found
	}
	if f.closed {
		return nil
	}
	ctx, cancel := context.WithCancelCause(f.ctx)
	found := &foundPath{key: key, principal: principal, cancel: cancel, done: make(chan struct{}), readers: 1}
	f.fetches[key] = found
	f.running.Go(func() {
		found.err = f.fetch(ctx, found)
		f.forget(found)
		close(found.done)
		cancel(nil)
	})
	return found
}

// leave detaches a reader. The last one cancels the fetch if it still runs.
func (f *finder) leave(found *foundPath) {
	f.mu.Lock()
	found.readers--
	last := found.readers == 0
	if last {
		f.drop(found)
	}
	f.mu.Unlock()
	if last {
		found.cancel(errNobodyReads)
	}
}

func (f *finder) forget(found *foundPath) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(found)
}

// drop makes the next reader start anew. The caller holds mu.
func (f *finder) drop(found *foundPath) {
	if f.fetches[found.key] == found {
		delete(f.fetches, found.key)
	}
}

// slot waits for one of n places that what has.
func (f *finder) slot(ctx context.Context, what string, n int64) (release func(), err error) {
	f.mu.Lock()
	slots := f.slots[what]
	if slots == nil {
		slots = semaphore.NewWeighted(n)
		f.slots[what] = slots
	}
	f.mu.Unlock()
	if err := slots.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return func() { slots.Release(1) }, nil
}

// fetch tries the builders that list a path until one has given it.
func (f *finder) fetch(ctx context.Context, found *foundPath) error {
	release, err := f.slot(ctx, "principal "+found.principal, maxFetchesEach)
	if err != nil {
		return err
	}
	defer release()
	for _, builder := range f.holders(found.key) {
		if len(f.cache.QueryValidPaths(found.key.domain, []nix.StorePath{found.key.path})) > 0 {
			return nil // built or uploaded meanwhile
		}
		err := f.fetchFrom(ctx, found.key, builder)
		if err == nil || ctx.Err() != nil {
			return err
		}
		f.missed(found.key, builder, err)
	}
	return errNowhere
}

// missed notes why a builder did not give what it listed, so that it is not asked
// again at once. That the path has gone is nothing to look into.
func (f *finder) missed(key foundKey, builder string, err error) {
	f.misses.note(key, builder, err)
	level := slog.LevelWarn
	if errors.Is(err, nix.ErrNotFound) {
		level = slog.LevelInfo
	}
	f.log.Log(f.ctx, level, "listed path was not found", "builder", builder, "path", key.path.String(),
		"domain", key.domain, "error", fmt.Sprint(err))
}
