package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"nixbastion/cache"
	"nixbastion/internal/nix"
)

// planned is a derivation with its .drv file and its request.
type planned struct {
	path nix.StorePath
	drv  *nix.Derivation
	file labFile
	out  nix.StorePath
}

// planner makes derivations whose paths are those that Nix would give them.
type planner struct {
	*testing.T
	drvs map[nix.StorePath]*nix.Derivation
}

func newPlanner(t *testing.T) *planner {
	return &planner{T: t, drvs: map[nix.StorePath]*nix.Derivation{}}
}

// plan makes a derivation; change, which may be nil, spoils it before its own path is
// computed.
func (p *planner) plan(name string, sources []nix.StorePath, change func(*nix.Derivation), inputs ...planned) planned {
	p.Helper()
	drv := &nix.Derivation{BasicDerivation: nix.BasicDerivation{
		Outputs: []nix.DerivationOutput{{Name: "out"}}, InputSrcs: nix.SortPaths(slices.Clone(sources)),
		Platform: "x86_64-linux", Builder: "/bin/sh", Args: []string{"-c", "echo > $out"},
		Env: []nix.EnvVar{{Name: "name", Value: name}, {Name: "out"}, {Name: "system", Value: "x86_64-linux"}},
	}}
	for _, in := range inputs {
		drv.InputDrvs = append(drv.InputDrvs, nix.InputDrv{Path: in.path, Outputs: []string{"out"}})
	}
	hasher := &nix.DerivationHasher{Read: func(path nix.StorePath) (*nix.Derivation, error) { return p.drvs[path], nil }}
	paths, err := hasher.OutputPaths(name, drv)
	if err != nil {
		p.Fatal(err)
	}
	drv.Outputs[0].Path, drv.Env[1].Value = paths[0], paths[0].String()
	if change != nil {
		change(drv)
	}
	return p.written(name, drv)
}

// fixed makes a derivation with a fixed output that holds a text.
func (p *planner) fixed(name, text string) planned {
	out := nix.DerivationOutput{Name: "out", HashAlgo: "sha256", Hash: nix.HashBytes(nix.SHA256, []byte(text)).Base16()}
	ca, err := out.ContentAddress()
	if err != nil {
		p.Fatal(err)
	}
	if out.Path, err = nix.ContentAddressedPath(name, ca, nil, false); err != nil {
		p.Fatal(err)
	}
	return p.written(name, &nix.Derivation{BasicDerivation: nix.BasicDerivation{
		Outputs: []nix.DerivationOutput{out}, Platform: "x86_64-linux", Builder: "/bin/sh",
		Env: []nix.EnvVar{{Name: "name", Value: name}, {Name: "out", Value: out.Path.String()}},
	}})
}

func (p *planner) written(name string, drv *nix.Derivation) planned {
	p.Helper()
	refs := slices.Clone(drv.InputSrcs)
	for _, in := range drv.InputDrvs {
		refs = append(refs, in.Path)
	}
	text := drv.ATerm()
	ca := nix.ContentAddress{Method: nix.Text, Hash: nix.HashBytes(nix.SHA256, []byte(text))}
	path, err := nix.ContentAddressedPath(name+".drv", ca, refs, false)
	if err != nil {
		p.Fatal(err)
	}
	p.drvs[path] = drv
	file := newLabFile(path, text, refs...)
	file.info.CA = ca
	return planned{path: path, drv: drv, file: file, out: drv.Outputs[0].Path}
}

// request is the derivation as a build hook sends it, with these inputs.
func (d planned) request(inputs ...nix.StorePath) *nix.BasicDerivation {
	basic := d.drv.BasicDerivation
	basic.InputSrcs = nix.SortPaths(slices.Clone(inputs))
	basic.Env, basic.Outputs = slices.Clone(basic.Env), slices.Clone(basic.Outputs)
	return &basic
}

// reasons are why builds were not proven, in order.
func (l *lab) reasons() []string {
	l.Helper()
	var all []string
	for _, r := range l.log.records(l.TB, "outputs are not proven") {
		all = append(all, fmt.Sprint(r["reason"]))
	}
	return all
}

// workroom is a lab with a builder that is given our bytes, and a chain: a source,
// what is made of it, and what is made of that.
type workroom struct {
	*lab
	*planner
	b      *labBuilder
	source labFile
	dep    planned
	top    planned
}

func newWorkroom(t *testing.T) *workroom {
	t.Helper()
	b := newLabBuilder("b1")
	b.strict = true
	w := &workroom{b: b, planner: newPlanner(t), source: sourceFile("source", "int main;")}
	w.lab = newLab(t, b)
	w.dep = w.plan("dep", []nix.StorePath{w.source.info.Path}, nil)
	w.top = w.plan("top", []nix.StorePath{w.source.info.Path}, nil, w.dep)
	return w
}

// made has a request built and returns who vouches for the output.
func (w *workroom) made(t *testing.T, drvPath nix.StorePath, drv *nix.BasicDerivation) cache.Provenance {
	t.Helper()
	result, err := w.client("alice").BuildDerivation(t.Context(), nix.Discard, drvPath, drv, nix.BuildNormal)
	mustSucceed(t, result, err)
	return w.settled(t, drv.Outputs[0].Path)
}

// settled is who vouches for a path once it is verified.
func (w *workroom) settled(t *testing.T, path nix.StorePath) (provenance cache.Provenance) {
	t.Helper()
	eventually(t, "the output is here", func() bool {
		var err error
		provenance, err = w.proxy.cache.QueryProvenance("default", path)
		return err == nil && provenance != cache.Claimed
	})
	return provenance
}

// Guards against outputs that could be signed for everybody although only a domain
// stands for them, and against a proof that never succeeds: the whole chain of a
// build is proven, from its sources on.
func TestBuildsOfProvenPlansAreProven(t *testing.T) {
	w := newWorkroom(t)
	if err := w.client("alice").upload(t.Context(), w.source, w.dep.file, w.top.file); err != nil {
		t.Fatal(err)
	}
	if got := w.made(t, w.dep.path, w.dep.request(w.source.info.Path)); got != cache.Built {
		t.Errorf("a build from sources is %v: %q", got, w.reasons())
	}
	if got := w.made(t, w.top.path, w.top.request(w.source.info.Path, w.dep.out)); got != cache.Built {
		t.Errorf("a build from builds is %v: %q", got, w.reasons())
	}
	if got := w.reasons(); len(got) != 0 {
		t.Errorf("reasons %q", got)
	}
}

// Guards against each way in which a request may differ from what its derivation
// asks for, or its derivation from what the path of its output stands for.
func TestBuildsThatNothingProvesAreTheDomainsOwn(t *testing.T) {
	spoil := func(change func(*nix.BasicDerivation)) func(*workroom) (planned, *nix.BasicDerivation) {
		return func(w *workroom) (planned, *nix.BasicDerivation) {
			drv := w.top.request(w.source.info.Path, w.dep.out)
			change(drv)
			return w.top, drv
		}
	}
	for name, c := range map[string]struct {
		request func(*workroom) (planned, *nix.BasicDerivation)
		reason  string
	}{
		"system":    {spoil(func(d *nix.BasicDerivation) { d.Platform = "builtin" }), "other system"},
		"builder":   {spoil(func(d *nix.BasicDerivation) { d.Builder = "/bin/evil" }), "other builder"},
		"arguments": {spoil(func(d *nix.BasicDerivation) { d.Args = []string{"-c", "evil"} }), "other arguments"},
		"variable":  {spoil(func(d *nix.BasicDerivation) { d.Env[0].Value = "evil" }), "other environment"},
		"doubled variable": {spoil(func(d *nix.BasicDerivation) {
			d.Env = append(d.Env, nix.EnvVar{Name: "name", Value: "evil"})
		}), "other environment"},
		"another's output": {spoil(func(d *nix.BasicDerivation) { d.Outputs[0].Path = labPath("victim") }), "other outputs"},
		"more outputs": {spoil(func(d *nix.BasicDerivation) {
			d.Outputs = append(d.Outputs, nix.DerivationOutput{Name: "zap", Path: labPath("victim")})
		}), "other outputs"},
		"fewer inputs": {spoil(func(d *nix.BasicDerivation) { d.InputSrcs = []nix.StorePath{d.InputSrcs[0]} }), "lacks the input"},
		"more inputs": {func(w *workroom) (planned, *nix.BasicDerivation) {
			return w.top, w.top.request(w.source.info.Path, w.dep.out, w.uploaded(sourceFile("more", "x")))
		}, "for which its derivation does not ask"},
		"no derivation": {func(w *workroom) (planned, *nix.BasicDerivation) {
			d := w.plan("absent", nil, nil)
			return d, d.request()
		}, "path is not valid"},
		"a missing input derivation": {func(w *workroom) (planned, *nix.BasicDerivation) {
			absent := w.plan("absent", nil, nil)
			d := w.plan("user", nil, nil, absent)
			w.proxyHolds(d.file) // no upload would be taken
			return d, d.request()
		}, "path is not valid"},
		"a claimed path": {func(w *workroom) (planned, *nix.BasicDerivation) {
			d := w.plan("liar", nil, func(d *nix.Derivation) { d.Outputs[0].Path = labPath("victim") })
			w.uploaded(d.file)
			return d, d.request()
		}, "which should be"},
		"a claimed path below": {func(w *workroom) (planned, *nix.BasicDerivation) {
			liar := w.plan("liar", nil, func(d *nix.Derivation) { d.Outputs[0].Path = labPath("victim") })
			d := w.plan("user", nil, nil, liar)
			w.uploaded(liar.file)
			w.uploaded(d.file)
			return d, d.request(w.uploaded(newLabFile(labPath("victim"), "x")))
		}, "which should be"},
		"another text under the path": {func(w *workroom) (planned, *nix.BasicDerivation) {
			evil := w.plan("victim", nil, func(d *nix.Derivation) { d.Args = []string{"-c", "evil"} })
			honest := w.plan("victim", nil, nil)
			w.proxyHolds(newLabFile(honest.path, evil.drv.ATerm()))
			return honest, evil.request()
		}, "is not the text that its path names"},
		"a claimed input": {func(w *workroom) (planned, *nix.BasicDerivation) {
			dep := w.plan("claimed", nil, nil)
			d := w.plan("user", nil, nil, dep)
			w.uploaded(dep.file)
			w.uploaded(d.file)
			return d, d.request(w.uploaded(newLabFile(dep.out, "planted")))
		}, "nothing proves the input"},
		"an input that refers to a claimed one": {func(w *workroom) (planned, *nix.BasicDerivation) {
			w.uploaded(newLabFile(labPath("claimed"), "planted"))
			top := sourceFile("refers", "x", labPath("claimed"))
			d := w.plan("user", []nix.StorePath{w.uploaded(top)}, nil)
			w.uploaded(d.file)
			return d, d.request(top.info.Path)
		}, "nothing proves the input"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorkroom(t)
			if err := w.client("alice").upload(t.Context(), w.source, w.dep.file, w.top.file); err != nil {
				t.Fatal(err)
			}
			w.made(t, w.dep.path, w.dep.request(w.source.info.Path))
			d, drv := c.request(w)
			if got := w.made(t, d.path, drv); got != cache.DomainVouched {
				t.Errorf("the output is %v", got)
			}
			if got := w.reasons(); len(got) != 1 || !strings.Contains(got[0], c.reason) {
				t.Errorf("reasons %q, want %q", got, c.reason)
			}
		})
	}
}

// uploaded uploads a file and returns its path.
func (w *workroom) uploaded(f labFile) nix.StorePath {
	w.lab.Helper()
	if err := w.client("alice").upload(w.lab.Context(), f); err != nil {
		w.lab.Fatal(err)
	}
	return f.info.Path
}

// proxyHolds puts a file into the cache past all that a client has to pass.
func (w *workroom) proxyHolds(f labFile) {
	w.lab.Helper()
	a, err := w.proxy.cache.Announce(f.info, cache.Grant{Domain: "default"})
	if err == nil && a.Needed() {
		_, err = a.Fill(w.lab.Context(), strings.NewReader(string(f.nar)))
	}
	if err != nil {
		w.lab.Fatal(err)
	}
}

// Guards against a proof that believes what a builder had already, whatever it was
// asked to build, and one that overlooks what an output refers to.
func TestOnlyWhatWasBuiltNowIsProven(t *testing.T) {
	for name, c := range map[string]struct {
		status nix.BuildStatus
		strict bool
		refs   []nix.StorePath
		want   cache.Provenance
	}{
		"built":                   {nix.StatusBuilt, true, nil, cache.Built},
		"valid already":           {nix.StatusAlreadyValid, true, nil, cache.DomainVouched},
		"substituted":             {nix.StatusSubstituted, true, nil, cache.DomainVouched},
		"from whatever it has":    {nix.StatusBuilt, false, nil, cache.DomainVouched},
		"with strange references": {nix.StatusBuilt, true, []nix.StorePath{labPath("strange")}, cache.DomainVouched},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorkroomOf(t, c.strict, func(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
				b.put(newLabFile(drv.Outputs[0].Path, "made", c.refs...))
				return &nix.BuildResult{Status: c.status}, nil
			})
			if err := w.client("alice").upload(t.Context(), w.source, w.dep.file); err != nil {
				t.Fatal(err)
			}
			if got := w.made(t, w.dep.path, w.dep.request(w.source.info.Path)); got != c.want {
				t.Errorf("the output is %v, want %v: %q", got, c.want, w.reasons())
			}
		})
	}
}

func newWorkroomOf(t *testing.T, strict bool, build func(context.Context, *labBuilder, nix.Logger, *nix.BasicDerivation) (*nix.BuildResult, error)) *workroom {
	t.Helper()
	w := newWorkroom(t)
	b := newLabBuilder("b1")
	b.strict, b.build = strict, build
	w.b, w.lab = b, newLab(t, b)
	return w
}

// Guards against fixed outputs that are not looked at because the builder says
// nothing of their content, and against other content under their path.
func TestFixedOutputsAreProvenByTheirContent(t *testing.T) {
	for name, c := range map[string]struct{ content, wrong string }{
		"right": {"the text", ""}, "wrong": {"another text", "content-address"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorkroomOf(t, false, func(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
				b.put(newLabFile(drv.Outputs[0].Path, c.content))
				return &nix.BuildResult{Status: nix.StatusBuilt}, nil
			})
			d := w.fixed("fetched", "the text")
			if c.wrong != "" { // it is not found there either, once it is known to be wrong
				w.listed(map[*labBuilder][]labFile{w.b: {newLabFile(d.out, c.content)}})
			}
			alice := w.client("alice")
			result, err := alice.BuildDerivation(t.Context(), nix.Discard, d.path, d.request(), nix.BuildNormal)
			if c.wrong == "" {
				mustSucceed(t, result, err)
				if got := w.settled(t, d.out); got != cache.ContentAddressed {
					t.Errorf("the output is %v", got)
				}
				return
			}
			if err != nil || result.Status.Success() || !strings.Contains(result.ErrorMsg, "mismatch") {
				t.Errorf("result %+v, %v", result, err)
			}
			if got, err := alice.read(t.Context(), d.out); err == nil {
				t.Errorf("a reader got %q", got)
			}
			eventually(t, "the path is gone", func() bool {
				_, err := w.client("bob").QueryPathInfo(t.Context(), d.out)
				return errors.Is(err, nix.ErrNotFound)
			})
		})
	}
	w := newWorkroom(t)
	d := w.fixed("fetched", "the text")
	drv := d.request()
	drv.Outputs[0].Path = labPath("victim")
	_, err := w.client("alice").BuildDerivation(t.Context(), nix.Discard, d.path, drv, nix.BuildNormal)
	wantRefusal(t, "a fixed output under another path", err, labPath("victim").String(), "does not match its content address")
}

// Guards against plans that take the memory or the time of the proxy.
func TestPlansAreBounded(t *testing.T) {
	w := newWorkroom(t)
	if err := w.client("alice").upload(t.Context(), w.source, w.dep.file, w.top.file); err != nil {
		t.Fatal(err)
	}
	s := w.proxy.newSession(w.principal("alice"), w.proxy.log)
	defer s.close()
	o, err := s.order(w.dep.path, w.dep.request(w.source.info.Path), nix.BuildNormal)
	if err != nil {
		t.Fatal(err)
	}
	for want, p := range map[string]*plan{
		"more than 100000 derivations": {drvs: maxPlanDrvs},
		"more than 4096 deep":          {depth: maxPlanDepth},
		"the limit is 10":              {held: maxPlanHeld - 10},
		"the limit is 11":              {bytes: maxPlanBytes - 11},
	} {
		p.ctx, p.cache, p.domain = t.Context(), w.proxy.cache, "default"
		if err := p.check(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	p := &plan{ctx: t.Context(), cache: w.proxy.cache, domain: "default"}
	if err := p.check(o); err != nil || p.drvs != 1 || p.depth != 0 || p.held != 0 || p.bytes != int64(len(w.dep.drv.ATerm())) {
		t.Errorf("plan %+v: %v", p, err)
	}
}

// Guards against a builder that lacks what an input refers to: clients name only the
// sources of a derivation that has nothing else.
func TestInputsComeWithWhatTheyReferTo(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	alice := l.client("alice")
	lib := sourceFile("lib", "x")
	app := sourceFile("app", "x", lib.info.Path)
	if err := alice.upload(t.Context(), lib, app); err != nil {
		t.Fatal(err)
	}
	result, err := alice.build(t.Context(), nix.Discard, "hello", app.info.Path)
	mustSucceed(t, result, err)
	if got := b.sent(); !slices.Equal(got, []string{"lib", "app"}) {
		t.Errorf("the builder was sent %q", got)
	}
}
