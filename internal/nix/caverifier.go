package nix

import (
	"hash"
	"io"

	"nixbastion/internal/nix/nar"
)

// CAVerifier finds out whether content has the address that a path info claims.
// It is written the path's NAR and hashes it on the way, so that nobody else
// need hash it too.
type CAVerifier struct {
	info *PathInfo
	nar  hash.Hash // of the whole NAR; nil if content does that
	// content hashes what the address is over.
	content *moduloHash
	// file picks the contents out of the NAR; nil if the address is over all of it.
	file    *nar.Validator
	refused error
}

// NewCAVerifier returns a verifier of the content of info.Path. It fails if the
// path does not follow from the address (see
// [PathInfo.CheckContentAddress]), and for git hashes, which are not known here.
// Only CA, Path and References of info are read.
func NewCAVerifier(info *PathInfo) (*CAVerifier, error) {
	if err := info.CheckContentAddress(); err != nil {
		return nil, err
	}
	if info.CA.Method == Git {
		return nil, Refuse("the content address %s of '%s' cannot be verified: git hashes are not supported", info.CA, info.Path)
	}
	v := &CAVerifier{info: info, content: newModuloHash(info.CA.Hash.Algo(), info.Path.HashPart())}
	if info.CA.Method != NAR {
		v.file = nar.NewValidator(nar.Visitor{Node: v.checkRoot, Contents: v.writeContents})
	}
	if v.file != nil || info.CA.Hash.Algo() != SHA256 {
		v.nar = SHA256.New()
	}
	return v, nil
}

func (v *CAVerifier) checkRoot(n nar.Node) {
	if n.Kind != nar.Regular || n.Executable {
		v.refused = Refuse("path '%s' with the content address %s is not a regular, non-executable file", v.info.Path, v.info.CA)
	}
}

func (v *CAVerifier) writeContents(p []byte) { v.content.Write(p) }

// Write takes the next piece of the NAR. It fails at once if the NAR cannot
// match: if it is broken or not the file that it must be.
func (v *CAVerifier) Write(p []byte) (int, error) {
	if v.nar != nil {
		v.nar.Write(p)
	}
	if v.file == nil {
		return v.content.Write(p)
	}
	n, err := v.file.Write(p)
	if v.refused != nil {
		return n, v.refused
	}
	return n, err
}

// Verify ends the NAR. It returns its SHA-256 and whether the content has the
// claimed address: the error tells both addresses. Without a file to pick out,
// the grammar of the NAR was not checked.
func (v *CAVerifier) Verify() (narHash Hash, err error) {
	plain, modulo, err := v.content.sums()
	narHash = plain
	if v.nar != nil {
		narHash = SumHash(SHA256, v.nar)
	}
	switch {
	case v.refused != nil:
		return narHash, v.refused
	case err != nil:
		return narHash, Refuse("path '%s' has %s", v.info.Path, err)
	case v.file != nil && !v.file.Done():
		return narHash, io.ErrUnexpectedEOF
	case modulo != v.info.CA.Hash:
		return narHash, Refuse("ca hash mismatch importing path '%s';\n  specified: %s\n  got:       %s",
			v.info.Path, v.info.CA.Hash, modulo)
	}
	return narHash, nil
}
