package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"nixbastion/cache"
	"nixbastion/internal/metrics"
	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// session is one client's store: what its protocol connection sees of the
// proxy. Everything but builds is answered from the cache, within the domain of
// the client's principal; no builder is waited for, but for a path that one lists
// and the cache lacks (found.go). It lives as long as the protocol connection and is used by one goroutine at a time, as nix.Store
// says.
type session struct {
	principal *policy.Principal
	cache     *cache.Cache
	builds    *builds
	found     *finder
	feeder    *feeder
	log       *slog.Logger

	// pins keeps what this client was promised until it leaves.
	pins *cache.Pins
	// promises does so for what only builders hold.
	promises promises
	// attached counts the builds attended, to keep their activity ids apart.
	attached uint64
	// own are the outputs of builds that this client asked for.
	own map[nix.StorePath]bool
	// lost reports, once the client has gone, whether it was lost. Nil: it was not.
	lost func() bool
	// dismissed returns why the client has to go, nil if it may stay. Nil: it stays.
	dismissed func() error
	// working counts the builds that it may still wait for then. May be nil.
	working *atomic.Int64
	// operates notes what the session does, for the admin; nil is for nobody.
	operates func(operation string)
	// buildLimits are those of the builds that follow.
	buildLimits nix.BuildLimits
	// who is at the other end; nil for questions of the proxy's own.
	who *Identity
}

var (
	_ nix.Store          = (*session)(nil)
	_ nix.TempRooter     = (*session)(nil)
	_ nix.MissingQuerier = (*session)(nil)
	_ nix.OutputMapper   = (*session)(nil)
	_ nix.OptionSetter   = (*session)(nil)
	_ nix.SignatureAdder = (*session)(nil)
	_ nix.PathFinder     = (*session)(nil)
	_ nix.PathLister     = (*session)(nil)
	_ nix.BuildLimiter   = (*session)(nil)
)

var errNoRepair = nix.Refuse("an upload does not replace a path that is valid here; the proxy drops by itself what it finds broken, and such a path can be uploaded again")

// close gives back what the session holds.
func (s *session) close() {
	s.feeder.close()
	s.promises.release()
	s.pins.Release()
}

func (s *session) domain() string { return s.principal.Domain }

// grant says under whose name an upload of this client enters the cache, given its
// signatures that may be believed. What a member of a domain sends without proof stays
// a claim, unless the domain vouches for what this one sends.
func (s *session) grant(pol *policy.Policy, verified []nix.Signature) cache.Grant {
	return grantOf(pol, s.domain(), verified, s.vouched())
}

func (s *session) vouched() cache.Provenance {
	if s.principal.Publish {
		return cache.DomainVouched
	}
	return cache.Claimed
}

func (s *session) policy() *policy.Policy { return s.builds.policy.Current() }

// mayWrite refuses what only a full key may do.
func (s *session) mayWrite(what string) error {
	if err := s.sentAway(); err != nil {
		return err
	}
	s.refresh()
	if err := mayWrite(s.principal, what); err != nil {
		return err
	}
	return s.mayChange()
}

// mayWrite is the same of a principal that is not here.
func mayWrite(principal *policy.Principal, what string) error {
	if principal.Role == policy.RoleFull {
		return nil
	}
	return nix.Refuse("key of %q has the role %s and may not %s here; the admin gives the role in the proxy's policy",
		principal.Name, principal.Role, what)
}

// QueryValidPaths answers from the cache and pins what it promises. To who may only
// read it counts what builders hold, too; who uploads is answered what need not be
// sent. Nothing is substituted.
func (s *session) QueryValidPaths(ctx context.Context, paths []nix.StorePath, _ bool) ([]nix.StorePath, error) {
	if err := s.sentAway(); err != nil {
		return nil, err
	}
	valid := s.pins.Pin(s.domain(), paths)
	if s.principal.Role == policy.RoleRead && len(valid) < len(paths) {
		valid = append(valid, s.found.listed(ctx, &s.promises, s.domain(), without(paths, valid))...)
	}
	return valid, nil
}

// QueryPathInfo answers from the cache and pins the path. It waits for the
// signature of a path that is still arriving. One that only a builder holds is
// brought first, so that the info is that of verified bytes.
func (s *session) QueryPathInfo(ctx context.Context, path nix.StorePath) (*nix.PathInfo, error) {
	if err := s.mayFetch(path); err != nil {
		return nil, err
	}
	if err := s.awaitSignature(ctx, path); err != nil {
		return nil, err
	}
	info, err := s.pins.QueryPathInfo(s.domain(), path)
	if errors.Is(err, nix.ErrNotFound) && s.found.bring(ctx, s.principal, path) {
		return s.pins.QueryPathInfo(s.domain(), path)
	}
	return info, err
}

// NarFromPath opens a NAR in the cache, or follows one that is still arriving
// from a builder.
func (s *session) NarFromPath(ctx context.Context, path nix.StorePath) (io.ReadCloser, error) {
	if err := s.mayFetch(path); err != nil {
		return nil, err
	}
	s.have(ctx, path)
	return s.cache.OpenNar(ctx, s.domain(), path)
}

// have pins a path, once it is in the cache, and reports whether it is.
func (s *session) have(ctx context.Context, path nix.StorePath) bool {
	return s.pinned(path) || s.found.bring(ctx, s.principal, path) && s.pinned(path)
}

func (s *session) pinned(path nix.StorePath) bool {
	return len(s.pins.Pin(s.domain(), []nix.StorePath{path})) > 0
}

// AddTempRoots pins paths; those that are not valid yet are pinned by their
// upload.
func (s *session) AddTempRoots(_ context.Context, paths []nix.StorePath) error {
	s.pins.Pin(s.domain(), paths)
	return nil
}

// SetOptions takes a client's settings and drops them: how builders build is
// the admin's to say.
func (s *session) SetOptions(context.Context, nix.ClientOptions) error { return nil }

// AddMultipleToStore streams uploads into the cache.
func (s *session) AddMultipleToStore(ctx context.Context, _ nix.Logger, src nix.PathSource, opts nix.AddOptions) (err error) {
	if src.Count == 0 {
		return nil
	}
	defer func() { s.noteRefusal("upload", nix.StorePath{}, err) }()
	if err := s.mayWrite("upload paths"); err != nil {
		return err
	}
	if opts.Repair {
		return errNoRepair
	}
	for {
		info, nar, err := src.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.mayChange(); err != nil { // a long upload may fill the disk
			return err
		}
		if err := s.receive(ctx, info, nar, opts); err != nil {
			return err
		}
	}
}

func (s *session) receive(ctx context.Context, claimed *nix.PathInfo, nar io.Reader, opts nix.AddOptions) error {
	if err := s.checkSize(claimed.Path, claimed.NarSize); err != nil {
		return err
	}
	info, grant, err := s.proven(claimed, opts)
	if err != nil {
		return err
	}
	outcome, err := s.cache.ReceiveShown(ctx, info, nar, grant, s.feeder.offer)
	if err != nil {
		return err
	}
	s.uploaded(info, outcome.String())
	if outcome == cache.Differs {
		s.log.Warn("upload differs from what the cache holds; the first one stays", "path", info.Path.String())
	}
	s.pins.Pin(s.domain(), []nix.StorePath{info.Path})
	return nil
}

func (s *session) checkSize(path nix.StorePath, size uint64) error {
	if limit := s.policy().Limits.NarSize; limit > 0 && size > uint64(limit) {
		return nix.Refuse("path %s has a NAR of %d bytes; the proxy's limit (limits.nar_size) is %d", path, size, limit)
	}
	return nil
}

// BuildDerivation has a derivation built, or answers for one that was built
// already or is being built.
func (s *session) BuildDerivation(ctx context.Context, log nix.Logger, drvPath nix.StorePath, drv *nix.BasicDerivation, mode nix.BuildMode) (_ *nix.BuildResult, err error) {
	defer func() { s.noteRefusal("build", drvPath, err) }()
	if err := s.mayBuild(mode); err != nil {
		return nil, err
	}
	if err := s.builds.awaitTurn(ctx, s, drvPath, log); err != nil {
		return nil, err
	}
	o, err := s.order(drvPath, drv, mode)
	if err != nil {
		return nil, err
	}
	if result := s.knownOutputs(drv, mode); result != nil {
		s.builds.metrics.BuildRequest(metrics.RequestKnown)
		s.log.Info("outputs are known", "drv", drvPath.String())
		s.owns(result.Outputs)
		return result, s.known(drvPath, drv, result)
	}
	defer s.work()()
	s.attached++
	if s.operates != nil {
		s.operates("BuildDerivation " + drvPath.DrvName())
	}
	result, err := s.builds.build(ctx, o, log, s.attached<<32)
	if err != nil {
		return nil, err
	}
	for _, out := range result.Outputs {
		s.pins.Pin(s.domain(), []nix.StorePath{out.Path})
	}
	s.owns(result.Outputs)
	return result, nil
}

// knownOutputs returns a result if nothing needs to be built, else nil.
func (s *session) knownOutputs(drv *nix.BasicDerivation, mode nix.BuildMode) *nix.BuildResult {
	if mode != nix.BuildNormal {
		return nil
	}
	paths, ok := drv.OutputPaths()
	if !ok || len(s.pins.Pin(s.domain(), paths)) != len(paths) {
		return nil
	}
	return &nix.BuildResult{Status: nix.StatusAlreadyValid, Outputs: builtOutputs(drv)}
}

// builtOutputs lists the outputs of a derivation whose paths are all known.
func builtOutputs(drv *nix.BasicDerivation) []nix.BuiltOutput {
	outputs := make([]nix.BuiltOutput, len(drv.Outputs))
	for i, o := range drv.Outputs {
		outputs[i] = nix.BuiltOutput{Name: o.Name, Path: o.Path}
	}
	return outputs
}

// order makes a build request of what the client sent, with its inputs looked
// up and pinned for as long as the session lasts.
func (s *session) order(drvPath nix.StorePath, drv *nix.BasicDerivation, mode nix.BuildMode) (*order, error) {
	system, features, err := drv.Requirements()
	if err != nil {
		return nil, nix.Refuse("derivation %s: %v", drvPath, err)
	}
	if err := checkFixedPath(drvPath, drv); err != nil {
		return nil, err
	}
	inputs, err := s.wholeInputs(drv.InputSrcs)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", drvPath, err)
	}
	needs, err := s.policy().NeedsOf(features, drvPath.DrvName(), drv.Attribute)
	if err != nil {
		return nil, nix.Refuse("derivation %s: %v", drvPath, err)
	}
	o := &order{
		principal: s.principal, drvPath: drvPath, drv: drv, mode: mode, limits: s.limitsOf(drvPath, system),
		system: system, features: features, needs: needs, inputs: inputs, log: s.log, feeder: s.feeder, lost: s.lost, who: s.who,
	}
	if mode != nix.BuildNormal {
		err = s.compared(o)
	}
	return o, err
}

// checkFixedPath refuses a derivation whose output has another path than its fixed
// content has. Nix before 2.36 takes such a request and builds another path.
func checkFixedPath(drvPath nix.StorePath, drv *nix.BasicDerivation) error {
	for _, out := range drv.Outputs {
		if _, err := out.CheckOutput(drvPath.DrvName()); err != nil {
			return nix.Refuse("derivation %s: %v", drvPath, err)
		}
	}
	return nil
}

// wholeInputs returns the infos of paths, in that order, and then of what they refer
// to: clients leave that out of a request if the derivation has sources alone.
func (s *session) wholeInputs(paths []nix.StorePath) ([]*nix.PathInfo, error) {
	infos, err := s.inputInfos(paths)
	if err != nil {
		return nil, err
	}
	have := make(map[nix.StorePath]bool, len(infos))
	for _, info := range infos {
		have[info.Path] = true
	}
	for done := 0; done < len(infos); {
		var more []nix.StorePath
		for ; done < len(infos); done++ {
			for _, ref := range infos[done].References {
				if !have[ref] {
					have[ref] = true
					more = append(more, ref)
				}
			}
		}
		// What is not here, the builder must have: it says so if it lacks it.
		found, err := s.inputInfos(s.pins.Pin(s.domain(), more))
		if err != nil {
			return nil, err
		}
		infos = append(infos, found...)
	}
	return infos, nil
}

func (s *session) inputInfos(paths []nix.StorePath) ([]*nix.PathInfo, error) {
	s.pins.Pin(s.domain(), paths)
	infos := make([]*nix.PathInfo, len(paths))
	for i, path := range paths {
		info, err := s.cache.QueryPathInfo(s.domain(), path)
		if err != nil {
			return nil, nix.Refuse("input %s is not valid here; upload it before the build", path)
		}
		infos[i] = info
	}
	return infos, nil
}
