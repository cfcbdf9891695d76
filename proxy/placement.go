package proxy

import (
	"slices"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/route"
)

// requestOf is what the router needs to know of an order.
func (b *builds) requestOf(o *order) route.Request {
	req := requestBy(b.policy.Current(), o.principal, o.drvPath.Name(), o.system, o.features, o.needs)
	req.Name = o.drvPath.String()
	req.Avoid = b.suspected(o.drvPath)
	req.Patience = b.patience(o)
	req.Inputs = make([]route.Input, len(o.inputs))
	for i, in := range o.inputs {
		req.Inputs[i] = route.Input{ID: b.router.Intern(in.Path.String()), Size: int64(in.NarSize)}
	}
	req.InputJobs = inputJobs(o.inputs)
	b.noteListed(o, req.Inputs)
	return req
}

// requestBy is what the policy says of a principal's build: where it may go, by what
// its derivation requires. The name is the derivation's, "" if nobody said.
func requestBy(pol *policy.Policy, principal *policy.Principal, name, system string, features []string, needs map[string]int64) route.Request {
	return route.Request{
		Asker: askerOf(principal), Domain: principal.Domain, Job: route.JobName(name),
		System: system, Features: features, Needs: needs, Soft: pol.Scheduling.SoftFeatures,
		Alone: slices.ContainsFunc(features, func(f string) bool { return slices.Contains(pol.Scheduling.Alone, f) }),
	}
}

// placesOf are the builders of a policy as the router knows them.
func placesOf(pol *policy.Policy) []route.Builder {
	places := make([]route.Builder, len(pol.Builders))
	for i, b := range pol.Builders {
		places[i] = route.Builder{
			Name: b.Name, Systems: b.Systems, Features: b.Features, MandatoryFeatures: b.MandatoryFeatures,
			MaxJobs: b.MaxJobs, SpeedFactor: b.SpeedFactor, Domains: b.Domains, Resources: b.Resources,
		}
	}
	return places
}

// suspected are the builders where something may be left of an earlier build of a
// derivation.
func (b *builds) suspected(drv nix.StorePath) []route.Exclusion {
	var names []string
	for _, builder := range b.policy.Current().Builders {
		names = append(names, builder.Name)
	}
	return b.suspects.of(drv, names)
}

// askersOf are the principals as they stand in the queue.
func askersOf(pol *policy.Policy) []route.Asker {
	all := make([]route.Asker, len(pol.Principals))
	for i := range pol.Principals {
		all[i] = askerOf(&pol.Principals[i])
	}
	return all
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
