package worker

import (
	"context"
	"fmt"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

func (q *request) addSignatures() (func(), error) {
	path := q.r.StorePath()
	sigs := q.r.StringSet(wire.MaxSigs, wire.MaxString)
	if err := q.received(); err != nil {
		return nil, err
	}
	store, ok := q.store.(nix.SignatureAdder)
	if !ok {
		return nil, q.unsupported()
	}
	return q.doneIf(wire.NotValid(path, store.AddSignatures(q.ctx, path, sigs)))
}

// AddSignatures implements [nix.SignatureAdder].
func (c *Client) AddSignatures(ctx context.Context, path nix.StorePath, sigs []string) error {
	err := c.do(ctx, opAddSignatures, c.log,
		func() {
			c.w.StorePath(path)
			c.w.StringSet(sigs)
		},
		func() { c.r.Uint64() })
	if err != nil {
		return fmt.Errorf("add signatures of %s: %w", path, notFound(err))
	}
	return nil
}
