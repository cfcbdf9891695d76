package proxy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
)

// Attempts to have others use content that nobody made for them. Those of uploads
// alone are in hostile_test.go and signatures_test.go, those of plans in
// proof_test.go.

// Guards against a build request that names an output of somebody else: what it
// makes stays in the attacker's own domain, is never more than that domain's word,
// and replaces nothing.
func TestBuildThatClaimsAnothersOutputPlantsNothing(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	b1.strict, b2.strict, b2.domain = true, true, "other"
	l, p := newLab(t, b1, b2), newPlanner(t)
	honest := p.plan("openssl", nil, nil)
	eve := l.client("eve")
	if err := eve.upload(t.Context(), honest.file); err != nil {
		t.Fatal(err)
	}
	claim := honest.request()
	claim.Args = []string{"-c", "evil"}
	for _, path := range []nix.StorePath{honest.path, labPath("evil.drv")} {
		result, err := l.client("eve").BuildDerivation(t.Context(), nix.Discard, path, claim, nix.BuildNormal)
		mustSucceed(t, result, err)
	}
	eventually(t, "the attacker has the output", func() bool {
		provenance, err := l.proxy.cache.QueryProvenance("other", honest.out)
		return err == nil && provenance != cache.Claimed
	})
	if got, _ := l.proxy.cache.QueryProvenance("other", honest.out); got != cache.DomainVouched {
		t.Errorf("what the attacker had built is %v", got)
	}
	alice := l.client("alice")
	if l.sees("alice", honest.out) {
		t.Error("it is valid for the victim")
	}
	if err := alice.upload(t.Context(), honest.file); err != nil {
		t.Fatal(err)
	}
	result, err := alice.BuildDerivation(t.Context(), nix.Discard, honest.path, honest.request(), nix.BuildNormal)
	mustSucceed(t, result, err)
	if got, err := alice.read(t.Context(), honest.out); got != "built by b1" || err != nil {
		t.Errorf("the victim's output holds %q, %v", got, err)
	}
	l.hasCachedAs(honest.out, cache.Built)

	// From inside the domain it comes too late: what is valid stays.
	result, err = l.client("bob").BuildDerivation(t.Context(), nix.Discard, labPath("evil.drv"), claim, nix.BuildNormal)
	mustSucceed(t, result, err)
	if got := b1.built(); !slices.Equal(got, []string{"openssl"}) || result.Status != nix.StatusAlreadyValid {
		t.Errorf("b1 built %q, the status is %s", got, result.Status)
	}
	l.hasCachedAs(honest.out, cache.Built)
}

// hasCachedAs waits until somebody vouches for a path, and wants that to be so much.
func (l *lab) hasCachedAs(path nix.StorePath, want cache.Provenance) {
	l.Helper()
	var got cache.Provenance
	eventually(l.TB, path.Name()+" is in the cache", func() bool {
		var err error
		got, err = l.proxy.cache.QueryProvenance("default", path)
		return err == nil && got != cache.Claimed
	})
	if got != want {
		l.Errorf("%s is %v, want %v", path.Name(), got, want)
	}
}

// Guards against what a client says of a path beside its bytes: that it is of its
// own making, who made it, and what it refers to.
func TestForgedFieldsOfAnUploadCountForNothing(t *testing.T) {
	public := storetest.SigningKey("public-1")
	l := newLabOf(t, labPolicy{keys: []string{`{key: "` + public.Public().String() + `", public: true}`}})
	alice := l.client("alice")
	lib := signedFile("lib", "x", public)
	app := newLabFile(labPath("app"), "x", lib.info.Path)
	app.info.Sigs = []nix.Signature{public.Sign(app.info.Fingerprint())}
	for name, forge := range map[string]func(*nix.PathInfo){
		"fewer references": func(i *nix.PathInfo) { i.References = nil },
		"more references":  func(i *nix.PathInfo) { i.References = nix.SortPaths([]nix.StorePath{i.Path, lib.info.Path}) },
		"another size":     func(i *nix.PathInfo) { i.NarSize += 8 },
		"another path":     func(i *nix.PathInfo) { i.Path = labPath("other") },
		"another key": func(i *nix.PathInfo) {
			i.Sigs = []nix.Signature{storetest.SigningKey("evil").Sign(i.Fingerprint())}
		},
		"the key's name": func(i *nix.PathInfo) {
			_, sig, _ := strings.Cut(storetest.SigningKey("evil").Sign(i.Fingerprint()).String(), ":")
			forged, err := nix.ParseSignature("public-1:" + sig)
			if err != nil {
				t.Fatal(err)
			}
			i.Sigs = []nix.Signature{forged}
		},
	} {
		f := labFile{info: app.info.Clone(), nar: app.nar}
		forge(f.info)
		if err := alice.uploadWith(t.Context(), nix.AddOptions{}, lib, f); err == nil {
			t.Errorf("%s: taken as signed", name)
		}
		alice = l.client("alice")
		if l.sees("alice", f.info.Path) || l.sees("eve", f.info.Path) {
			t.Errorf("%s: %s is valid", name, f.info.Path.Name())
		}
	}
	forged := labFile{info: app.info.Clone(), nar: app.nar}
	forged.info.Ultimate, forged.info.Deriver = true, labPath("evil.drv")
	forged.info.Sigs = append(forged.info.Sigs, public.Sign("another"), storetest.SigningKey("evil").Sign(app.info.Fingerprint()))
	if err := alice.uploadWith(t.Context(), nix.AddOptions{}, lib, forged); err != nil {
		t.Fatal(err)
	}
	info, err := l.client("eve").QueryPathInfo(t.Context(), app.info.Path)
	if err != nil || info.Ultimate || !info.Deriver.IsZero() || !slices.Equal(info.Sigs, app.info.Sigs) {
		t.Errorf("another domain reads %+v, %v", info, err)
	}
}

// Guards against the ways past the path infos: what binds a derivation to a path, and
// what is kept beside the paths, is not taken from anybody.
func TestRealisationsAndLogsAreTakenFromNobody(t *testing.T) {
	l := newLab(t)
	f := sourceFile("evil", "x")
	alice := l.client("alice")
	if err := alice.upload(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	id := nix.DrvOutput{DrvHash: "sha256:" + strings.Repeat("0", 64), Output: "out"}
	if err := alice.RegisterDrvOutput(t.Context(), nix.Realisation{ID: id, OutPath: f.info.Path}); err == nil {
		t.Error("a realisation was taken")
	}
	if r, err := l.client("bob").QueryRealisation(t.Context(), id); err == nil {
		t.Errorf("a realisation is known: %+v", r)
	}
}

// lies are ways of a builder to answer a build with what it is not, of which the
// proxy knows before the client has its reply.
var lies = map[string]struct {
	lie    func(b *labBuilder, out nix.StorePath) *nix.BuildResult
	reason string
}{
	"another path": {func(b *labBuilder, out nix.StorePath) *nix.BuildResult {
		b.put(newLabFile(labPath("victim"), "planted"))
		return &nix.BuildResult{Status: nix.StatusBuilt, Outputs: []nix.BuiltOutput{{Name: "out", Path: labPath("victim")}}}
	}, "says output \"out\" is " + labPath("victim").String()},
	"nothing": {func(*labBuilder, nix.StorePath) *nix.BuildResult { return &nix.BuildResult{Status: nix.StatusBuilt} }, "says it built"},
	"valid already and absent": {func(*labBuilder, nix.StorePath) *nix.BuildResult {
		return &nix.BuildResult{Status: nix.StatusAlreadyValid}
	}, "says it built"},
	"an output without bytes": {func(b *labBuilder, out nix.StorePath) *nix.BuildResult {
		b.put(labFile{info: &nix.PathInfo{Path: out, NarHash: nix.HashBytes(nix.SHA256, nil)}})
		return &nix.BuildResult{Status: nix.StatusBuilt}
	}, "has a NAR of 0 bytes"},
	"another content address": {func(b *labBuilder, out nix.StorePath) *nix.BuildResult {
		f := newLabFile(out, "planted")
		f.info.CA = nix.ContentAddress{Method: nix.NAR, Hash: f.info.NarHash}
		b.put(f)
		return &nix.BuildResult{Status: nix.StatusBuilt}
	}, "claims to be content-addressed"},
}

// Guards against a builder that is believed: it is passed over with a reason, another
// one builds, and nothing of the lie is published.
func TestBuilderThatLiesIsPassedOver(t *testing.T) {
	for name, c := range lies {
		t.Run(name, func(t *testing.T) {
			b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
			b1.build = func(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
				return c.lie(b, drv.Outputs[0].Path), nil
			}
			l := newLab(t, b1, b2)
			var log lines
			alice := l.client("alice")
			result, err := alice.build(t.Context(), &log, "hello")
			mustSucceed(t, result, err)
			if got, err := alice.read(t.Context(), labPath("hello")); got != "built by b2" || err != nil {
				t.Errorf("output holds %q, %v", got, err)
			}
			if !strings.Contains(log.String(), "builder 'b1': ") || !strings.Contains(log.String(), c.reason) {
				t.Errorf("the client was told:\n%s", &log)
			}
			if got := l.proxy.cache.QueryValidPaths("default", []nix.StorePath{labPath("victim")}); len(got) > 0 {
				t.Error("what the builder named instead was taken for an output") // though who asks for it may find it there
			}
		})
	}
}

// Guards against bytes that are published, or end well for a reader, although they
// are not those that the builder announced, and against a path that is lost for good.
func TestOutputsThatAreNotWhatWasAnnouncedAreNeverPublished(t *testing.T) {
	for name, delivered := range map[string]string{
		"other bytes": "bytes of the same length!", "too many": strings.Repeat("many bytes ", 1000), "too few": "few",
	} {
		t.Run(name, func(t *testing.T) {
			b := newLabBuilder("b1")
			lying := true
			b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
				if !lying {
					return makeOutputs(ctx, b, log, drv)
				}
				f := newLabFile(drv.Outputs[0].Path, "announced, of some length")
				f.nar = newLabFile(drv.Outputs[0].Path, delivered).nar
				b.put(f)
				return &nix.BuildResult{Status: nix.StatusBuilt}, nil
			}
			l := newLab(t, b)
			alice := l.client("alice")
			if _, err := alice.build(t.Context(), nix.Discard, "hello"); err != nil {
				t.Fatal(err)
			}
			if got, err := alice.read(t.Context(), labPath("hello")); err == nil {
				t.Errorf("a reader got %q", got)
			}
			eventually(t, "the path is gone", func() bool {
				_, err := l.client("bob").QueryPathInfo(t.Context(), labPath("hello"))
				return errors.Is(err, nix.ErrNotFound)
			})
			eventually(t, "it is logged", func() bool { return len(l.log.records(t, "output did not reach the cache")) == 1 })
			lying = false
			bob := l.client("bob")
			result, err := bob.build(t.Context(), nix.Discard, "hello")
			mustSucceed(t, result, err)
			if got, err := bob.read(t.Context(), labPath("hello")); got != "built by b1" || err != nil {
				t.Errorf("built honestly it holds %q, %v", got, err)
			}
		})
	}
}

// Guards against an output that a builder had from before, which counts as one that
// we built: the domain has it, on the builder's word alone.
func TestWhatABuilderHadAlreadyIsTheDomainsWord(t *testing.T) {
	b := newLabBuilder("b1")
	b.strict = true
	b.build = func(_ context.Context, _ *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		return &nix.BuildResult{Status: nix.StatusAlreadyValid}, nil
	}
	l, p := newLab(t, b), newPlanner(t)
	d := p.plan("old", nil, nil)
	b.put(newLabFile(d.out, "who knows"))
	alice := l.client("alice")
	if err := alice.upload(t.Context(), d.file); err != nil {
		t.Fatal(err)
	}
	result, err := alice.BuildDerivation(t.Context(), nix.Discard, d.path, d.request(), nix.BuildNormal)
	mustSucceed(t, result, err)
	l.hasCachedAs(d.out, cache.DomainVouched)
	if l.sees("eve", d.out) {
		t.Error("another domain sees it")
	}
}
