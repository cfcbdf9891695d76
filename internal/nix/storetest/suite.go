package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

// World is a kind of store. One that keeps only signatures that it can verify
// trusts the key "suite-1", see [SigningKey].
type World struct {
	// Open makes an empty store that builds nothing, for one test.
	Open func(t *testing.T) nix.Store
	// FlatIsNAR says that AddToStore takes flat files as NARs only, as daemons
	// before 1.25 do.
	FlatIsNAR bool
	// NamedOnly says that the store takes and builds nothing but what has a name
	// already: AddToStore and BuildPathsWithResults are refused.
	NamedOnly bool
}

// Run checks that stores of a world keep the promises of [nix.Store].
func Run(t *testing.T, w World) {
	for name, test := range map[string]func(*suite){
		"an unknown path is not found":             (*suite).unknown,
		"what was added is valid and the same":     (*suite).added,
		"an upload of nothing is one":              (*suite).addedNothing,
		"wrong content leaves nothing":             (*suite).wrong,
		"references must be valid":                 (*suite).references,
		"content is named by its address":          (*suite).addressed,
		"a valid path keeps its first bytes":       (*suite).first,
		"targets are answered in order":            (*suite).targets,
		"a build without its inputs never happens": (*suite).inputs,
		"a refusal leaves the store usable":        (*suite).usable,
	} {
		t.Run(name, func(t *testing.T) { test(&suite{T: t, ctx: t.Context(), world: w, Store: w.Open(t)}) })
	}
}

type suite struct {
	*testing.T
	nix.Store
	ctx   context.Context
	world World
}

func (s *suite) check(what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

func (s *suite) upload(objects ...Object) error {
	return s.AddMultipleToStore(s.ctx, nix.Discard, Upload(objects...), nix.AddOptions{DontCheckSigs: true})
}

func (s *suite) absent(path nix.StorePath) {
	s.Helper()
	valid, err := s.QueryValidPaths(s.ctx, []nix.StorePath{path}, false)
	if err != nil || len(valid) != 0 {
		s.Errorf("valid paths %v, %v", valid, err)
	}
	if _, err := s.QueryPathInfo(s.ctx, path); !errors.Is(err, nix.ErrNotFound) {
		s.Errorf("path info: %v, want not found", err)
	}
	if _, err := s.NarFromPath(s.ctx, path); !errors.Is(err, nix.ErrNotFound) {
		s.Errorf("NAR: %v, want not found", err)
	}
}

func (s *suite) holds(o Object) {
	s.Helper()
	want := o.Info
	got, err := s.QueryPathInfo(s.ctx, want.Path)
	s.check("path info of "+want.Path.Name(), err)
	if got.Path != want.Path || got.NarHash != want.NarHash || got.NarSize != want.NarSize || got.CA != want.CA ||
		got.Deriver != want.Deriver || !slices.Equal(got.References, want.References) || !slices.Equal(got.Sigs, want.Sigs) {
		s.Errorf("path info:\n got %+v\nwant %+v", got, want)
	}
	r, err := s.NarFromPath(s.ctx, want.Path)
	s.check("NAR of "+want.Path.Name(), err)
	archive, err := io.ReadAll(r)
	s.check("read NAR of "+want.Path.Name(), errors.Join(err, r.Close()))
	if !bytes.Equal(archive, o.NAR) {
		s.Errorf("NAR of %s: got %d other bytes", want.Path.Name(), len(archive))
	}
}

func (s *suite) unknown() { s.absent(Path("unknown")) }

func (s *suite) added() {
	lib, source := NewObject("lib", "lib"), NewSource("source", "source")
	tool := NewObject("tool", strings.Repeat("tool", 100_000), lib.Info.Path, Path("tool"), source.Info.Path)
	tool.Info.Sigs = []nix.Signature{SigningKey("suite-1").Sign(tool.Info.Fingerprint())}
	s.check("upload", s.upload(lib, source, tool))
	for _, o := range []Object{lib, source, tool} {
		s.holds(o)
	}
	asked := []nix.StorePath{tool.Info.Path, Path("unknown"), lib.Info.Path}
	valid, err := s.QueryValidPaths(s.ctx, asked, false)
	s.check("valid paths", err)
	if want := nix.SortPaths([]nix.StorePath{lib.Info.Path, tool.Info.Path}); !slices.Equal(nix.SortPaths(valid), want) {
		s.Errorf("valid paths: got %v, want %v", valid, want)
	}
	s.absent(Path("unknown"))
}

func (s *suite) addedNothing() { s.check("upload", s.upload()) }

func (s *suite) wrong() {
	good := NewObject("good", strings.Repeat("content", 1000))
	for what, change := range map[string]func(*Object){
		"hash":    func(o *Object) { o.Info.NarHash = nix.HashBytes(nix.SHA256, nil) },
		"content": func(o *Object) { o.NAR[200] ^= 1 },
		"grammar": func(o *Object) { o.NAR[8] = 'X'; o.Info.NarHash = nix.HashBytes(nix.SHA256, o.NAR) },
	} {
		o := Object{good.Info.Clone(), slices.Clone(good.NAR)}
		change(&o)
		if err := s.upload(o); err == nil {
			s.Errorf("wrong %s was accepted", what)
		}
		s.Store = s.world.Open(s.T) // a protocol's session may be over after bad bytes
		s.absent(good.Info.Path)
	}
}

func (s *suite) references() {
	o := NewObject("user", "user", Path("unknown"))
	if err := s.upload(o); err == nil {
		s.Error("a path without its references was accepted")
	}
	s.absent(o.Info.Path)
	itself := NewObject("itself", "itself", Path("itself"))
	s.check("upload of what refers to itself", s.upload(itself))
	s.holds(itself)
}

func (s *suite) addressed() {
	if s.world.NamedOnly {
		_, err := s.AddToStore(s.ctx, nix.Discard, nix.AddToStoreRequest{Name: "x", Method: textMethod}, strings.NewReader("content"))
		s.refused("addition without a path", err)
		return
	}
	dep := NewSource("dep", "dep")
	s.check("upload", s.upload(dep))
	const content = "content"
	for _, tc := range []struct {
		method nix.IngestionMethod
		algo   nix.HashAlgo
		refs   []nix.StorePath
	}{
		{nix.Text, nix.SHA256, []nix.StorePath{dep.Info.Path}},
		{nix.Flat, nix.SHA256, nil},
		{nix.Flat, nix.SHA1, nil},
		{nix.NAR, nix.SHA256, nil},
		{nix.NAR, nix.SHA512, nil},
	} {
		req := nix.AddToStoreRequest{Name: "x", Method: nix.ContentAddressMethod{Method: tc.method, Algo: tc.algo}, References: tc.refs}
		dump, hashed := []byte(content), []byte(content)
		if tc.method == nix.NAR {
			dump, hashed = File(content), File(content)
		}
		if tc.method == nix.Flat && s.world.FlatIsNAR {
			dump, req.DumpIsNAR = File(content), true
		}
		info, err := s.AddToStore(s.ctx, nix.Discard, req, bytes.NewReader(dump))
		s.check("add "+req.Method.String(), err)
		want := NewObject("x", content, tc.refs...)
		want.Info.Deriver = nix.StorePath{}
		want.Info.CA = nix.ContentAddress{Method: tc.method, Hash: nix.HashBytes(tc.algo, hashed)}
		want.Info.Path = must(nix.ContentAddressedPath("x", want.Info.CA, tc.refs, false))
		if info.Path != want.Info.Path {
			s.Errorf("add %s: got %s, want %s", req.Method, info.Path, want.Info.Path)
		}
		s.holds(want)
	}
}

func (s *suite) first() {
	one, two := NewObject("out", "one"), NewObject("out", "two")
	s.check("upload", s.upload(one))
	s.check("upload of other bytes", s.upload(two))
	s.holds(one)
}

var textMethod = nix.ContentAddressMethod{Method: nix.Text, Algo: nix.SHA256}

// refused checks that the user is told of what the store cannot do.
func (s *suite) refused(what string, err error) {
	s.Helper()
	var user *nix.UserError
	if !errors.As(err, &user) {
		s.Errorf("%s: %v, want a sentence", what, err)
	}
}

func (s *suite) targets() {
	if s.world.NamedOnly {
		_, err := s.BuildPathsWithResults(s.ctx, nix.Discard, nil, nix.BuildNormal)
		s.refused("build of targets", err)
		return
	}
	lib := NewObject("lib", "lib")
	s.check("upload", s.upload(lib))
	valid := nix.DerivedPath{Path: lib.Info.Path}
	results, err := s.BuildPathsWithResults(s.ctx, nix.Discard, []nix.DerivedPath{valid, valid}, nix.BuildNormal)
	s.check("valid targets", err)
	if len(results) != 2 || !results[0].Result.Status.Success() || !results[1].Result.Status.Success() || results[0].Target.Path != lib.Info.Path {
		s.Errorf("results of valid targets: %+v", results)
	}
	// The absent one is a failed result, or an error where a protocol has no results.
	results, err = s.BuildPathsWithResults(s.ctx, nix.Discard, []nix.DerivedPath{{Path: Path("unknown")}, valid}, nix.BuildNormal)
	if err == nil && (len(results) != 2 || results[0].Result.Status.Success() || !results[1].Result.Status.Success()) {
		s.Errorf("results with an unknown target: %+v", results)
	}
}

func (s *suite) inputs() {
	drv := &nix.BasicDerivation{
		Outputs:   []nix.DerivationOutput{{Name: "out", Path: Path("out")}},
		InputSrcs: []nix.StorePath{Path("unknown")}, Platform: "x86_64-linux", Builder: "/bin/sh",
		Env: []nix.EnvVar{{Name: "out", Value: Path("out").String()}},
	}
	result, err := s.BuildDerivation(s.ctx, nix.Discard, Path("out.drv"), drv, nix.BuildNormal)
	if err == nil && result.Status.Success() {
		s.Errorf("result %+v", result)
	}
	s.absent(Path("out"))
}

func (s *suite) usable() {
	if err := s.upload(NewObject("user", "user", Path("unknown"))); err == nil {
		s.Error("a path without its references was accepted")
	}
	_, err := s.AddToStore(s.ctx, nix.Discard, nix.AddToStoreRequest{
		Name: "x", Method: textMethod, References: []nix.StorePath{Path("unknown")},
	}, strings.NewReader("text"))
	if err == nil {
		s.Error("a text without its references was accepted")
	}
	o := NewObject("good", "good")
	s.check("upload after refusals", s.upload(o))
	s.holds(o)
}
