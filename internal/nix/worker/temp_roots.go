package worker

import (
	"context"
	"fmt"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// addTempRoot is accepted by stores that need no roots, too: nothing is lost.
func (q *request) addTempRoot() (func(), error) {
	path, err := q.onePath()
	if err != nil {
		return nil, err
	}
	if store, ok := q.store.(nix.TempRooter); ok {
		err = store.AddTempRoots(q.ctx, []nix.StorePath{path})
	}
	return q.doneIf(err)
}

// addIndirectRoot names a file on the client's machine, which means nothing here.
func (q *request) addIndirectRoot() (func(), error) {
	q.r.String(wire.MaxString)
	return q.doneIf(q.received())
}

// syncWithGC has done nothing since Nix 2.3.
func (q *request) syncWithGC() (func(), error) { return q.doneIf(q.received()) }

// AddTempRoots implements [nix.TempRooter]. The requests do not wait for each
// other's answers.
func (c *Client) AddTempRoots(ctx context.Context, paths []nix.StorePath) error {
	err := c.pipeline(ctx, opAddTempRoot, len(paths),
		func(i int) { c.w.StorePath(paths[i]) },
		func(int) { c.r.Uint64() })
	if err != nil {
		return fmt.Errorf("add temporary roots: %w", err)
	}
	return nil
}
