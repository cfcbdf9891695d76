package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

// takeOutputs announces the outputs of a build in the cache and has them copied
// there at the builder's speed, on the session that built them. The result can
// go to the clients at once: they follow the copies while they grow.
func (t *attempt) takeOutputs(ctx context.Context, sess *upstream.Session, result *nix.BuildResult) (*nix.BuildResult, error) {
	outputs, err := t.outputs(result)
	if err != nil {
		return nil, err
	}
	arrivals, size, err := t.announce(ctx, sess, outputs)
	if err != nil {
		return nil, fmt.Errorf("take outputs from %s: %w", sess.Builder(), err)
	}
	t.left = nil // it is fetch's now
	copied := t.copied
	t.copied = nil
	fetched := make(chan error, 1)
	t.fetches.Go(func() {
		defer copied()
		t.fetch(sess, arrivals, fetched)
	})
	if err := awaitSmall(ctx, fetched, size); err != nil {
		return nil, fmt.Errorf("take outputs from %s: %w", sess.Builder(), err)
	}
	result.Outputs = outputs
	return result, nil
}

// awaitSmall returns the error with which a fetch of so many bytes ends, if it ends at
// once: as long as the client has no reply, another builder can take the place of one
// whose output is not what it said. The client would wait as long for the signature.
func awaitSmall(ctx context.Context, fetched <-chan error, size uint64) error {
	if size > ownSize {
		return nil
	}
	timer := time.NewTimer(ownPatience)
	defer timer.Stop()
	select {
	case err := <-fetched:
		return err
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// errFalseOutput says that a builder has not what it says it built.
var errFalseOutput = errors.New("outputs are not what the builder says")

func falseOutput(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errFalseOutput, nix.Refuse(format, args...))
}

// outputs are those of the derivation, with paths that the builder found where
// the derivation does not name them.
func (t *tries) outputs(result *nix.BuildResult) ([]nix.BuiltOutput, error) {
	found := make(map[string]nix.BuiltOutput, len(result.Outputs))
	for _, o := range result.Outputs {
		found[o.Name] = o
	}
	outputs := builtOutputs(t.order.drv)
	for i, o := range outputs {
		built, reported := found[o.Name]
		if reported && !o.Path.IsZero() && built.Path != o.Path {
			return nil, falseOutput("says output %q is %s, not %s", o.Name, built.Path, o.Path)
		}
		if reported {
			outputs[i] = built
		}
		if outputs[i].Path.IsZero() {
			return nil, falseOutput("does not say where output %q is", o.Name)
		}
	}
	return outputs, nil
}

// announce asks the builder what it knows of the outputs and makes them visible
// in the cache. Those that the cache holds already need no copy.
// The size is that of all.
func (t *attempt) announce(ctx context.Context, sess *upstream.Session, outputs []nix.BuiltOutput) (arrivals []*cache.Arrival, size uint64, err error) {
	infos, err := t.outputInfos(ctx, sess, outputs)
	if err != nil {
		return nil, 0, err
	}
	if err := t.haveRoom(infos); err != nil {
		return nil, 0, &storeError{err}
	}
	for _, info := range infos {
		size += info.NarSize
		arrival, err := t.cache.Announce(info, t.grant(info, t.ownReferences(sess.Builder(), info, outputs)))
		if err != nil {
			abort(arrivals, err)
			return nil, 0, err
		}
		arrivals = append(arrivals, arrival)
	}
	return arrivals, size, nil
}

func (t *tries) outputInfos(ctx context.Context, sess *upstream.Session, outputs []nix.BuiltOutput) ([]*nix.PathInfo, error) {
	infos := make([]*nix.PathInfo, len(outputs))
	for i, out := range outputs {
		info, err := sess.QueryPathInfo(ctx, out.Path)
		if errors.Is(err, nix.ErrNotFound) {
			return nil, falseOutput("says it built output %q, and does not have %s", out.Name, out.Path)
		}
		if err != nil {
			return nil, err
		}
		info = t.addressed(info)
		infos[i] = withoutForgeries(t.policy.Current().TrustedPublicKeys, info)
	}
	return referencesFirst(infos), nil
}

// referencesFirst sorts the outputs of a build: what refers to something that is
// not shown to everybody yet is not shown either.
func referencesFirst(infos []*nix.PathInfo) []*nix.PathInfo {
	byPath := make(map[nix.StorePath]*nix.PathInfo, len(infos))
	for _, info := range infos {
		byPath[info.Path] = info
	}
	return inOrder(infos, func(path nix.StorePath) *nix.PathInfo { return byPath[path] })
}

// haveRoom looks for space before the client has its reply: once it follows an
// output, only the end of the connection tells it that the disk is full.
func (t *tries) haveRoom(infos []*nix.PathInfo) error {
	var sizes []uint64
	for _, info := range infos {
		if len(t.cache.QueryValidPaths(t.order.principal.Domain, []nix.StorePath{info.Path})) == 0 {
			sizes = append(sizes, info.NarSize)
		}
	}
	return t.cache.RoomFor(sizes...)
}

// storeError says that the proxy cannot store what was built. No other builder
// changes that.
type storeError struct{ err error }

func (e *storeError) Error() string { return "store outputs: " + e.err.Error() }

func (e *storeError) Unwrap() error { return e.err }

// addressed returns info with the content address that a fixed output must have,
// whatever the builder says: the cache takes no other content then.
func (t *tries) addressed(info *nix.PathInfo) *nix.PathInfo {
	for _, out := range t.order.drv.Outputs {
		ca, err := out.ContentAddress()
		if out.Path != info.Path || out.HashAlgo == "" || err != nil {
			continue
		}
		fixed := info.Clone()
		fixed.CA = ca
		return fixed
	}
	return info
}

// grant says who vouches for an output: the domain that had it built, unless a
// trusted key has signed it or the build is proven. Signatures that are not known
// here pass through all the same: they are the builder's, to whom the domain trusts
// its builds.
func (t *attempt) grant(info *nix.PathInfo, ownReferences bool) cache.Grant {
	vouched := cache.DomainVouched
	if t.proven && ownReferences {
		vouched = cache.Built
	}
	pol := t.policy.Current()
	return grantOf(pol, t.order.principal.Domain, verifiedBy(pol.TrustedPublicKeys, info, info.Sigs), vouched)
}

// ownReferences reports whether an output refers only to what its build had, and
// logs what else it refers to.
func (t *tries) ownReferences(builder string, info *nix.PathInfo, outputs []nix.BuiltOutput) bool {
	had := make(map[nix.StorePath]bool, len(t.order.inputs)+len(outputs))
	for _, in := range t.order.inputs {
		had[in.Path] = true
	}
	for _, out := range outputs {
		had[out.Path] = true
	}
	own := true
	for _, ref := range info.References {
		if !had[ref] {
			own = false
			t.order.log.Warn("output refers to what the build did not have", "builder", builder,
				"output", info.Path.String(), "reference", ref.String())
		}
	}
	return own
}

// fetch copies announced outputs into the cache and gives the session back. It puts
// into fetched, which has room for that, how it ended.
func (t *tries) fetch(sess *upstream.Session, arrivals []*cache.Arrival, fetched chan<- error) {
	ctx := t.fetchCtx
	defer func() {
		if p := recover(); p != nil {
			err := t.panicked(p)
			abort(arrivals, err)
			fetched <- err
			t.end(ctx, sess)
		}
	}()
	for i, arrival := range arrivals {
		if err := t.fill(ctx, sess, arrival); err != nil {
			t.order.log.Error("output did not reach the cache", "builder", sess.Builder(),
				"output", arrival.Path().String(), "error", err)
			t.outputRefused(sess.Builder(), arrival.Path(), err)
			abort(arrivals[i:], err)
			fetched <- err
			t.end(ctx, sess)
			return
		}
	}
	fetched <- nil
	sess.Release()
}

// fill copies one output, unless the cache has it or somebody else brings it.
// After a repair it is read all the same, and takes the place of one whose bytes
// were lost; other bytes than those of the cache are logged and dropped, as the
// domain was answered with the first ones.
func (t *tries) fill(ctx context.Context, sess *upstream.Session, arrival *cache.Arrival) error {
	if !arrival.Needed() && t.order.mode != nix.BuildRepair {
		return nil
	}
	nar, err := sess.NarFromPath(ctx, arrival.Path())
	if err != nil {
		return err
	}
	defer nar.Close()
	wrong := t.misses.distrust(foundKey{t.order.principal.Domain, arrival.Path()}, sess.Builder())
	outcome, err := arrival.Fill(ctx, nar)
	wrong(err != nil && !upstream.Broken(err))
	if outcome == cache.Differs {
		t.order.log.Warn("repaired output differs from what the cache holds; the first one stays",
			"builder", sess.Builder(), "output", arrival.Path().String())
	}
	return whoseFill(ctx, err)
}

// whoseFill says whose fault it is that an output did not reach the cache.
func whoseFill(ctx context.Context, err error) error {
	var user *nix.UserError
	switch {
	case err == nil || ctx.Err() != nil || upstream.Broken(err):
		return err
	case cache.IsFull(err) || !errors.As(err, &user):
		return &storeError{err}
	}
	return fmt.Errorf("%w: %w", errFalseOutput, err)
}

func abort(arrivals []*cache.Arrival, err error) {
	for _, a := range arrivals {
		a.Abort(err)
	}
}
