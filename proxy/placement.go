package proxy

import (
	"slices"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/route"
)

// requestOf is what the router needs to know of an order.
func (b *builds) requestOf(o *order) route.Request {
	pol := b.policy.Current()
	req := requestFor(o.principal)
	req.Name, req.System, req.Features, req.Needs = o.drvPath.String(), o.system, o.features, o.needs
	req.Soft = pol.Scheduling.SoftFeatures
	req.Alone = slices.ContainsFunc(o.features, func(f string) bool { return slices.Contains(pol.Scheduling.Alone, f) })
	req.Patience = b.patience(o)
	req.Job = route.JobName(o.drvPath.Name())
	req.Inputs = make([]route.Input, len(o.inputs))
	for i, in := range o.inputs {
		req.Inputs[i] = route.Input{ID: b.router.Intern(in.Path.String()), Size: int64(in.NarSize)}
	}
	req.InputJobs = inputJobs(o.inputs)
	b.noteListed(o, req.Inputs)
	return req
}

// requestFor is what the policy says of a principal's requests.
func requestFor(principal *policy.Principal) route.Request {
	return route.Request{Asker: askerOf(principal), Domain: principal.Domain}
}

func askerOf(principal *policy.Principal) route.Asker {
	return route.Asker{
		Principal: principal.Name, PrincipalMaxJobs: principal.MaxJobs,
		Class: routeClasses[principal.Class], Weight: principal.Weight,
	}
}

var routeClasses = map[policy.Class]route.Class{
	policy.ClassInteractive: route.Interactive, policy.ClassNormal: route.Normal, policy.ClassBulk: route.Bulk,
}

// inputJobs are the jobs that made a build's inputs, as far as the infos say.
func inputJobs(inputs []*nix.PathInfo) []string {
	var jobs []string
	for _, in := range inputs {
		if !in.Deriver.IsZero() {
			jobs = append(jobs, route.JobName(in.Deriver.Name()))
		}
	}
	slices.Sort(jobs)
	return slices.Compact(jobs)
}

// noteListed tells the router which inputs of an order builders hold by the lists of
// their stores, or will in a moment.
func (b *builds) noteListed(o *order, inputs []route.Input) {
	for _, builder := range b.policy.Current().Builders {
		if !slices.Contains(builder.Domains, o.principal.Domain) {
			continue
		}
		var listed []route.PathID
		for i, in := range o.inputs {
			if b.pool.Lists(builder.Name, in.Path) || b.sending.has(builder.Name, in.Path) {
				listed = append(listed, inputs[i].ID)
			}
		}
		b.router.NoteHeld(builder.Name, listed...)
	}
}

// noteBuilt tells the router that a builder holds what it built, before somebody else
// gets the slot: what needs it is best built there.
func (t *attempt) noteBuilt(result *nix.BuildResult) {
	var ids []route.PathID
	for _, out := range append(builtOutputs(t.order.drv), result.Outputs...) {
		if !out.Path.IsZero() {
			ids = append(ids, t.router.Intern(out.Path.String()))
		}
	}
	t.router.NoteHeld(t.lease.Builder(), ids...)
}
