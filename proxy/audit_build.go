package proxy

import (
	"context"
	"time"

	"nixbastion/internal/audit"
	"nixbastion/internal/nix"
)

// event begins one about an order.
func (o *order) event(kind audit.Kind) audit.Event {
	e := o.who.event(kind)
	e.Principal, e.Domain, e.Drv = o.principal.Name, o.principal.Domain, o.drvPath.String()
	return e
}

// canceled is the result of a build that was given up, which Nix has no word for.
const canceled = "Canceled"

// built keeps how a build ended. What cannot be kept is no success.
func (b *builds) built(ctx context.Context, t *tries, began time.Time, result *nix.BuildResult, err error) (*nix.BuildResult, error) {
	o := t.order
	e := b.buildEvent(o, result)
	e.Builder, e.Attempts = t.where()
	e.Seconds = time.Since(began).Seconds()
	if err != nil {
		e.Result, e.Reason = endWithout(ctx, err)
	}
	for _, in := range o.inputs {
		e.Inputs++
		e.InputBytes += in.NarSize
	}
	if b.audit.Commit(e) != nil && err == nil {
		return nix.Failure(nix.StatusTransientFailure, "'%s' ended as %s, but %v", o.drvPath, result.Status, errNoAudit), nil
	}
	return result, err
}

// attended keeps that one more client gets the result of a build.
func (b *builds) attended(o *order, how joined, running *build, result *nix.BuildResult) (*nix.BuildResult, error) {
	if how == joinedFirst {
		return result, nil
	}
	e := b.buildEvent(o, result)
	e.Shared, e.Builder = true, running.builder
	if b.audit.Commit(e) != nil {
		return nil, errNoAudit
	}
	return result, nil
}

// attendedInVain keeps that one more client asked for a build, and has no result.
func (b *builds) attendedInVain(ctx context.Context, o *order, how joined, err error) {
	if how == joinedFirst {
		return
	}
	e := b.buildEvent(o, nil)
	e.Shared = true
	e.Result, e.Reason = endWithout(ctx, err)
	b.audit.Record(e)
}

// endWithout are the result and the reason of a build that has no result of Nix's.
func endWithout(ctx context.Context, err error) (result, reason string) {
	if ctx.Err() != nil {
		return canceled, err.Error()
	}
	return nix.StatusMiscFailure.String(), err.Error()
}

// where is the builder whose answer counts, or the one that had the order last, and
// on how many it was tried.
func (t *tries) where() (builder string, attempts int) {
	attempts = len(t.trail) + len(t.running)
	switch {
	case t.builder != "":
		return t.builder, attempts + 1
	case len(t.running) > 0:
		return t.running[len(t.running)-1].lease.Builder(), attempts
	case attempts > 0:
		return t.trail[attempts-1].builder, attempts
	}
	return "", 0
}

// buildEvent begins the event of a build; a nil result is one that there is not.
func (b *builds) buildEvent(o *order, result *nix.BuildResult) audit.Event {
	e := o.event(audit.Build)
	e.System = o.system
	switch o.mode {
	case nix.BuildCheck:
		e.Mode = "check"
	case nix.BuildRepair:
		e.Mode = "repair"
	}
	if result != nil {
		e.Result, e.Reason = result.Status.String(), result.ErrorMsg
		e.Outputs = b.auditOutputs(o.principal.Domain, result)
	}
	return e
}

// auditOutputs are the outputs of a success, with what is known of them.
func (b *builds) auditOutputs(domain string, result *nix.BuildResult) []audit.Output {
	if !result.Status.Success() {
		return nil
	}
	outputs := make([]audit.Output, len(result.Outputs))
	for i, out := range result.Outputs {
		outputs[i] = audit.Output{Name: out.Name, Path: out.Path.String()}
		if info, err := b.cache.QueryPathInfo(domain, out.Path); err == nil {
			outputs[i].NarHash, outputs[i].Size = info.NarHash.String(), info.NarSize
		}
	}
	return outputs
}

// outputRefused keeps that an output is not in the cache although its build was a
// success.
func (t *tries) outputRefused(builder string, path nix.StorePath, err error) {
	e := t.order.event(audit.OutputRefused)
	e.Builder, e.Path, e.Reason = builder, path.String(), err.Error()
	t.audit.Record(e)
}
