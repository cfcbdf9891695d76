package storetest

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"io"
	"slices"
	"strings"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
)

// Object is a path with its NAR.
type Object struct {
	Info *nix.PathInfo
	NAR  []byte
}

// Path makes a path of which only the name matters.
func Path(name string) nix.StorePath {
	digest := nix.HashBytes(nix.SHA256, []byte(name)).Bytes()[:20]
	return must(nix.ParseStorePathBase(nix.EncodeNix32(digest) + "-" + name))
}

// File makes the NAR of a file.
func File(content string) []byte {
	var b bytes.Buffer
	if err := nar.WriteRegular(&b, false, uint64(len(content)), strings.NewReader(content)); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// NewObject makes a file whose path says nothing about its content, as outputs
// of builds are.
func NewObject(name, content string, refs ...nix.StorePath) Object {
	archive := File(content)
	return Object{NAR: archive, Info: &nix.PathInfo{
		Path: Path(name), Deriver: Path(name + ".drv"), NarHash: nix.HashBytes(nix.SHA256, archive),
		NarSize: uint64(len(archive)), References: nix.SortPaths(slices.Clone(refs)),
	}}
}

// NewSource makes a content-addressed file.
func NewSource(name, content string, refs ...nix.StorePath) Object {
	o := NewObject(name, content, refs...)
	o.Info.Deriver = nix.StorePath{}
	o.Info.CA = nix.ContentAddress{Method: nix.NAR, Hash: o.Info.NarHash}
	o.Info.Path = must(nix.ContentAddressedPath(name, o.Info.CA, refs, false))
	return o
}

// SigningKey makes a key that follows from its name.
func SigningKey(name string) nix.SigningKey {
	key := ed25519.NewKeyFromSeed(nix.HashBytes(nix.SHA256, []byte(name)).Bytes())
	return must(nix.ParseSigningKey(name + ":" + base64.StdEncoding.EncodeToString(key)))
}

// Upload offers objects in order.
func Upload(objects ...Object) nix.PathSource {
	return nix.PathSource{Count: uint64(len(objects)), Next: func() (*nix.PathInfo, io.Reader, error) {
		if len(objects) == 0 {
			return nil, nil, io.EOF
		}
		o := objects[0]
		objects = objects[1:]
		return o.Info, bytes.NewReader(o.NAR), nil
	}}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
