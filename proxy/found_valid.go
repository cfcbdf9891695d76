package proxy

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

// Who may only read is told of many paths at once which of them are valid, and asks
// for some of them afterwards. What the cache lacks and a builder lists counts, once
// the builder has said so of a path that is kept there from its garbage collector.
// For whoever uploads only the cache counts: what it has is not sent.

const (
	// maxListedAsked bounds the listed paths of one question; others count as
	// absent. So many answers come within askTimeout.
	maxListedAsked = 5000
	// maxRounds is how many builders are asked, one after the other, for a path that
	// several list.
	maxRounds = 3
	// maxKept is how many paths one session at a builder keeps there.
	maxKept = 2 * maxListedAsked
	// maxKeepers is how many such sessions a builder has: one that takes more paths
	// and one whose clients have not left yet.
	maxKeepers = 2
	// keeperAge is for how long a session takes more paths.
	keeperAge = 10 * time.Minute
)

var (
	errKeepersFull = errors.New("too many paths are kept there for other clients")
	errKeeperEnded = errors.New("session has ended")
)

// keeper keeps paths on one builder: they are temporary roots of its session.
type keeper struct {
	builder string
	opened  time.Time
	// turn is held by who uses sess, which is nil until the first one got it.
	turn chan struct{}
	sess *upstream.Session

	// Guarded by keepers.mu:
	users int  // clients that were promised something, and questions under way
	paths int  // that were asked for
	over  bool // the session is broken or was given back
}

// keepers are those of all builders.
type keepers struct {
	f *finder

	mu  sync.Mutex // guards what follows
	all map[string][]*keeper
}

func newKeepers(f *finder) *keepers { return &keepers{f: f, all: map[string][]*keeper{}} }

// take returns a keeper that may be asked for n paths more. The caller gives it back.
func (ks *keepers) take(builder string, n int) (*keeper, error) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	for _, k := range ks.all[builder] {
		if !k.over && k.paths+n <= maxKept && time.Since(k.opened) < keeperAge {
			k.users++
			k.paths += n
			return k, nil
		}
	}
	if len(ks.all[builder]) >= maxKeepers {
		return nil, errKeepersFull
	}
	k := &keeper{builder: builder, opened: time.Now(), turn: make(chan struct{}, 1), users: 1, paths: n}
	ks.all[builder] = append(ks.all[builder], k)
	return k, nil
}

// give gives a keeper back. The last user's session goes to the next build.
func (ks *keepers) give(k *keeper) {
	ks.mu.Lock()
	k.users--
	last := k.users == 0
	if last {
		k.over = true
		ks.remove(k)
	}
	ks.mu.Unlock()
	if last && k.sess != nil { // nobody else has a turn any more
		k.sess.Release()
	}
}

// remove forgets a keeper. The caller holds mu.
func (ks *keepers) remove(k *keeper) {
	var rest []*keeper
	for _, other := range ks.all[k.builder] {
		if other != k {
			rest = append(rest, other)
		}
	}
	if len(rest) == 0 {
		delete(ks.all, k.builder)
	} else {
		ks.all[k.builder] = rest
	}
}

// broke says that a keeper's session keeps nothing any more.
func (ks *keepers) broke(k *keeper) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	k.over = true
	ks.remove(k)
}

func (ks *keepers) ended(k *keeper) bool {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	return k.over
}

// question asks one builder for paths that it lists, and returns those that it
// holds.
func (k *keeper) question(ctx context.Context, ks *keepers, paths []nix.StorePath) (_ []nix.StorePath, err error) {
	select {
	case k.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-k.turn }()
	if ks.ended(k) {
		return nil, errKeeperEnded
	}
	defer func() {
		if err != nil {
			ks.broke(k)
		}
	}()
	if k.sess == nil {
		if k.sess, err = ks.f.pool.Get(ctx, k.builder); err != nil {
			return nil, err
		}
	}
	if err := k.sess.AddTempRoots(ctx, paths); err != nil {
		return nil, err
	}
	return k.sess.QueryValidPaths(ctx, paths, false)
}

// listed returns which of paths, which the cache lacks, builders of a domain hold
// and keep for the holder of promises.
func (f *finder) listed(ctx context.Context, promises *promises, domain string, paths []nix.StorePath) []nix.StorePath {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	paths = slices.DeleteFunc(paths, func(path nix.StorePath) bool { return len(f.holders(foundKey{domain, path})) == 0 })
	paths = paths[:min(len(paths), maxListedAsked)]
	var valid []nix.StorePath
	for range maxRounds { // who said that it lacks a path is not asked again
		questions := f.questions(domain, without(paths, valid))
		if len(questions) == 0 || ctx.Err() != nil {
			break
		}
		valid = append(valid, f.askAll(ctx, promises, domain, questions)...)
	}
	return valid
}

// questions are the paths to ask of each builder: each path of one that lists it.
func (f *finder) questions(domain string, paths []nix.StorePath) map[string][]nix.StorePath {
	questions := map[string][]nix.StorePath{}
	for _, path := range paths {
		if holders := f.holders(foundKey{domain, path}); len(holders) > 0 {
			questions[holders[0]] = append(questions[holders[0]], path)
		}
	}
	return questions
}

// reply is what one builder holds of what it was asked for.
type reply struct {
	builder string
	held    []nix.StorePath
}

// askAll asks several builders at the same time, and waits as long as ctx lives.
func (f *finder) askAll(ctx context.Context, promises *promises, domain string, questions map[string][]nix.StorePath) (valid []nix.StorePath) {
	answers := make(chan reply, len(questions))
	for builder, paths := range questions {
		if !f.spawn(func() { answers <- reply{builder, f.askOne(promises, domain, builder, paths)} }) {
			answers <- reply{builder, nil}
		}
	}
	for len(questions) > 0 {
		select {
		case a := <-answers:
			valid = append(valid, a.held...)
			delete(questions, a.builder)
		case <-ctx.Done():
			return valid
		}
	}
	return valid
}

// askOne asks one builder, and remembers what it lacks, or that it says nothing in
// time. A client that leaves does not end the question: that would end the session
// on which others rely.
func (f *finder) askOne(promises *promises, domain, builder string, paths []nix.StorePath) []nix.StorePath {
	ctx, cancel := context.WithTimeout(f.ctx, askTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { f.misses.rest(builder) }) // at once: the session may take longer to end
	defer stop()
	k, err := f.keepers.take(builder, len(paths))
	if err != nil {
		f.log.Info("paths of a builder are not kept for a client", "builder", builder, "error", err)
		return nil
	}
	held, err := k.question(ctx, f.keepers, paths)
	if len(held) == 0 || !promises.add(k) {
		f.keepers.give(k)
	}
	if err != nil {
		f.log.Warn("builder does not say what it holds", "builder", builder, "error", err)
		f.misses.rest(builder)
		return nil
	}
	lacking := without(paths, held)
	for _, path := range lacking {
		f.misses.note(foundKey{domain, path}, builder, nix.ErrNotFound)
	}
	return without(paths, lacking)
}

// promises are the keepers that one client relies on until it leaves.
type promises struct {
	keepers *keepers

	mu   sync.Mutex // guards what follows
	held map[*keeper]bool
	over bool
}

// add keeps a keeper, and reports false if it need not: it is there already, or
// the client has left.
func (p *promises) add(k *keeper) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over || p.held[k] {
		return false
	}
	if p.held == nil {
		p.held = map[*keeper]bool{}
	}
	p.held[k] = true
	return true
}

// release lets go of everything.
func (p *promises) release() {
	p.mu.Lock()
	held := p.held
	p.held, p.over = nil, true
	p.mu.Unlock()
	for k := range held {
		p.keepers.give(k)
	}
}
