package wire

import (
	"fmt"
	"io"

	"nixbastion/internal/nix"
)

// SizedNar reads the NAR of an announced path: exactly as many bytes as were
// announced. A source that ends before is a [nix.UserError].
type SizedNar struct {
	src  io.Reader
	path nix.StorePath
	size uint64
	left uint64
}

// NewSizedNar returns a reader of the NAR of info that begins at src.
func NewSizedNar(src io.Reader, info *nix.PathInfo) *SizedNar {
	return &SizedNar{src: src, path: info.Path, size: info.NarSize, left: info.NarSize}
}

// Read returns io.EOF behind the last announced byte.
func (s *SizedNar) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.src.Read(p[:min(uint64(len(p)), s.left)])
	s.left -= uint64(n)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = &nix.UserError{
			Message: fmt.Sprintf("upload of %s ends after %d of the announced %d bytes", s.path, s.size-s.left, s.size),
			Err:     io.ErrUnexpectedEOF,
		}
	}
	return n, err
}

// Skip reads what is left.
func (s *SizedNar) Skip() error {
	_, err := io.Copy(io.Discard, s)
	return err
}

// OnePath is the source of an upload of a single path, which src ends with.
func OnePath(info *nix.PathInfo, src io.Reader) nix.PathSource {
	var nar *SizedNar
	return nix.PathSource{Count: 1, Next: func() (*nix.PathInfo, io.Reader, error) {
		if nar == nil {
			nar = NewSizedNar(src, info)
			return info, nar, nil
		}
		if err := nar.Skip(); err != nil {
			return nil, nil, err
		}
		return nil, nil, ended(src, info)
	}}
}

// ended returns io.EOF if src has no more bytes than were announced.
func ended(src io.Reader, info *nix.PathInfo) error {
	n, err := io.CopyN(io.Discard, src, 1)
	if n > 0 {
		return nix.Refuse("upload of %s has more than the announced %d bytes", info.Path, info.NarSize)
	}
	return err
}
