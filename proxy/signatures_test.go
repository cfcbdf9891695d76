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

// signedFile is a file that keys have signed.
func signedFile(name, text string, keys ...nix.SigningKey) labFile {
	f := newLabFile(labPath(name), text)
	for _, key := range keys {
		f.info.Sigs = append(f.info.Sigs, key.Sign(f.info.Fingerprint()))
	}
	return f
}

// sourceFile is a file that its path proves.
func sourceFile(name, text string, refs ...nix.StorePath) labFile {
	o := storetest.NewSource(name, text, refs...)
	return labFile{info: o.Info, nar: o.NAR}
}

func wantRefusal(t *testing.T, what string, err error, parts ...string) {
	t.Helper()
	var remote *nix.RemoteError
	if !errors.As(err, &remote) {
		t.Errorf("%s: got %v, want a refusal", what, err)
		return
	}
	for _, part := range parts {
		if !strings.Contains(remote.Message, part) {
			t.Errorf("%s: %q lacks %q", what, remote.Message, part)
		}
	}
}

func (l *lab) wantProvenance(f labFile, want cache.Provenance, sigs ...string) {
	l.Helper()
	got, err := l.proxy.cache.QueryProvenance("default", f.info.Path)
	if err != nil || got != want {
		l.Errorf("%s is %v, %v, want %v", f.info.Path.Name(), got, err, want)
	}
	info, err := l.proxy.cache.QueryPathInfo("default", f.info.Path)
	if err != nil {
		l.Error(err)
		return
	}
	var names []string
	for _, sig := range info.Sigs {
		names = append(names, sig.Name())
	}
	if slices.Sort(names); !slices.Equal(names, sigs) {
		l.Errorf("%s is signed by %q, want %q", f.info.Path.Name(), names, sigs)
	}
}

// Guards against a client that plants what nothing proves although it was not
// told to skip the check, and against signatures that stay although nobody can
// say what they are worth.
func TestUploadsAreProvenUnlessTheClientAskedForNoCheck(t *testing.T) {
	l := newLab(t)
	alice := l.client("alice")
	strange := storetest.SigningKey("strange-1")
	claimed, signed, source := signedFile("claimed", "x"), signedFile("signed", "x", strange, labKey), sourceFile("source", "x")
	forged := signedFile("forged", "x")
	forged.info.Sigs = signed.info.Sigs // of other fingerprints
	altered := signedFile("altered", "x", labKey)
	altered.info.References = []nix.StorePath{labPath("altered")} // what the key did not sign
	unknown := signedFile("unknown", "x", strange)
	bad := sourceFile("bad", "x")
	bad.info.CA.Hash = nix.HashBytes(nix.SHA256, []byte("other"))

	for _, f := range []labFile{claimed, forged, altered, unknown} {
		err := alice.uploadWith(t.Context(), nix.AddOptions{}, f)
		wantRefusal(t, f.info.Path.Name(), err, "cannot add path '"+f.info.Path.String()+"' because it lacks a signature by a trusted key",
			"suite-1", "trusted_public_keys", "--no-check-sigs")
	}
	if err := alice.uploadWith(t.Context(), nix.AddOptions{}, bad); err == nil {
		t.Error("a path that its content address does not prove was taken")
	}
	valid, err := alice.QueryValidPaths(t.Context(), []nix.StorePath{claimed.info.Path, forged.info.Path, altered.info.Path, bad.info.Path}, false)
	if err != nil || len(valid) != 0 {
		t.Errorf("refused, and valid all the same: %v, %v", valid, err)
	}
	if err := alice.uploadWith(t.Context(), nix.AddOptions{}, signed, source); err != nil {
		t.Fatal(err)
	}
	l.wantProvenance(signed, cache.Signed, "suite-1")
	l.wantProvenance(source, cache.ContentAddressed)
	if err := alice.upload(t.Context(), claimed, unknown); err != nil {
		t.Fatal(err)
	}
	l.wantProvenance(claimed, cache.Claimed)
	l.wantProvenance(unknown, cache.Claimed)
}

// Guards against a path that is signed for everybody by whoever may write, and
// against a signature that is dropped in silence.
func TestAddedSignaturesAreThoseOfTrustedKeys(t *testing.T) {
	l := newLab(t)
	alice := l.client("alice")
	f := signedFile("out", "x")
	if err := alice.upload(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	good, strange := labKey.Sign(f.info.Fingerprint()).String(), storetest.SigningKey("strange-1").Sign(f.info.Fingerprint()).String()
	forged := labKey.Sign("another").String()
	add := func(who string, path nix.StorePath, sigs ...string) error {
		return l.client(who).AddSignatures(t.Context(), path, sigs)
	}
	wantRefusal(t, "a key that is not known", add("alice", f.info.Path, strange), "strange-1", "trusted_public_keys", "suite-1")
	wantRefusal(t, "a forged one", add("alice", f.info.Path, forged), "suite-1")
	wantRefusal(t, "not a signature", add("alice", f.info.Path, "suite-1:AAAA"), "64")
	wantRefusal(t, "a reader", add("reader", f.info.Path, good), "role read")
	if err := add("alice", labPath("absent"), good); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("a path that is not valid: %v", err)
	}
	if err := add("eve", f.info.Path, good); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("another domain: %v", err)
	}
	l.wantProvenance(f, cache.Claimed)
	if err := add("alice", f.info.Path, strange, good); err != nil {
		t.Fatal(err)
	}
	l.wantProvenance(f, cache.Signed, "suite-1")
}

// Guards against a builder's own signatures that get lost, or count for more than
// they prove.
func TestSignaturesOfABuilderPassThrough(t *testing.T) {
	b := newLabBuilder("b1")
	strange := storetest.SigningKey("builder-1")
	b.build = func(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		f := signedFile(drv.Outputs[0].Path.Name(), "built", strange)
		if drv.Env[0].Value == "trusted" {
			f = signedFile(drv.Outputs[0].Path.Name(), "built", strange, labKey)
		}
		b.put(f)
		return &nix.BuildResult{Status: nix.StatusBuilt, Outputs: []nix.BuiltOutput{{Name: "out", Path: f.info.Path}}}, nil
	}
	l := newLab(t, b)
	alice := l.client("alice")
	for _, name := range []string{"plain", "trusted"} {
		result, err := alice.build(t.Context(), nix.Discard, name)
		mustSucceed(t, result, err)
		l.hasCached(name)
	}
	l.wantProvenance(signedFile("plain", ""), cache.DomainVouched, "builder-1")
	l.wantProvenance(signedFile("trusted", ""), cache.Signed, "builder-1", "suite-1")
}

// Guards against a peer's word for its own trust.
func TestNobodyIsBelievedToTrustHimself(t *testing.T) {
	claimed := newLabFile(labPath("claimed"), "text").info
	claimed.Ultimate = true
	info, grant := Believed(newLab(t).proxy.policy.Current(), "default", claimed, cache.Claimed)
	if info.Ultimate || grant.Provenance != cache.Claimed || grant.Public || !claimed.Ultimate {
		t.Errorf("believed: %+v, %+v; what was claimed: %+v", info, grant, claimed)
	}
}
