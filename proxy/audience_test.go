package proxy

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
)

// sees reports whether a principal is told of a path.
func (l *lab) sees(principal string, path nix.StorePath) bool {
	l.Helper()
	switch _, err := l.client(principal).QueryPathInfo(l.Context(), path); {
	case errors.Is(err, nix.ErrNotFound):
		return false
	case err != nil:
		l.Fatal(err)
	}
	return true
}

// Guards against an upload for which nobody vouches and that counts for more, and
// against a release that counts for no more than any claim.
func TestDomainVouchesForWhatPublishersUpload(t *testing.T) {
	l := newLabOf(t, labPolicy{principals: map[string]string{"release": "role: full, publish: true"}})
	mine, theirs := newLabFile(labPath("mine"), "x"), newLabFile(labPath("theirs"), "x")
	if err := l.client("alice").upload(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	release := l.client("release")
	if err := release.upload(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	l.wantProvenance(mine, cache.Claimed)
	l.wantProvenance(theirs, cache.DomainVouched)
	if l.sees("eve", theirs.info.Path) {
		t.Error("another domain sees what was published in this one")
	}
	if err := release.upload(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	l.wantProvenance(mine, cache.DomainVouched) // who publishes stands for these bytes
	unproven := newLabFile(labPath("unproven"), "x")
	wantRefusal(t, "an upload with a check", release.uploadWith(t.Context(), nix.AddOptions{}, unproven), "lacks a signature")
}

// Guards against a signature that opens a path to everybody although its key is
// trusted only to say what is right, and against a public one that opens nothing.
func TestPublicKeysOpenPathsToEveryDomain(t *testing.T) {
	public := storetest.SigningKey("public-1")
	l := newLabOf(t, labPolicy{keys: []string{
		fmt.Sprintf("%q", labKey.Public()), fmt.Sprintf("{key: %q, public: true}", public.Public()),
	}})
	alice := l.client("alice")
	open, own, later := signedFile("open", "x", public), signedFile("own", "x", labKey), signedFile("later", "x")
	forged := signedFile("forged", "x", labKey)
	forged.info.Sigs = append(forged.info.Sigs, public.Sign("something else"))
	renamed := signedFile("renamed", "x", storetest.SigningKey("public-2"))
	if err := alice.upload(t.Context(), open, own, later, forged, renamed); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file labFile
		want bool
	}{{open, true}, {own, false}, {later, false}, {forged, false}, {renamed, false}} {
		if got := l.sees("eve", c.file.info.Path); got != c.want {
			t.Errorf("another domain sees %s: %v", c.file.info.Path.Name(), got)
		}
	}
	if got, err := l.client("eve").read(t.Context(), open.info.Path); got != "x" || err != nil {
		t.Errorf("another domain reads %q, %v", got, err)
	}
	if err := alice.AddSignatures(t.Context(), later.info.Path, []string{public.Sign(later.info.Fingerprint()).String()}); err != nil {
		t.Fatal(err)
	}
	if !l.sees("eve", later.info.Path) {
		t.Error("a signature that was added later opened nothing")
	}
	l.wantProvenance(forged, cache.Signed, "suite-1")
}

// Guards against a domain that shares more than it vouches for, or with itself alone.
func TestSharingDomainShowsWhatItVouchesFor(t *testing.T) {
	l := newLabOf(t, labPolicy{domains: []string{"{name: other}", "{name: default, share: public}"}}, newLabBuilder("b1"))
	alice := l.client("alice")
	source, claim := sourceFile("source", "x"), newLabFile(labPath("claim"), "x")
	user := newLabFile(labPath("user"), "x", claim.info.Path)
	if err := alice.upload(t.Context(), source, claim, user); err != nil {
		t.Fatal(err)
	}
	result, err := alice.build(t.Context(), nix.Discard, "hello", source.info.Path, claim.info.Path)
	mustSucceed(t, result, err)
	l.hasCached("hello")
	for path, want := range map[nix.StorePath]bool{
		source.info.Path: true, labPath("hello"): true, claim.info.Path: false, user.info.Path: false,
	} {
		if got := l.sees("eve", path); got != want {
			t.Errorf("another domain sees %s: %v", path.Name(), got)
		}
	}
	if err := l.client("eve").upload(t.Context(), sourceFile("eves", "x")); err != nil {
		t.Fatal(err)
	}
	if l.sees("alice", sourceFile("eves", "x").info.Path) {
		t.Error("one domain shares, and the other's paths are shown")
	}
}

// Guards against an output that stays hidden because another one of the same build,
// to which it refers, was brought after it.
func TestOutputsOfOneBuildAreSharedTogether(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = func(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		b.put(newLabFile(labPath("hello"), "bin", labPath("hello-lib")))
		b.put(newLabFile(labPath("hello-lib"), "lib"))
		return &nix.BuildResult{Status: nix.StatusBuilt}, nil
	}
	l := newLabOf(t, labPolicy{domains: []string{"{name: other}", "{name: default, share: public}"}}, b)
	drvPath, drv := labDrv("hello")
	drv.Outputs = append(drv.Outputs, nix.DerivationOutput{Name: "lib", Path: labPath("hello-lib")})
	result, err := l.client("alice").BuildDerivation(t.Context(), nix.Discard, drvPath, drv, nix.BuildNormal)
	mustSucceed(t, result, err)
	l.hasCached("hello")
	l.hasCached("hello-lib")
	if !l.sees("eve", labPath("hello-lib")) || !l.sees("eve", labPath("hello")) {
		t.Error("not all outputs are shared")
	}
}

// Guards against signatures of a builder under the name of a key that others trust
// and that did not make them: they would be passed on and believed to be checked.
func TestForgedSignaturesOfABuilderAreDropped(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = func(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		f := signedFile(drv.Outputs[0].Path.Name(), "built", storetest.SigningKey("builder-1"))
		f.info.Sigs = append(f.info.Sigs, labKey.Sign("something else"))
		f.info.Ultimate = true
		b.put(f)
		return &nix.BuildResult{Status: nix.StatusBuilt}, nil
	}
	l := newLab(t, b)
	result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
	mustSucceed(t, result, err)
	l.hasCached("hello")
	l.wantProvenance(newLabFile(labPath("hello"), ""), cache.DomainVouched, "builder-1")
	info, err := l.client("alice").QueryPathInfo(t.Context(), labPath("hello"))
	if err != nil || info.Ultimate {
		t.Errorf("info %+v, %v", info, err)
	}
}
