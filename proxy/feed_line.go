package proxy

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy/upstream"
)

const (
	// keepFed is for how long a builder keeps from its garbage collector what it was
	// fed and no build has asked for yet.
	keepFed = 2 * time.Minute
	// maxFeedQueue bounds the uploads of one client that wait to be fed; each has an
	// open file.
	maxFeedQueue = 64
)

// feed is one upload that is sent on while it grows.
type feed struct {
	growing  *cache.Growing
	nar      io.ReadCloser
	reserved int64 // bytes of the builder's feedLoad
}

// feedLine sends the uploads of one client to one builder, one after the other, on
// one session, which keeps them from the builder's garbage collector.
type feedLine struct {
	*feeder
	builder policy.Builder
	ctx     context.Context
	cancel  context.CancelCauseFunc
	wake    chan struct{} // has a token when something changed below

	mu     sync.Mutex // guards what follows
	queue  []*feed
	closed bool // takes no more; ends when the queue is empty
}

func (f *feeder) newLine(b policy.Builder) *feedLine {
	ctx, cancel := context.WithCancelCause(f.ctx)
	return &feedLine{feeder: f, builder: b, ctx: ctx, cancel: cancel, wake: make(chan struct{}, 1)}
}

func (l *feedLine) takesMore() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.closed
}

// add takes over a feed.
func (l *feedLine) add(f *feed) {
	l.mu.Lock()
	full := l.closed || len(l.queue) == maxFeedQueue
	if !full {
		l.queue = append(l.queue, f)
	}
	l.mu.Unlock()
	if full {
		l.drop(f)
		return
	}
	l.signal()
}

// last says that no more will come.
func (l *feedLine) last() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.signal()
}

func (l *feedLine) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *feedLine) drop(f *feed) {
	f.nar.Close()
	l.giveBack(l.builder.Name, 0, f.reserved)
}

// next waits for the next feed, as long as it is worth keeping what was sent.
func (l *feedLine) next() (*feed, bool) {
	timer := time.NewTimer(keepFed)
	defer timer.Stop()
	for {
		l.mu.Lock()
		if len(l.queue) > 0 {
			f := l.queue[0]
			l.queue = l.queue[1:]
			l.mu.Unlock()
			return f, true
		}
		closed := l.closed
		l.mu.Unlock()
		if closed {
			return nil, false
		}
		select {
		case <-l.wake:
		case <-l.ctx.Done():
			return nil, false
		case <-timer.C:
			return nil, false
		}
	}
}

// run is the line's goroutine.
func (l *feedLine) run() {
	defer l.end()
	sess, err := l.pool.Get(l.ctx, l.builder.Name)
	if err != nil {
		l.log.Debug("no session to feed ahead", "builder", l.builder.Name, "error", err)
		return
	}
	defer sess.Release() // unless it has ended before
	if !sess.AtLeast(feedMajor, feedMinor) {
		l.log.Debug("builder is too old to be fed ahead", "builder", l.builder.Name)
		return
	}
	for {
		f, ok := l.next()
		if !ok {
			return
		}
		err := l.feedOne(sess, f)
		l.drop(f)
		if err != nil {
			l.log.Info("feed ahead ended", "builder", l.builder.Name, "path", f.growing.Info().Path.String(), "reason", err.Error())
			return
		}
	}
}

// end drops what was not fed and gives the line's place back.
func (l *feedLine) end() {
	l.mu.Lock()
	l.closed = true
	queue := l.queue
	l.queue = nil
	l.mu.Unlock()
	for _, f := range queue {
		l.drop(f)
	}
	l.cancel(nil)
	l.giveBack(l.builder.Name, 1, 0)
}

// feedOne sends one path with what it refers to. An error ends the line, and came
// with the end of the session if that was in the middle of something.
func (l *feedLine) feedOne(sess *upstream.Session, f *feed) (err error) {
	defer func() {
		if p := recover(); p != nil { // as in attempt
			l.log.Error("panic", "where", "feed ahead", "builder", l.builder.Name, "panic", quoted(fmt.Sprint(p)), "stack", string(debug.Stack()))
			sess.Close()
			err = errInternal
		}
	}()
	missing, err := l.missing(sess, f)
	if err != nil || len(missing) == 0 {
		return err
	}
	mine, own, others := l.feeds.sending.claim(l.builder.Name, missing, func() { l.yield(f) })
	defer l.feeds.sending.release(own) // once the session has ended, if it has to
	if len(others) > 0 {
		return nil // a build brings it
	}
	if err := l.send(sess, f, mine); err != nil {
		l.endSession(sess)
		if l.ctx.Err() != nil {
			return context.Cause(l.ctx)
		}
		return err
	}
	return nil
}

// yield ends a feed whose upload still runs, for somebody who has all of it.
func (l *feedLine) yield(f *feed) {
	if !f.growing.Valid() {
		l.cancel(errFeedLate)
	}
}

// endSession waits until nothing of the session runs on the builder, where it may
// hold the lock of a path.
func (l *feedLine) endSession(sess *upstream.Session) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), endTimeout)
	defer cancel()
	if err := sess.End(ctx); err != nil {
		l.log.Warn("builder's session did not end in order", "builder", sess.Builder(), "error", err)
	}
}

// missing returns what the builder lacks of a path and what it refers to, in order;
// nothing if it cannot be fed.
func (l *feedLine) missing(sess *upstream.Session, f *feed) ([]*nix.PathInfo, error) {
	here, elsewhere := l.closure(f.growing.Info())
	if len(here)+len(elsewhere) > maxFeedClosure {
		return nil, nil
	}
	ask := elsewhere
	for _, info := range here {
		ask = append(ask, info.Path)
	}
	if err := sess.AddTempRoots(l.ctx, ask); err != nil {
		return nil, err
	}
	valid, err := sess.QueryValidPaths(l.ctx, ask, false)
	if err != nil || len(without(elsewhere, valid)) > 0 {
		return nil, err
	}
	held := setOf(valid)
	missing := missingOf(here, held)
	if held[f.growing.Info().Path] || !l.mayFeed(f, missing) {
		return nil, nil
	}
	return missing, nil
}

func setOf(paths []nix.StorePath) map[nix.StorePath]bool {
	set := make(map[nix.StorePath]bool, len(paths))
	for _, path := range paths {
		set[path] = true
	}
	return set
}

// mayFeed reports whether all of paths may be sent ahead, and reserves what goes
// along with the upload.
func (l *feedLine) mayFeed(f *feed, paths []*nix.PathInfo) bool {
	along := -int64(f.growing.Info().NarSize)
	for _, info := range paths {
		if !safe(&l.builder, info) || info.NarSize > 1<<62 {
			return false
		}
		along += int64(info.NarSize)
	}
	if !l.reserve(l.builder.Name, 0, along) {
		return false
	}
	f.reserved += along
	return true
}

// closure returns the infos of a path and of all that it refers to, and what of that
// is not in the cache. It stops when there are too many.
func (l *feedLine) closure(root *nix.PathInfo) (here []*nix.PathInfo, elsewhere []nix.StorePath) {
	seen := map[nix.StorePath]bool{root.Path: true}
	here = []*nix.PathInfo{root}
	for done := 0; done < len(here) && len(seen) <= maxFeedClosure; done++ {
		for _, ref := range here[done].References {
			if seen[ref] {
				continue
			}
			seen[ref] = true
			if info, err := l.cache.QueryPathInfo(l.domain, ref); err == nil {
				here = append(here, info)
			} else {
				elsewhere = append(elsewhere, ref)
			}
		}
	}
	return here, elsewhere
}

// send sends paths of the cache, and the upload among them.
func (l *feedLine) send(sess *upstream.Session, f *feed, paths []*nix.PathInfo) error {
	began := time.Now()
	root := f.growing.Info().Path
	src := &cachedPaths{ctx: l.ctx, cache: l.cache, domain: l.domain}
	defer src.close()
	next := func() (*nix.PathInfo, io.Reader, error) {
		info := paths[0]
		paths = paths[1:]
		if info.Path == root {
			return info, f.nar, nil
		}
		src.paths = []*nix.PathInfo{info}
		return src.next()
	}
	all := paths
	err := sess.AddMultipleToStore(l.ctx, nix.Discard, nix.PathSource{Count: uint64(len(paths)), Next: next}, nix.AddOptions{DontCheckSigs: true})
	if err != nil {
		return err
	}
	l.sent(all)
	l.log.Info("fed ahead", "builder", l.builder.Name, "path", root.String(), "paths", len(all),
		"bytes", f.reserved, "seconds", time.Since(began).Seconds())
	return nil
}

// sent notes what the builder holds now.
func (l *feedLine) sent(paths []*nix.PathInfo) {
	for _, info := range paths {
		l.differences.note(l.builder.Name, info, nil)
		l.router.NoteHeld(l.builder.Name, l.router.Intern(info.Path.String()))
	}
}
