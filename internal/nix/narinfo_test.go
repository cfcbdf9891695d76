package nix

import (
	"bytes"
	"crypto/rand"
	"reflect"
	"strings"
	"testing"

	gonarinfo "github.com/nix-community/go-nix/pkg/narinfo"
	gosignature "github.com/nix-community/go-nix/pkg/narinfo/signature"
	"github.com/nix-community/go-nix/pkg/nixbase32"
	"pgregory.net/rapid"
)

const sampleNarInfo = `StorePath: /nix/store/gk0ppip8z2zi2dm5n0cl3lf2rj36lf31-srcfile
URL: nar/0m/0mj5rgx8nmg09nzjm15b65a0cysk47xwrd4r4f96zy306bn7f8j4.nar
Compression: none
FileHash: sha256:0mj5rgx8nmg09nzjm15b65a0cysk47xwrd4r4f96zy306bn7f8j4
FileSize: 120
NarHash: sha256:0mj5rgx8nmg09nzjm15b65a0cysk47xwrd4r4f96zy306bn7f8j4
NarSize: 120
References: cyf3skslcxf2bcgqlij7hdj0pl4l4nlw-dep-cap gk0ppip8z2zi2dm5n0cl3lf2rj36lf31-srcfile
Deriver: q1yl6f0bg2fmbkrzzw0qhlpps9l4s023-dep-cap.drv
Sig: key-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==
CA: fixed:r:sha256:0mj5rgx8nmg09nzjm15b65a0cysk47xwrd4r4f96zy306bn7f8j4
`

// Guards against a field that is lost, or written where another reader does not
// find it. Unknown keys are left out of the comparison: go-nix refuses them.
func TestNarInfoAgreesWithGoNix(t *testing.T) {
	ours, err := ParseNarInfo(sampleNarInfo)
	if err != nil {
		t.Fatal(err)
	}
	if ours.String() != sampleNarInfo {
		t.Errorf("printed again:\n%s", ours)
	}
	theirs, err := gonarinfo.Parse(strings.NewReader(ours.String()))
	if err != nil {
		t.Fatal(err)
	}
	if theirs.String() != sampleNarInfo {
		t.Errorf("go-nix reads:\n%s", theirs)
	}
	if theirs.Fingerprint() != ours.Fingerprint() {
		t.Errorf("fingerprint %q, go-nix %q", ours.Fingerprint(), theirs.Fingerprint())
	}
}

// Guards against a cache file that stops being readable when Nix adds a key, has
// no references, or names things in the older ways.
func TestNarInfoReadsWhatNixReads(t *testing.T) {
	n, err := ParseNarInfo("NewKey: x\nStorePath: " + srcPath + "\nURL: a\nNarHash: sha256-" +
		"RCJ37DJg+G+SI5m0zPshU3sGVDGrhCq/TeBVi/rLRVY=" +
		"\nNarSize: 120\nReferences: \nDeriver: unknown-deriver\nSig: broken\nSig: k:AAAA\n")
	if err != nil {
		t.Fatal(err)
	}
	if n.Compression != "bzip2" || len(n.References) != 0 || !n.Deriver.IsZero() || len(n.Sigs) != 0 ||
		n.NarHash.Base16() != "442277ec3260f86f922399b4ccfb21537b065431ab842abf4de0558bfacb4556" {
		t.Errorf("got %+v", n)
	}
	for _, missing := range []string{"StorePath", "URL", "NarHash", "NarSize"} {
		var kept []string
		for row := range strings.Lines(sampleNarInfo) {
			if !strings.HasPrefix(row, missing) {
				kept = append(kept, row)
			}
		}
		if _, err := ParseNarInfo(strings.Join(kept, "")); err == nil {
			t.Errorf("accepted without %s", missing)
		}
	}
	for _, broken := range []string{
		"x\n", "StorePath: /etc/passwd\n", "NarHash: md5:00000000000000000000000000000000\n", "NarSize: -1\n",
		"NarSize: 1x\n", "FileSize: \n", "References: ../x\n", "Deriver: /nix/store/x\n", "CA: x\n",
		"CA: fixed:r:sha256:0mj5rgx8nmg09nzjm15b65a0cysk47xwrd4r4f96zy306bn7f8j4\n",
		"References: gk0ppip8z2zi2dm5n0cl3lf2rj36lf31-srcfile\n", "URL: x",
	} {
		if _, err := ParseNarInfo(sampleNarInfo + broken); err == nil {
			t.Errorf("accepted with %q", broken)
		}
	}
}

// Guards against digests that another reader takes for others.
func TestNix32AgreesWithGoNix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "bytes")
		text := EncodeNix32(b)
		if want := nixbase32.EncodeToString(b); text != want {
			t.Fatalf("got %s, go-nix %s", text, want)
		}
		again, err := DecodeNix32(text, len(b))
		if err != nil || string(again) != string(b) {
			t.Fatalf("decoded %x, %v", again, err)
		}
	})
}

// Guards against signatures that Nix's other implementations refuse, or that
// cover less than they should.
func TestSignaturesAgreeWithGoNix(t *testing.T) {
	info, err := ParseNarInfo(sampleNarInfo)
	if err != nil {
		t.Fatal(err)
	}
	secret, public, err := gosignature.GenerateKeypair("host-1", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseSigningKey(secret.String() + "\n")
	if err != nil || key.Secret() != secret.String() || key.Public().String() != public.String() {
		t.Fatalf("read key %v, %v", key.Public(), err)
	}
	sig := key.Sign(info.Fingerprint())
	theirs, err := gosignature.ParseSignature(sig.String())
	if err != nil || !public.Verify(info.Fingerprint(), theirs) {
		t.Errorf("go-nix does not verify %s: %v", sig, err)
	}
	reader, err := ParsePublicKey(public.String())
	if err != nil || !reader.Verify(info.Fingerprint(), sig) {
		t.Errorf("own signature does not verify: %v", err)
	}
	other := info.Clone()
	other.NarSize++
	if reader.Verify(other.Fingerprint(), sig) {
		t.Error("signature holds for another size")
	}
	renamed, err := GenerateSigningKey("host-2")
	if err != nil || reader.Verify(info.Fingerprint(), renamed.Sign(info.Fingerprint())) {
		t.Errorf("signature of another key verifies: %v", err)
	}
}

// Guards against a secret in a log line and against a damaged key file.
func TestSigningKeyKeepsItsSecret(t *testing.T) {
	key, err := GenerateSigningKey("host-1")
	if err != nil {
		t.Fatal(err)
	}
	secret := key.Secret()
	for _, broken := range []string{
		"", "host-1", ":" + secret, "host-1:" + secret[7:40], "host-1:!!!", secret[:len(secret)-6] + "AAAA==",
		"host 1:" + secret[7:], "host\x001:" + secret[7:],
		secret[7:], secret[7:] + ":host-1", // the name is missing, or behind the secret
	} {
		_, err := ParseSigningKey(broken)
		if err == nil {
			t.Errorf("accepted %q", broken)
		} else if strings.Contains(err.Error(), secret[20:40]) {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
	if _, err := GenerateSigningKey(""); err == nil {
		t.Error("a key without a name")
	}
}

// drawBase draws a store path.
func drawBase(t *rapid.T, label string) StorePath {
	hash := rapid.SliceOfN(rapid.Byte(), 20, 20).Draw(t, label+" hash")
	name := rapid.StringMatching(`[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,20}`).Draw(t, label+" name")
	p, err := ParseStorePathBase(EncodeNix32(hash) + "-" + name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func drawHash(t *rapid.T, label string) Hash {
	h, err := NewHash(SHA256, rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, label))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func drawNarInfo(t *rapid.T) *NarInfo {
	n := &NarInfo{
		URL:         "nar/" + rapid.StringMatching(`[a-z0-9./]{1,20}`).Draw(t, "URL"),
		Compression: rapid.SampledFrom([]string{"none", "xz", "zstd", "bzip2"}).Draw(t, "compression"),
	}
	n.Path, n.NarHash = drawBase(t, "path"), drawHash(t, "NAR")
	n.NarSize = rapid.Uint64Min(1).Draw(t, "size")
	for range rapid.IntRange(0, 4).Draw(t, "references") {
		n.References = append(n.References, drawBase(t, "reference"))
	}
	if rapid.Bool().Draw(t, "self") {
		n.References = append(n.References, n.Path)
	}
	n.References = SortPaths(n.References)
	if rapid.Bool().Draw(t, "file") {
		n.FileHash, n.FileSize = drawHash(t, "file"), rapid.Uint64Min(1).Draw(t, "file size")
	}
	if rapid.Bool().Draw(t, "derived") {
		n.Deriver = drawBase(t, "deriver")
	}
	for range rapid.IntRange(0, 2).Draw(t, "signatures") {
		sig := Signature{name: rapid.StringMatching(`[a-z0-9.-]{1,10}`).Draw(t, "key")}
		copy(sig.sig[:], rapid.SliceOfN(rapid.Byte(), 64, 64).Draw(t, "signature"))
		n.Sigs = append(n.Sigs, sig)
	}
	if rapid.Bool().Draw(t, "addressed") {
		n.CA = ContentAddress{Method: rapid.SampledFrom([]IngestionMethod{Text, Flat, NAR}).Draw(t, "method"), Hash: drawHash(t, "content")}
	}
	return n
}

// Guards against a combination of fields that is printed so that it is read as
// another, here or by go-nix, or signed over another text.
func TestDrawnNarInfosAgreeWithGoNix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawNarInfo(t)
		got, err := ParseNarInfo(want.String())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
		}
		theirs, err := gonarinfo.Parse(strings.NewReader(want.String()))
		if err != nil {
			t.Fatal(err)
		}
		if theirs.Fingerprint() != want.Fingerprint() {
			t.Fatalf("fingerprint %q, go-nix %q", want.Fingerprint(), theirs.Fingerprint())
		}
		if again, err := ParseNarInfo(theirs.String()); err != nil || !reflect.DeepEqual(again, want) {
			t.Fatalf("by way of go-nix %+v, %v\nwant %+v", again, err, want)
		}
	})
}

// Guards against characters, lengths and spare bits that one decoder takes and
// another does not: two texts would then name one path.
func TestNix32RefusesWhatGoNixRefuses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[0-9a-df-np-su-zeotu]{1,60}`).Draw(t, "text")
		size := len(text) * 5 / 8
		got, err := DecodeNix32(text, size)
		theirs, theirErr := nixbase32.DecodeString(text)
		if (err == nil) != (theirErr == nil) || err == nil && !bytes.Equal(got, theirs) {
			t.Fatalf("%q: got %x, %v, go-nix %x, %v", text, got, err, theirs, theirErr)
		}
	})
}
