package proxy

import (
	"context"
	"errors"
	"fmt"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

// takeOutputs announces the outputs of a build in the cache and has them copied
// there at the builder's speed, on the session that built them. The result can
// go to the clients at once: they follow the copies while they grow.
func (t *tries) takeOutputs(ctx context.Context, sess *upstream.Session, result *nix.BuildResult) (*nix.BuildResult, error) {
	outputs, err := t.outputs(result)
	if err != nil {
		t.end(ctx, sess)
		return nil, err
	}
	arrivals, err := t.announce(ctx, sess, outputs)
	if err != nil {
		t.end(ctx, sess)
		return nil, fmt.Errorf("take outputs from %s: %w", sess.Builder(), err)
	}
	t.fetches.Go(func() { t.fetch(sess, arrivals) })
	result.Outputs = outputs
	return result, nil
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
			return nil, nix.Refuse("says output %q is %s, not %s", o.Name, built.Path, o.Path)
		}
		if reported {
			outputs[i] = built
		}
		if outputs[i].Path.IsZero() {
			return nil, nix.Refuse("does not say where output %q is", o.Name)
		}
	}
	return outputs, nil
}

// announce asks the builder what it knows of the outputs and makes them visible
// in the cache. Those that the cache holds already need no copy.
func (t *tries) announce(ctx context.Context, sess *upstream.Session, outputs []nix.BuiltOutput) (_ []*cache.Arrival, err error) {
	infos, err := t.outputInfos(ctx, sess, outputs)
	if err != nil {
		return nil, err
	}
	if err := t.haveRoom(infos); err != nil {
		return nil, &storeError{err}
	}
	var arrivals []*cache.Arrival
	for _, info := range infos {
		arrival, err := t.cache.Announce(info, t.grant(info, t.ownReferences(sess.Builder(), info, outputs)))
		if err != nil {
			abort(arrivals, err)
			return nil, err
		}
		arrivals = append(arrivals, arrival)
	}
	return arrivals, nil
}

func (t *tries) outputInfos(ctx context.Context, sess *upstream.Session, outputs []nix.BuiltOutput) ([]*nix.PathInfo, error) {
	infos := make([]*nix.PathInfo, len(outputs))
	for i, out := range outputs {
		info, err := sess.QueryPathInfo(ctx, out.Path)
		if errors.Is(err, nix.ErrNotFound) {
			return nil, nix.Refuse("says it built output %q, and does not have %s", out.Name, out.Path)
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
func (t *tries) grant(info *nix.PathInfo, ownReferences bool) cache.Grant {
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

// fetch copies announced outputs into the cache and gives the session back.
func (t *tries) fetch(sess *upstream.Session, arrivals []*cache.Arrival) {
	ctx := t.fetchCtx
	defer func() {
		if p := recover(); p != nil {
			abort(arrivals, t.panicked(p))
			t.end(ctx, sess)
		}
	}()
	for i, arrival := range arrivals {
		if err := t.fill(ctx, sess, arrival); err != nil {
			t.order.log.Error("output did not reach the cache", "builder", sess.Builder(),
				"output", arrival.Path().String(), "error", err)
			abort(arrivals[i:], err)
			t.end(ctx, sess)
			return
		}
	}
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
	return err
}

func abort(arrivals []*cache.Arrival, err error) {
	for _, a := range arrivals {
		a.Abort(err)
	}
}
