package proxy

import (
	"bytes"
	"context"
	"fmt"
	"hash"
	"io"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
)

// AddToStore takes content that names itself: sources, .drv files and texts of
// clients that evaluate against this store. Nothing is to be repaired of those:
// who asks for it brings the very bytes, which are stored if ours were lost.
func (s *session) AddToStore(ctx context.Context, _ nix.Logger, req nix.AddToStoreRequest, dump io.Reader) (info *nix.PathInfo, err error) {
	defer func() { s.noteRefusal("upload "+req.Name, nix.StorePath{}, err) }()
	if err := s.mayWrite("add to the store"); err != nil {
		return nil, err
	}
	if req.Method.Method == nix.Git {
		return nil, nix.Refuse("%q is to be addressed by %s; the proxy does not take git trees", req.Name, req.Method)
	}
	dump = &sizeLimit{r: dump, name: req.Name, limit: s.policy().Limits.NarSize}
	var outcome cache.Outcome
	switch {
	case req.Method.Method == nix.NAR:
		info, outcome, err = s.addNAR(ctx, req, dump)
	case req.DumpIsNAR:
		info, outcome, err = s.addArchivedFile(ctx, req, dump)
	default:
		info, outcome, err = s.addFile(ctx, req, dump)
	}
	if err != nil {
		return nil, err
	}
	s.uploaded(info, outcome.String())
	s.pins.Pin(s.domain(), []nix.StorePath{info.Path})
	return info, nil
}

// addNAR takes an archive that is addressed as a whole.
func (s *session) addNAR(ctx context.Context, req nix.AddToStoreRequest, archive io.Reader) (*nix.PathInfo, cache.Outcome, error) {
	if req.Method.Algo == nix.SHA256 { // the cache makes that hash anyway
		return s.cache.ReceiveUnnamed(ctx, archive, s.grant(s.policy(), nil), func(narHash nix.Hash, _ uint64) (*nix.PathInfo, error) {
			return named(req, narHash)
		})
	}
	digest := req.Method.Algo.New()
	return s.receiveHashed(ctx, req, io.TeeReader(archive, digest), digest)
}

// addArchivedFile takes a single file in an archive, as clients before 1.25 send
// it. Nix drops the executable bit then.
func (s *session) addArchivedFile(ctx context.Context, req nix.AddToStoreRequest, archive io.Reader) (*nix.PathInfo, cache.Outcome, error) {
	file, err := nar.SingleFile(archive)
	if err != nil {
		return nil, 0, nix.Refuse("%q: %v", req.Name, err)
	}
	return s.wrapFile(ctx, req, file.Size, file)
}

// addFile takes the bytes of a file. How many they are must be known before the
// first one can go into an archive.
func (s *session) addFile(ctx context.Context, req nix.AddToStoreRequest, contents io.Reader) (*nix.PathInfo, cache.Outcome, error) {
	temp, err := s.cache.TempFile(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("add %s: %w", req.Name, err)
	}
	defer temp.Close()
	size, err := temp.ReadFrom(contents)
	if err != nil {
		return nil, 0, fmt.Errorf("add %s: %w", req.Name, err)
	}
	if _, err := temp.Seek(0, io.SeekStart); err != nil {
		return nil, 0, fmt.Errorf("add %s: %w", req.Name, err)
	}
	return s.wrapFile(ctx, req, uint64(size), temp.File)
}

// wrapFile stores a file as an archive; its address is that of the contents.
func (s *session) wrapFile(ctx context.Context, req nix.AddToStoreRequest, size uint64, contents io.Reader) (*nix.PathInfo, cache.Outcome, error) {
	digest := req.Method.Algo.New()
	archive := io.MultiReader(
		bytes.NewReader(nar.FileHeader(false, size)),
		io.TeeReader(contents, digest),
		bytes.NewReader(nar.FileTrailer(size)),
	)
	return s.receiveHashed(ctx, req, archive, digest)
}

// receiveHashed stores an archive whose address digest has once it was read.
func (s *session) receiveHashed(ctx context.Context, req nix.AddToStoreRequest, archive io.Reader, digest hash.Hash) (*nix.PathInfo, cache.Outcome, error) {
	return s.cache.ReceiveUnnamed(ctx, archive, s.grant(s.policy(), nil), func(nix.Hash, uint64) (*nix.PathInfo, error) {
		return named(req, nix.SumHash(req.Method.Algo, digest))
	})
}

// named makes the path info that follows from content with this hash.
func named(req nix.AddToStoreRequest, digest nix.Hash) (*nix.PathInfo, error) {
	ca := nix.ContentAddress{Method: req.Method.Method, Hash: digest}
	path, err := nix.ContentAddressedPath(req.Name, ca, req.References, false)
	if err != nil {
		return nil, nix.Refuse("%v", err)
	}
	return &nix.PathInfo{Path: path, References: req.References, CA: ca}, nil
}

// sizeLimit refuses content of unknown length once it is longer than allowed.
type sizeLimit struct {
	r     io.Reader
	name  string
	limit int64 // bytes; 0 for none
	n     int64
}

func (l *sizeLimit) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.n += int64(n); l.limit > 0 && l.n > l.limit {
		return 0, nix.Refuse("%q has more than %d bytes; that is the proxy's limit (limits.nar_size)", l.name, l.limit)
	}
	return n, err
}
