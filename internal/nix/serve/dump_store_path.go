package serve

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// dumpStorePath answers with a NAR and nothing else.
func (q *request) dumpStorePath() (func() error, error) {
	path := q.r.StorePath()
	if err := q.received(); err != nil {
		return nil, err
	}
	return func() error { return q.sendNar(path) }, nil
}

func (q *request) sendNar(path nix.StorePath) error {
	src, err := q.store.NarFromPath(q.ctx, path)
	if err != nil {
		return wire.NotValid(path, err)
	}
	if err := wire.SendNar(q.w, src); err != nil {
		return fmt.Errorf("send NAR of %s: %w", path, err)
	}
	return nil
}

// NarFromPath implements [nix.Store]. It asks for the path info first, since a
// path that is not valid would end the session. The end of the NAR is found by
// its grammar, so broken bytes end the session, as does a NAR that is longer
// than its info said. Closing the reader before io.EOF ends it too, as does the
// end of ctx.
func (c *Client) NarFromPath(ctx context.Context, path nix.StorePath) (io.ReadCloser, error) {
	info, err := c.QueryPathInfo(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("NAR of %s: %w", path, err)
	}
	k, err := c.begin(ctx, cmdDumpStorePath)
	if err != nil {
		return nil, err
	}
	if err := c.exchange(cmdDumpStorePath, func() { c.w.StorePath(path) }, nil); err != nil {
		return nil, fmt.Errorf("NAR of %s: %w", path, k.End(err))
	}
	return k.ReadNar(cmp.Or(info.NarSize, c.limits.NarSize)), nil
}
