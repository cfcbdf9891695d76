package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"nixbastion/cache"
	"nixbastion/internal/nix"
)

// Nothing connects the path of an input-addressed output with the build request
// that names it: whoever may ask for a build can have anything built under any
// name. A build is proven if the request is that of a .drv file which is here, with
// all that it depends on, if the paths of all their outputs follow from them, and if
// every input is proven itself. Its outputs are then what anybody gets who builds
// this derivation, and not only what a domain says they are.
//
// That needs a builder that was given our bytes: one with builder_content: match.
// For others nothing is looked at. What a build with a fixed output made is proven
// by the content alone.

// A plan is the .drv file of a build with those that it depends on. Of what has a
// fixed output only the content matters, so that its own inputs are not looked at.
// These bounds are far above what people build: a whole operating system has about
// 30,000 of 3 KB each, 400 deep.
const (
	maxPlanDrvs  = 100_000
	maxPlanBytes = 512 << 20
	// maxPlanDepth and maxPlanHeld (bytes) bound what is in memory at one time.
	maxPlanDepth = 4096
	maxPlanHeld  = 16 << 20
	// maxProofs is how many plans are read at one time.
	maxProofs = 4
)

// proof is a plan being read while its build runs.
type proof struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // why it proves nothing; read it when done is closed
}

// prove begins to look whether the plan of an order is proven. End it with wait or
// stop.
func (b *builds) prove(ctx context.Context, o *order) *proof {
	ctx, cancel := context.WithCancel(ctx)
	p := &proof{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		defer func() {
			if v := recover(); v != nil {
				p.err = panicked(o, v)
			}
		}()
		select {
		case b.proofs <- struct{}{}:
			defer func() { <-b.proofs }()
			p.err = (&plan{ctx: ctx, cache: b.cache, domain: o.principal.Domain}).check(o)
		case <-ctx.Done():
			p.err = context.Cause(ctx)
		}
	}()
	return p
}

// wait returns nil if the plan is proven, and else why it is not.
func (p *proof) wait() error {
	<-p.done
	p.cancel()
	return p.err
}

func (p *proof) stop() {
	p.cancel()
	<-p.done
}

// plan reads .drv files from the cache, each once.
type plan struct {
	ctx    context.Context
	cache  *cache.Cache
	domain string
	hasher nix.DerivationHasher

	root    nix.StorePath
	rootDrv *nix.Derivation
	inputs  map[nix.StorePath][]nix.DerivationOutput // of the root's input derivations

	drvs, depth int
	bytes, held int64
}

// check returns why an order is not the one that its derivation asks for.
func (p *plan) check(o *order) error {
	kind, err := o.drv.Kind()
	switch {
	case err != nil:
		return err
	case kind != nix.InputAddressed:
		return fmt.Errorf("its outputs are %s", kind)
	}
	p.root, p.inputs = o.drvPath, map[nix.StorePath][]nix.DerivationOutput{}
	p.hasher.Read = p.read
	if _, err := p.hasher.InputHash(p.root); err != nil {
		return err
	}
	if err := sameDerivation(&p.rootDrv.BasicDerivation, o.drv); err != nil {
		return err
	}
	return p.checkInputs(o)
}

// read returns a derivation whose text is what its path says, and whose declared
// outputs are those that follow from it and from what it depends on.
func (p *plan) read(path nix.StorePath) (*nix.Derivation, error) {
	if err := p.ctx.Err(); err != nil {
		return nil, context.Cause(p.ctx)
	}
	if p.drvs++; p.drvs > maxPlanDrvs {
		return nil, fmt.Errorf("it depends on more than %d derivations", maxPlanDrvs)
	}
	if p.depth++; p.depth > maxPlanDepth {
		return nil, fmt.Errorf("it depends on derivations more than %d deep", maxPlanDepth)
	}
	defer func() { p.depth-- }()
	text, err := readDerivation(p.ctx, p.cache, p.domain, path, min(maxPlanHeld-p.held, maxPlanBytes-p.bytes))
	if err != nil {
		return nil, err
	}
	size := int64(len(text))
	p.bytes += size
	p.held += size
	defer func() { p.held -= size }()
	drv, err := nix.ParseDerivation(path.DrvName(), text)
	if err != nil {
		return nil, err
	}
	if err := checkText(path, text, drv); err != nil {
		return nil, err
	}
	p.note(path, drv)
	return drv, p.hasher.CheckOutputPaths(path.DrvName(), drv)
}

// note keeps what is asked for of a derivation when all were read.
func (p *plan) note(path nix.StorePath, drv *nix.Derivation) {
	if path == p.root {
		p.rootDrv = drv
		for _, in := range drv.InputDrvs {
			p.inputs[in.Path] = nil
		}
		return
	}
	if _, direct := p.inputs[path]; direct {
		p.inputs[path] = drv.Outputs
	}
}

// checkText reports whether a .drv file is the one that its path names.
func checkText(path nix.StorePath, text []byte, drv *nix.Derivation) error {
	refs := slices.Clone(drv.InputSrcs)
	for _, in := range drv.InputDrvs {
		refs = append(refs, in.Path)
	}
	ca := nix.ContentAddress{Method: nix.Text, Hash: nix.HashBytes(nix.SHA256, text)}
	want, err := nix.ContentAddressedPath(path.Name(), ca, refs, false)
	if err == nil && want != path {
		err = fmt.Errorf("derivation %s is not the text that its path names", path)
	}
	return err
}

// sameDerivation compares what is to be built with a derivation, apart from inputs.
func sameDerivation(want, got *nix.BasicDerivation) error {
	byName := func(a, b nix.DerivationOutput) int { return strings.Compare(a.Name, b.Name) }
	byVar := func(a, b nix.EnvVar) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Value, b.Value))
	}
	what := ""
	switch {
	case want.Platform != got.Platform:
		what = "system"
	case want.Builder != got.Builder:
		what = "builder"
	case !slices.Equal(want.Args, got.Args):
		what = "arguments"
	case !slices.Equal(slices.SortedFunc(slices.Values(want.Env), byVar), slices.SortedFunc(slices.Values(got.Env), byVar)):
		what = "environment"
	case !slices.Equal(slices.SortedFunc(slices.Values(want.Outputs), byName), slices.SortedFunc(slices.Values(got.Outputs), byName)):
		what = "outputs"
	default:
		return nil
	}
	return fmt.Errorf("the request has other %s than its derivation", what)
}

// checkInputs compares the inputs of an order with what the derivation asks for:
// its sources and the outputs that it uses, with all that they refer to.
func (p *plan) checkInputs(o *order) error {
	queue := slices.Clone(p.rootDrv.InputSrcs)
	for _, in := range p.rootDrv.InputDrvs {
		outputs, err := usedOutputs(in, p.inputs[in.Path])
		if err != nil {
			return err
		}
		queue = append(queue, outputs...)
	}
	sent := make(map[nix.StorePath]*nix.PathInfo, len(o.inputs))
	for _, info := range o.inputs {
		sent[info.Path] = info
	}
	wanted := map[nix.StorePath]bool{}
	for len(queue) > 0 {
		path := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if wanted[path] {
			continue
		}
		info := sent[path]
		if info == nil {
			return fmt.Errorf("the request lacks the input %s", path)
		}
		wanted[path] = true
		queue = append(queue, info.References...)
	}
	for path := range sent {
		if !wanted[path] {
			return fmt.Errorf("the request has the input %s, for which its derivation does not ask", path)
		}
	}
	return nil
}

func usedOutputs(in nix.InputDrv, outputs []nix.DerivationOutput) ([]nix.StorePath, error) {
	paths := make([]nix.StorePath, len(in.Outputs))
	for n, name := range in.Outputs {
		i := slices.IndexFunc(outputs, func(o nix.DerivationOutput) bool { return o.Name == name })
		if i < 0 || outputs[i].Path.IsZero() {
			return nil, fmt.Errorf("output %q of %s has no path", name, in.Path)
		}
		paths[n] = outputs[i].Path
	}
	return paths, nil
}

// provenInputs returns why the inputs that an order had are not all proven.
func (b *builds) provenInputs(o *order) error {
	for _, in := range o.inputs {
		info, provenance, err := b.cache.QueryVouched(o.principal.Domain, in.Path)
		switch {
		case errors.Is(err, nix.ErrNotFound) || err == nil && info.NarHash != in.NarHash:
			return fmt.Errorf("the input %s has gone meanwhile", in.Path)
		case err != nil:
			return err
		case provenance < cache.Built:
			return fmt.Errorf("nothing proves the input %s (%s)", in.Path, provenance)
		}
	}
	return nil
}
