package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/route"
)

// A build to check or to repair outputs runs where they are: only there is
// something to compare with. What a builder holds is asked when it is needed,
// since everybody's garbage collector changes it.

const (
	// askTimeout is how long a builder may take to say what it holds; after
	// that it counts as holding nothing.
	askTimeout = time.Second
	// maxAsked is how many builders are asked at the same time.
	maxAsked = 16
)

// mayBuild refuses builds that the principal may not ask for.
func (s *session) mayBuild(mode nix.BuildMode) error {
	if err := s.mayWrite("build"); err != nil {
		return err
	}
	p := s.principal
	switch {
	case mode == nix.BuildCheck && !p.CheckBuilds:
		return refusedMode(p, "have outputs built again to check them", "check_builds")
	case mode == nix.BuildRepair && !p.RepairBuilds:
		return refusedMode(p, "have outputs built again to replace them", "repair_builds")
	}
	return nil
}

func refusedMode(p *policy.Principal, what, setting string) error {
	return nix.Refuse("key of %q may not %s; the admin allows it with '%s: allow' for this principal in the proxy's policy", p.Name, what, setting)
}

// compared adds to an order that is to check or to repair outputs what is known
// of them: a builder that lacks them can be given ours.
func (s *session) compared(o *order) error {
	outputs, known := o.drv.OutputPaths()
	if !known {
		return nix.Refuse("outputs of '%s' have no path before they are built, so they can be neither checked nor repaired through the proxy", o.drvPath)
	}
	closure, err := s.closure(outputs, nil)
	if err != nil {
		return nil // not here: then only a builder that has them will do
	}
	infos, err := s.inputInfos(closure)
	if err != nil {
		return err
	}
	o.outputsHere = true
	have := make(map[nix.StorePath]bool, len(o.inputs))
	for _, in := range o.inputs {
		have[in.Path] = true
	}
	o.inputs = append(o.inputs, slices.DeleteFunc(infos, func(info *nix.PathInfo) bool { return have[info.Path] })...)
	return nil
}

// narrow keeps an order to the builders that hold its outputs, if there are any.
// It returns a result if there is nothing to compare with anywhere.
func (t *tries) narrow(ctx context.Context) *nix.BuildResult {
	outputs, _ := t.order.drv.OutputPaths()
	t.excludeServe()
	candidates := t.router.Explain(t.request()).Candidates
	up := 0
	for up < len(candidates) && candidates[up].State <= route.Busy {
		up++
	}
	var lacking []route.Exclusion
	for i, why := range t.lack(ctx, candidates[:up], outputs) {
		if why != "" {
			candidates[i].Reason = why
			lacking = append(lacking, route.Exclusion{Builder: candidates[i].Name, Reason: why})
		}
	}
	switch {
	case len(lacking) < up:
		t.lacking = lacking
	case up > 0 && !t.order.outputsHere && t.order.mode == nix.BuildCheck:
		return nothingToCompare(t.order, candidates)
	}
	return nil
}

// excludeServe keeps the order away from builders that are spoken to in the serve
// protocol, which has no word for such builds.
func (t *tries) excludeServe() {
	for _, b := range t.policy.Current().Builders {
		if b.Protocol == policy.ProtocolServe {
			t.excluded = append(t.excluded, route.Exclusion{Builder: b.Name, Reason: "its protocol (ssh) knows no builds that check or repair"})
		}
	}
}

// nothingToCompare begins in Nix's own words.
func nothingToCompare(o *order, builders []route.Candidate) *nix.BuildResult {
	var reasons strings.Builder
	for _, b := range builders {
		fmt.Fprintf(&reasons, "\n  %s: %s", b.Name, b.Reason)
	}
	return nix.Failure(nix.StatusMiscFailure,
		"some outputs of '%s' are not valid, so checking is not possible: neither the proxy nor a builder holds them; build it first%s", o.drvPath, &reasons)
}

// widen lets an order go to builders that lack its outputs, when no other is left
// and the outputs can be sent there.
func (t *tries) widen(err error) bool {
	var none *route.NoBuilderError
	if !errors.As(err, &none) || len(t.lacking) == 0 || !t.order.outputsHere {
		return false
	}
	t.lacking = nil
	nix.Line(t.log, "no builder that holds the outputs is left; sending them to another one")
	return true
}

// lack tells of each builder why it cannot compare: that it lacks one of the
// paths or does not say; "" if it holds them all.
func (t *tries) lack(ctx context.Context, builders []route.Candidate, paths []nix.StorePath) []string {
	why := make([]string, len(builders))
	var asking errgroup.Group
	asking.SetLimit(maxAsked)
	for i, builder := range builders {
		asking.Go(func() error {
			switch holds, err := t.holds(ctx, builder.Name, paths); {
			case err != nil:
				t.order.log.Warn("builder does not say what it holds", "builder", builder.Name, "error", err)
				why[i] = "does not say what it holds"
			case !holds:
				why[i] = "does not hold the outputs"
			}
			return nil
		})
	}
	asking.Wait()
	return why
}

func (t *tries) holds(ctx context.Context, builder string, paths []nix.StorePath) (_ bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	sess, err := t.pool.Get(ctx, builder)
	if err != nil {
		return false, err
	}
	defer func() {
		if p := recover(); p != nil { // as in attempt
			sess.Close()
			err = t.panicked(p)
		}
	}()
	valid, err := sess.QueryValidPaths(ctx, paths, false)
	if err != nil {
		sess.Close()
		return false, fmt.Errorf("ask %s: %w", builder, err)
	}
	sess.Release()
	return len(valid) == len(paths), nil
}
