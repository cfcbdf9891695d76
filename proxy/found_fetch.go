package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

// stallTimeout is how long a found path may stand still on its way. Somebody waits
// for it, and would have built it or fetched it elsewhere by then.
const stallTimeout = 15 * time.Second

// errSlow is why a builder is given up that does not answer, or stops to send.
var errSlow = errors.New("builder did not answer in time")

// fetchFrom fetches a path from one builder.
func (f *finder) fetchFrom(ctx context.Context, key foundKey, builder string) error {
	return f.at(ctx, builder, func(ctx context.Context, dog *builderDog, sess *upstream.Session) error {
		return f.transfer(ctx, dog, sess, key, builder)
	})
}

// at has work done on a session of a builder, watched by a dog. It returns when the
// time is up, also if the session takes longer to end: its place is free only then.
// What work has set may be looked at only if there is no error.
func (f *finder) at(ctx context.Context, builder string, work func(context.Context, *builderDog, *upstream.Session) error) error {
	release, err := f.slot(ctx, "builder "+builder, maxFetches)
	if err != nil {
		return err
	}
	ctx, dog := watchBuilder(ctx)
	ended := make(chan error, 1)
	if !f.spawn(func() {
		defer release()
		defer dog.stop()
		ended <- f.onSession(ctx, builder, func(sess *upstream.Session) error { return work(ctx, dog, sess) })
	}) {
		release()
		dog.stop()
		return errShutdown
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended: // what ended also ended its context
		return err
	default:
		return context.Cause(ctx)
	}
}

// onSession has work done on a session of a builder. A panic in it ends that session
// alone, as in attempt.
func (f *finder) onSession(ctx context.Context, builder string, work func(*upstream.Session) error) (err error) {
	sess, err := f.pool.Get(ctx, builder)
	if err != nil {
		return err
	}
	defer sess.Release()
	defer func() {
		if p := recover(); p != nil {
			f.log.Error("panic", "where", "look at a builder's paths", "builder", builder, "panic", quoted(fmt.Sprint(p)), "stack", string(debug.Stack()))
			sess.Close()
			err = errInternal
		}
	}()
	return work(sess)
}

// transfer asks a builder for a path and takes it into the cache.
func (f *finder) transfer(ctx context.Context, dog *builderDog, sess *upstream.Session, key foundKey, builder string) error {
	info, err := f.ask(ctx, sess, key)
	if err != nil {
		return err
	}
	dog.expect(stallTimeout)
	nar, err := sess.NarFromPath(ctx, key.path)
	if err != nil {
		return err
	}
	defer nar.Close()
	pol := f.policy.Current()
	info = withoutForgeries(pol.TrustedPublicKeys, info)
	grant := grantOf(pol, key.domain, verifiedBy(pol.TrustedPublicKeys, info, info.Sigs), cache.DomainVouched)
	_, err = f.cache.ReceiveFound(ctx, info, watchedReader{nar, dog}, grant)
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	f.log.Info("found on a builder", "path", key.path.String(), "builder", builder, "domain", key.domain, "bytes", info.NarSize)
	return nil
}

// ask asks what a builder knows of a path, which is kept from its garbage collector
// from before the question on, and whether it can be taken.
func (f *finder) ask(ctx context.Context, sess *upstream.Session, key foundKey) (*nix.PathInfo, error) {
	if err := sess.AddTempRoots(ctx, []nix.StorePath{key.path}); err != nil {
		return nil, err
	}
	info, err := sess.QueryPathInfo(ctx, key.path)
	if err != nil {
		return nil, err
	}
	if limit := f.policy.Current().Limits.NarSize; limit > 0 && info.NarSize > uint64(limit) {
		return nil, nix.Refuse("has %d bytes, more than limits.nar_size", info.NarSize)
	}
	if err := f.cache.RoomFor(info.NarSize); err != nil {
		return nil, err
	}
	return info, f.wholeThere(ctx, sess, key, info)
}

// wholeThere checks that what a path refers to is valid in its domain or held by the
// same builder, where it can be found in its turn.
func (f *finder) wholeThere(ctx context.Context, sess *upstream.Session, key foundKey, info *nix.PathInfo) error {
	refs := slices.DeleteFunc(slices.Clone(info.References), func(ref nix.StorePath) bool { return ref == key.path })
	elsewhere := without(refs, f.cache.QueryValidPaths(key.domain, refs))
	if len(elsewhere) == 0 {
		return nil
	}
	if err := sess.AddTempRoots(ctx, elsewhere); err != nil {
		return err
	}
	held, err := sess.QueryValidPaths(ctx, elsewhere, false)
	if err != nil {
		return err
	}
	if nowhere := without(elsewhere, held); len(nowhere) > 0 {
		return nix.Refuse("refers to %s, which is neither here nor there", nowhere[0])
	}
	return nil
}

// without returns those of paths that are not among others.
func without(paths, others []nix.StorePath) []nix.StorePath {
	drop := make(map[nix.StorePath]bool, len(others))
	for _, path := range others {
		drop[path] = true
	}
	return slices.DeleteFunc(slices.Clone(paths), func(path nix.StorePath) bool { return drop[path] })
}

// builderDog ends a context when a builder leaves us waiting.
type builderDog struct {
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

// watchBuilder gives a builder the time in which it has to say what it holds.
func watchBuilder(ctx context.Context) (context.Context, *builderDog) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &builderDog{timer: time.AfterFunc(askTimeout, func() { cancel(errSlow) }), cancel: cancel}
}

// expect gives the builder so much time from now on.
func (d *builderDog) expect(within time.Duration) { d.timer.Reset(within) }

func (d *builderDog) stop() {
	d.timer.Stop()
	d.cancel(nil)
}

// watchedReader tells the dog of all that comes.
type watchedReader struct {
	r   io.Reader
	dog *builderDog
}

func (w watchedReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.dog.expect(stallTimeout)
	return n, err
}
