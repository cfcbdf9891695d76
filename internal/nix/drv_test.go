package nix

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	gonix "github.com/nix-community/go-nix/pkg/derivation"
)

// Two derivations as Nix 2.34.8 wrote them, the second on top of the first, and
// what Nix made of them.
const (
	depPath  = "/nix/store/q1yl6f0bg2fmbkrzzw0qhlpps9l4s023-dep-cap.drv"
	depDrv   = `Derive([("out","/nix/store/cyf3skslcxf2bcgqlij7hdj0pl4l4nlw-dep-cap","","")],[],[],"x86_64-linux","/bin/sh",["-c","echo dep > $out"],[("builder","/bin/sh"),("name","dep-cap"),("out","/nix/store/cyf3skslcxf2bcgqlij7hdj0pl4l4nlw-dep-cap"),("system","x86_64-linux")])`
	depOut   = "/nix/store/cyf3skslcxf2bcgqlij7hdj0pl4l4nlw-dep-cap"
	depMask  = "c67aa8be8433bf71d8d069c8ecf1aa9a8cd3c2f18079fac7b72e3d91e00bb9ab"
	depInput = "b5d9583ad95092b14afb158ecf477bed9e3683dd831168c76f47d176515183bb"

	helloPath = "/nix/store/wsnynrcrldn6z1k5x396rmd7zp0gvqfk-hello-cap.drv"
	helloDrv  = `Derive([("out","/nix/store/2c3k13d15wlfr1hp8iswa9inh6a9jcx0-hello-cap","","")],[("/nix/store/q1yl6f0bg2fmbkrzzw0qhlpps9l4s023-dep-cap.drv",["out"])],["/nix/store/gk0ppip8z2zi2dm5n0cl3lf2rj36lf31-srcfile"],"x86_64-linux","/bin/sh",["-c","echo line1; echo line2; cat $dep > $out"],[("builder","/bin/sh"),("dep","/nix/store/cyf3skslcxf2bcgqlij7hdj0pl4l4nlw-dep-cap"),("name","hello-cap"),("out","/nix/store/2c3k13d15wlfr1hp8iswa9inh6a9jcx0-hello-cap"),("requiredSystemFeatures","foo"),("src","/nix/store/gk0ppip8z2zi2dm5n0cl3lf2rj36lf31-srcfile"),("system","x86_64-linux")])`
	helloOut  = "/nix/store/2c3k13d15wlfr1hp8iswa9inh6a9jcx0-hello-cap"
	helloMask = "9ac29ce478251da6de45f0cd7116c5ba57ae7399439e08788e79693e48d893bc"
	// helloFlat is in the reply to BuildDerivation, which knows no input derivations.
	helloFlat = "48d9257a8decb478867fa0153c23801712d6374ae08a00d23966205f6fb34b99"

	srcPath = "/nix/store/gk0ppip8z2zi2dm5n0cl3lf2rj36lf31-srcfile"
	srcCA   = "fixed:r:sha256:0mj5rgx8nmg09nzjm15b65a0cysk47xwrd4r4f96zy306bn7f8j4"
)

func mustPath(t testing.TB, s string) StorePath {
	t.Helper()
	p, err := ParseStorePath(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustDrv(t testing.TB, name, text string) *Derivation {
	t.Helper()
	d, err := ParseDerivation(name, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func mustCA(t testing.TB, s string) ContentAddress {
	t.Helper()
	ca, err := ParseContentAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func twoDrvs(t testing.TB) *DerivationHasher {
	return &DerivationHasher{Read: func(p StorePath) (*Derivation, error) {
		switch p.String() {
		case depPath:
			return mustDrv(t, "dep-cap", depDrv), nil
		case helloPath:
			return mustDrv(t, "hello-cap", helloDrv), nil
		}
		return nil, ErrNotFound
	}}
}

// Guards against formulas that name other paths than Nix does.
func TestPathsOfDerivationsAreThoseOfNix(t *testing.T) {
	for _, c := range []struct {
		name, text, path string
	}{{"dep-cap", depDrv, depPath}, {"hello-cap", helloDrv, helloPath}} {
		drv := mustDrv(t, c.name, c.text)
		refs := slices.Clone(drv.InputSrcs)
		for _, in := range drv.InputDrvs {
			refs = append(refs, in.Path)
		}
		ca := ContentAddress{Method: Text, Hash: HashBytes(SHA256, []byte(c.text))}
		got, err := ContentAddressedPath(c.name+".drv", ca, refs, false)
		if err != nil || got.String() != c.path {
			t.Errorf("got %s, %v", got, err)
		}
		if drv.ATerm() != c.text {
			t.Errorf("%s prints as %s", c.name, drv.ATerm())
		}
	}
	got, err := ContentAddressedPath("srcfile", mustCA(t, srcCA), nil, false)
	if err != nil || got.String() != srcPath {
		t.Errorf("got %s, %v", got, err)
	}
}

// Guards against a plan whose output paths are taken on trust or refused though
// they are right.
func TestOutputPathsFollowFromTheDerivation(t *testing.T) {
	h := twoDrvs(t)
	for _, c := range []struct{ name, text, out, mask string }{
		{"dep-cap", depDrv, depOut, depMask}, {"hello-cap", helloDrv, helloOut, helloMask},
	} {
		drv := mustDrv(t, c.name, c.text)
		mask, err := h.MaskedHash(drv)
		if err != nil || mask.Base16() != c.mask {
			t.Errorf("%s: masked hash %s, %v", c.name, mask, err)
		}
		paths, err := h.OutputPaths(c.name, drv)
		if err != nil || len(paths) != 1 || paths[0].String() != c.out {
			t.Errorf("%s: got %v, %v", c.name, paths, err)
		}
		if err := h.CheckOutputPaths(c.name, drv); err != nil {
			t.Error(err)
		}
		drv.Args = append(drv.Args, "evil")
		if err := h.CheckOutputPaths(c.name, drv); err == nil {
			t.Errorf("%s: a changed derivation keeps its output path", c.name)
		}
	}
	in, err := h.InputHash(mustPath(t, depPath))
	if err != nil || in.Derivation.Base16() != depInput {
		t.Errorf("as input: %v, %v", in, err)
	}
}

// Guards against ids of outputs that clients up to 2.34 do not find again.
func TestOutputHashOfAFlattenedDerivation(t *testing.T) {
	drv := mustDrv(t, "hello-cap", helloDrv).BasicDerivation
	drv.InputSrcs = []StorePath{mustPath(t, depOut), mustPath(t, srcPath)}
	got, err := drv.OutputHash("out")
	if err != nil || got.Base16() != helloFlat {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := drv.OutputHash("dev"); err == nil {
		t.Error("an output that is not there has a hash")
	}
}

// The same derivation fetched in two ways.
func fixedDrv(builder string) string {
	ca := ContentAddress{Method: Flat, Hash: HashBytes(SHA256, []byte("content"))}
	path, _ := ContentAddressedPath("source", ca, nil, false)
	return `Derive([("out","` + path.String() + `","sha256","` + ca.Hash.Base16() + `")],[],[],"builtin","` +
		builder + `",[],[("name","source"),("out","` + path.String() + `")])`
}

// Guards against output paths that depend on where a fixed output was fetched
// from, and on hashes of inputs that have none.
func TestInputsAreHashedByKind(t *testing.T) {
	first, second := mustPath(t, strings.Replace(depPath, "q1", "00", 1)), mustPath(t, strings.Replace(depPath, "q1", "11", 1))
	floating := mustPath(t, strings.Replace(depPath, "q1", "22", 1))
	above := mustPath(t, strings.Replace(depPath, "q1", "33", 1))
	loop := mustPath(t, strings.Replace(depPath, "q1", "44", 1))
	onTop := func(in ...StorePath) *Derivation {
		d := &Derivation{BasicDerivation: BasicDerivation{Outputs: []DerivationOutput{{Name: "out"}}}}
		for _, p := range in {
			d.InputDrvs = append(d.InputDrvs, InputDrv{Path: p, Outputs: []string{"out"}})
		}
		return d
	}
	h := &DerivationHasher{Read: func(p StorePath) (*Derivation, error) {
		switch p {
		case first:
			return mustDrv(t, "source", fixedDrv("builtin:fetchurl")), nil
		case second:
			return mustDrv(t, "source", fixedDrv("/bin/curl")), nil
		case floating:
			return &Derivation{BasicDerivation: BasicDerivation{Outputs: []DerivationOutput{{Name: "out", HashAlgo: "r:sha256"}}}}, nil
		case above:
			d := onTop(floating)
			d.Outputs[0].Path = first // input-addressed on top of a floating one: claimed, not possible
			return d, nil
		default:
			d := onTop(loop)
			d.Outputs[0].Path = first
			return d, nil
		}
	}}
	a, errA := h.MaskedHash(onTop(first))
	b, errB := h.MaskedHash(onTop(second))
	both, errC := h.MaskedHash(onTop(first, second))
	if errA != nil || errB != nil || errC != nil || a != b || a != both {
		t.Errorf("hashes differ: %s %s %s, %v %v %v", a, b, both, errA, errB, errC)
	}
	for _, p := range []StorePath{floating, above} {
		if _, err := h.MaskedHash(onTop(p)); !errors.Is(err, ErrDeferred) {
			t.Errorf("on top of %s: %v", p, err)
		}
	}
	if _, err := h.MaskedHash(onTop(loop)); err == nil || !strings.Contains(err.Error(), "depends on itself") {
		t.Errorf("cycle: %v", err)
	}
	claimed := onTop(floating)
	claimed.Outputs[0].Path = first
	if err := h.CheckOutputPaths("x", claimed); err == nil {
		t.Error("an input-addressed path on top of a floating output passes")
	}
}

// Guards against text that another parser reads differently, and against what
// cannot be a derivation.
func TestDerivationsThatNixDoesNotWriteAreRefused(t *testing.T) {
	replace := func(old, new string) string {
		s := strings.Replace(helloDrv, old, new, 1)
		if s == helloDrv {
			t.Fatalf("%q is not in the derivation", old)
		}
		return s
	}
	for name, text := range map[string]string{
		"empty":             "",
		"dynamic":           `DrvWithVersion("xp-dyn-drv",` + helloDrv[len("Derive("):],
		"trailing":          helloDrv + "\n",
		"space":             replace(`","/bin/sh"`, `", "/bin/sh"`),
		"odd escape":        replace(`hello-cap"),("out"`, `hello-c\ap"),("out"`),
		"raw newline":       replace("echo line1;", "echo line1\n"),
		"not terminated":    helloDrv[:len(helloDrv)-4],
		"ends in backslash": `Derive([("out\`,
		"comma at the end":  replace(`"x86_64-linux")])`, `"x86_64-linux"),])`),
		"no comma":          replace(`"-c",`, `"-c"`),
		"unsorted env":      replace(`("builder",`, `("zbuilder",`),
		"doubled env":       replace(`("name","hello-cap")`, `("dep","hello-cap")`),
		"doubled output":    replace(`,"","")]`, `,"",""),("out","","","")]`),
		"no store path":     replace(depPath, "/nix/store/../etc/passwd"),
		"not a derivation":  replace(depPath, srcPath),
		"no outputs used":   replace(`["out"]`, `[]`),
		"bad output name":   replace(`[("out"`, `[("o/ut"`),
		"unknown algorithm": replace(`"","")]`, `"sha3","")]`),
		"path and no hash":  replace(`"","")]`, `"sha256","")]`),
		"hash, no algo":     replace(`"","")]`, `"","00")]`),
		"wrong fixed path":  replace(`"","")]`, `"sha256","`+depMask+`")]`),
		"upper-case hash":   strings.Replace(fixedDrv("x"), "ed7002b4", "ED7002B4", 1),
	} {
		if name == "upper-case hash" && text == fixedDrv("x") {
			t.Fatal("nothing is in upper case")
		}
		drvName := "hello-cap"
		if name == "upper-case hash" {
			drvName = "source"
		}
		if _, err := ParseDerivation(drvName, []byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for n := range helloDrv {
		if _, err := ParseDerivation("hello-cap", []byte(helloDrv[:n])); err == nil {
			t.Fatalf("cut at %d: accepted", n)
		}
	}
}

// Guards against characters that change on their way through a .drv file.
func TestDerivationStringsSurvive(t *testing.T) {
	odd := "\"\\\n\r\t\x00\xff$${x} \\n"
	want := &Derivation{BasicDerivation: BasicDerivation{
		Outputs: []DerivationOutput{{Name: "out"}}, Platform: odd, Builder: odd, Args: []string{odd, ""},
		Env: []EnvVar{{Name: odd, Value: odd}},
	}}
	got := mustDrv(t, "x", want.ATerm())
	if got.Platform != odd || got.Builder != odd || got.Args[0] != odd || len(got.Args) != 2 || got.Env[0] != want.Env[0] {
		t.Errorf("got %+v", got)
	}
}

// Guards against reading derivations differently from an independent reader.
func TestDerivationsAgreeWithGoNix(t *testing.T) {
	for name, text := range map[string]string{"dep-cap": depDrv, "hello-cap": helloDrv, "source": fixedDrv("/bin/fetch")} {
		ours := mustDrv(t, name, text)
		theirs, err := gonix.ReadDerivation(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := theirs.WriteDerivation(&b); err != nil || b.String() != ours.ATerm() {
			t.Errorf("%s: go-nix writes %s, %v", name, &b, err)
		}
		if theirs.Builder != ours.Builder || theirs.Platform != ours.Platform || !slices.Equal(theirs.Arguments, ours.Args) {
			t.Errorf("%s: go-nix reads %+v", name, theirs)
		}
	}
}

// Guards against a build that lands on a builder which cannot do it.
func TestRequirements(t *testing.T) {
	known := DerivationOutput{Name: "out", Path: mustPath(t, depOut)}
	floating := DerivationOutput{Name: "out", HashAlgo: "r:sha256"}
	for name, c := range map[string]struct {
		out  DerivationOutput
		env  []EnvVar
		want []string
	}{
		"none":        {known, nil, nil},
		"environment": {known, []EnvVar{{"requiredSystemFeatures", " kvm\tbig-parallel\n kvm "}}, []string{"big-parallel", "kvm"}},
		"last counts": {known, []EnvVar{{"requiredSystemFeatures", "a"}, {"requiredSystemFeatures", "b"}}, []string{"b"}},
		"structured": {known, []EnvVar{{"__json", `{"requiredSystemFeatures":["kvm","a b"],"RequiredSystemFeatures":["x"]}`},
			{"requiredSystemFeatures", "ignored"}}, []string{"a b", "kvm"}},
		"structured, none": {known, []EnvVar{{"__json", `{}`}, {"requiredSystemFeatures", "ignored"}}, nil},
		"floating":         {floating, []EnvVar{{"requiredSystemFeatures", "kvm"}}, []string{"ca-derivations", "kvm"}},
		"impure":           {DerivationOutput{Name: "out", HashAlgo: "sha256", Hash: "impure"}, nil, []string{"ca-derivations"}},
		"deferred":         {DerivationOutput{Name: "out"}, nil, []string{"ca-derivations"}},
	} {
		d := &BasicDerivation{Outputs: []DerivationOutput{c.out}, Platform: "x86_64-linux", Env: c.env}
		system, got, err := d.Requirements()
		if err != nil || system != "x86_64-linux" || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %s %q, %v", name, system, got, err)
		}
	}
	for name, d := range map[string]*BasicDerivation{
		"no outputs":   {},
		"mixture":      {Outputs: []DerivationOutput{known, {Name: "x", HashAlgo: "r:sha256"}}},
		"two fixed":    {Outputs: []DerivationOutput{fixedOutput(t, "a"), fixedOutput(t, "b")}},
		"fixed name":   {Outputs: []DerivationOutput{fixedOutput(t, "a")}},
		"no JSON":      {Outputs: []DerivationOutput{known}, Env: []EnvVar{{"__json", `{`}}},
		"JSON list":    {Outputs: []DerivationOutput{known}, Env: []EnvVar{{"__json", `[]`}}},
		"no list":      {Outputs: []DerivationOutput{known}, Env: []EnvVar{{"__json", `{"requiredSystemFeatures":"kvm"}`}}},
		"null":         {Outputs: []DerivationOutput{known}, Env: []EnvVar{{"__json", `{"requiredSystemFeatures":null}`}}},
		"unknown algo": {Outputs: []DerivationOutput{{Name: "out", HashAlgo: "r:blake3"}}},
	} {
		if _, got, err := d.Requirements(); err == nil {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func fixedOutput(t *testing.T, name string) DerivationOutput {
	return DerivationOutput{Name: name, Path: mustPath(t, depOut), HashAlgo: "sha256", Hash: depMask}
}

// Guards against placeholders that a builder does not replace. The first is in
// every floating derivation that Nix writes; the second is of Nix's manual test.
func TestPlaceholders(t *testing.T) {
	if got := OutputPlaceholder("out"); got != "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9" {
		t.Error(got)
	}
	drv := mustPath(t, "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo.drv")
	if got := UpstreamPlaceholder(drv, "out"); got != "/0c6rn30q4frawknapgwq386zq358m8r6msvywcvc89n6m5p2dgbz" {
		t.Error(got)
	}
}

var _ io.Writer = (*CAVerifier)(nil)
