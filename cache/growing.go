package cache

import (
	"context"
	"errors"
	"io"

	"nixbastion/internal/nix"
)

// Growing is an upload on its way in, which others may read before it is valid.
type Growing struct {
	info  *nix.PathInfo
	spool *spool
	// settled is closed when it is known whether the path is valid with these bytes;
	// err is why it is not.
	settled chan struct{}
	err     error
}

var errOtherBytes = errors.New("the path is valid with other bytes")

func (g *Growing) settle(outcome Outcome, err error) {
	if err == nil && outcome == Differs {
		err = errOtherBytes
	}
	g.err = err
	close(g.settled)
}

// Info is what the path will be valid with. It is shared: nobody may change it.
func (g *Growing) Info() *nix.PathInfo { return g.info }

// Valid reports whether the upload has ended and made the path valid.
func (g *Growing) Valid() bool {
	select {
	case <-g.settled:
		return g.err == nil
	default:
		return false
	}
}

// Open returns a reader that follows the upload. It is called while the upload is
// shown, or before it is known to be wrong. The reader waits as long as ctx lives,
// gets the last bytes only once the path is valid, and fails before them if it does
// not become so. The upload never waits for it. The caller closes the reader,
// which keeps its bytes on disk until then.
func (g *Growing) Open(ctx context.Context) (io.ReadCloser, error) {
	nar, err := g.spool.follow(ctx)
	if err != nil {
		return nil, err
	}
	early := g.info.NarSize - min(heldBack, g.info.NarSize)
	return &growingReader{ctx: ctx, g: g, ReadCloser: nar, early: early}, nil
}

// growingReader holds the end back for longer than its follower: verified bytes can
// still be refused, if other bytes of the path came first.
type growingReader struct {
	io.ReadCloser
	ctx   context.Context // of the one who reads, as Read takes none
	g     *Growing
	early uint64 // bytes left that are given out before all is settled
}

// Read returns io.EOF only behind the last byte of a path that is valid.
func (r *growingReader) Read(p []byte) (int, error) {
	if r.early > 0 {
		n, err := r.ReadCloser.Read(p[:min(uint64(len(p)), r.early)])
		r.early -= uint64(n)
		return n, err
	}
	select {
	case <-r.g.settled:
	case <-r.ctx.Done():
		return 0, context.Cause(r.ctx)
	}
	if r.g.err != nil {
		return 0, r.g.err
	}
	return r.ReadCloser.Read(p)
}
