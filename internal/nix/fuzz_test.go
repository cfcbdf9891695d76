package nix

import (
	"strings"
	"testing"
)

// Each parser is given anything: it must not panic, and whatever it accepts must
// print to text that parses to the same again.

func fuzzText[T comparable](f *testing.F, parse func(string) (T, error), print func(T) string) {
	f.Fuzz(func(t *testing.T, s string) {
		v, err := parse(s)
		if err != nil {
			return
		}
		again, err := parse(print(v))
		if err != nil || again != v {
			t.Errorf("%q becomes %q: %v", s, print(v), err)
		}
	})
}

func FuzzStorePath(f *testing.F) {
	f.Add(srcPath)
	f.Add("/nix/store/" + strings.Repeat("0", 32) + "-.gitignore")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParseStorePath(s); err == nil && (p.String() != s || StoreDir+"/"+p.HashPart()+"-"+p.Name() != s) {
			t.Errorf("%q becomes %q", s, p)
		}
	})
}

func FuzzHash(f *testing.F) {
	f.Add("sha256:" + depMask)
	f.Add("sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=")
	f.Add("md5:3y8bwfr609h3lh9ch0izcqq7fl")
	fuzzText(f, func(s string) (Hash, error) { return ParseHash(s, 0) }, Hash.String)
}

func FuzzContentAddress(f *testing.F) {
	f.Add(srcCA)
	f.Add("text:sha256:" + depMask)
	fuzzText(f, ParseContentAddress, ContentAddress.String)
}

func FuzzDerivedPath(f *testing.F) {
	f.Add(depPath + "!*")
	f.Add(depPath + "!out,dev")
	f.Add(srcPath)
	fuzzText(f, func(s string) (string, error) {
		d, err := ParseDerivedPath(s)
		return d.String(), err
	}, func(s string) string { return s })
}

func FuzzSignature(f *testing.F) {
	f.Add("cache.nixos.org-1:" + strings.Repeat("A", 86) + "==")
	fuzzText(f, ParseSignature, Signature.String)
}

func FuzzNarInfo(f *testing.F) {
	f.Add(sampleNarInfo)
	fuzzText(f, func(s string) (string, error) {
		n, err := ParseNarInfo(s)
		if err != nil {
			return "", err
		}
		return n.String(), nil
	}, func(s string) string { return s })
}

func FuzzRealisation(f *testing.F) {
	f.Add(`{"dependentRealisations":{},"id":"sha256:` + depMask + `!out","outPath":"gk0ppip8z2zi2dm5n0cl3lf2rj36lf31-srcfile","signatures":["a:b"]}`)
	fuzzText(f, func(s string) (string, error) {
		r, err := ParseRealisationJSON(s)
		if err != nil {
			return "", err
		}
		return RealisationJSON(r), nil
	}, func(s string) string { return s })
}

func FuzzDerivation(f *testing.F) {
	f.Add(depDrv)
	f.Add(helloDrv)
	f.Add(fixedDrv("x"))
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDerivation("source", []byte(text))
		if err != nil {
			return
		}
		if d.ATerm() != text {
			t.Errorf("%q becomes %q", text, d.ATerm())
		}
		d.Requirements()
		d.OutputHash("out")
	})
}
