package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"nixbastion/internal/nix"
)

var inputHash = regexp.MustCompile(`\("([0-9a-f]{64})",\[`)

// checkModulo compares the text whose hash gives a derivation's paths with the
// hash that is computed from the derivation itself. The golden text has hashes
// of inputs in it. The inputs that lie in the folder are read there; of the
// others, which are fixed outputs, only the hash is known, so a stand-in takes
// their place and its hash the place of theirs in the text.
func checkModulo(f *file) error {
	stem := strings.TrimSuffix(f.stem(), "-modulo")
	text, err := f.sibling(stem + ".drv")
	if err != nil {
		return err
	}
	drv, err := nix.ParseDerivation(stem, text)
	if err != nil {
		return err
	}
	m := &moduloFolder{f: f}
	h := &nix.DerivationHasher{Read: m.read}
	got, err := h.MaskedHash(drv)
	if err != nil {
		return err
	}
	want, err := m.replaceHashes(h, drv, string(f.data))
	if err != nil {
		return err
	}
	if got != nix.HashBytes(nix.SHA256, []byte(want)) {
		return fmt.Errorf("its hash is %s, which is not that of %s", got.Base16(), want)
	}
	return nil
}

type moduloFolder struct{ f *file }

// read returns the derivation whose text has the given path, or the stand-in.
func (m *moduloFolder) read(p nix.StorePath) (*nix.Derivation, error) {
	dir := path.Dir(m.f.name)
	names, err := fs.Glob(m.f.root, dir+"/*.drv")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		text, err := fs.ReadFile(m.f.root, name)
		if err != nil {
			return nil, err
		}
		drv, err := nix.ParseDerivation(p.DrvName(), text)
		if err != nil {
			continue // a text that is hashed, which is no derivation
		}
		if drvPath(p.DrvName(), drv, text) == p {
			return drv, nil
		}
	}
	return standIn()
}

func drvPath(name string, drv *nix.Derivation, text []byte) nix.StorePath {
	refs := append([]nix.StorePath(nil), drv.InputSrcs...)
	for _, in := range drv.InputDrvs {
		refs = append(refs, in.Path)
	}
	ca := nix.ContentAddress{Method: nix.Text, Hash: nix.HashBytes(nix.SHA256, text)}
	p, _ := nix.ContentAddressedPath(name+".drv", ca, refs, false) // zero fits nothing
	return p
}

// standIn has a fixed output.
func standIn() (*nix.Derivation, error) {
	ca := nix.ContentAddress{Method: nix.Flat, Hash: nix.HashBytes(nix.SHA256, []byte("stand-in"))}
	p, err := nix.ContentAddressedPath("source", ca, nil, false)
	o := nix.DerivationOutput{Name: "out", Path: p, HashAlgo: "sha256", Hash: ca.Hash.Base16()}
	return &nix.Derivation{BasicDerivation: nix.BasicDerivation{Outputs: []nix.DerivationOutput{o}}}, err
}

// replaceHashes puts our hashes of the inputs where the text has Nix's, after it
// has found that Nix's follow from the same texts.
func (m *moduloFolder) replaceHashes(h *nix.DerivationHasher, drv *nix.Derivation, text string) (string, error) {
	theirs := inputHash.FindAllStringSubmatch(text, -1)
	if len(theirs) != 1 || len(drv.InputDrvs) == 0 {
		return "", errors.New("expected a text with the hash of one input")
	}
	in, err := h.InputHash(drv.InputDrvs[0].Path)
	if err != nil {
		return "", err
	}
	if in.Outputs != nil {
		return strings.Replace(text, theirs[0][1], in.Outputs["out"].Base16(), 1), nil
	}
	if err := m.provesHash(drv.InputDrvs[0].Path, theirs[0][1]); err != nil {
		return "", err
	}
	return strings.Replace(text, theirs[0][1], in.Derivation.Base16(), 1), nil
}

// provesHash finds the hash of an input again: that of the input's text with the
// hashes of its own inputs from the golden text beside it.
func (m *moduloFolder) provesHash(p nix.StorePath, want string) error {
	drv, err := m.read(p)
	if err != nil {
		return err
	}
	names, err := fs.Glob(m.f.root, path.Dir(m.f.name)+"/*-modulo.drv")
	if err != nil {
		return err
	}
	for _, name := range names {
		text, err := fs.ReadFile(m.f.root, name)
		if err != nil {
			return err
		}
		for _, hash := range inputHash.FindAllStringSubmatch(string(text), -1) {
			unmasked := strings.Replace(drv.ATerm(), drv.InputDrvs[0].Path.String(), hash[1], 1)
			if nix.HashBytes(nix.SHA256, []byte(unmasked)).Base16() == want {
				return nil
			}
		}
	}
	return fmt.Errorf("the hash %s of the input %s follows from no text here", want, p)
}
