package worker

import (
	"context"
	"errors"
	"fmt"
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// addToStoreNar: a path info, two flags and the NAR, in frames or, at the
// versions 1.21 and 1.22, sent piece by piece when asked for.
func (q *request) addToStoreNar() (func(), error) {
	info := q.readValidPathInfo()
	opts := nix.AddOptions{Repair: q.r.Bool(), DontCheckSigs: q.r.Bool()}
	if q.r.Err() != nil {
		return nil, q.r.Err()
	}
	add := func(payload io.Reader) error {
		return q.store.AddMultipleToStore(q.ctx, q.log, wire.OnePath(info, payload), opts)
	}
	if q.version < sinceFramedNar {
		return nil, q.pulled(info, add)
	}
	return nil, q.framed(add)
}

// addEach uploads paths one by one.
func (c *Client) addEach(ctx context.Context, log nix.Logger, src nix.PathSource, opts nix.AddOptions) error {
	for range src.Count {
		info, nar, err := src.Next()
		if err != nil {
			return fmt.Errorf("read upload: %w", err)
		}
		if err := c.addNar(ctx, log, info, nar, opts); err != nil {
			return fmt.Errorf("add %s: %w", info.Path, err)
		}
	}
	return nil
}

func (c *Client) addNar(ctx context.Context, log nix.Logger, info *nix.PathInfo, nar io.Reader, opts nix.AddOptions) error {
	request := func() {
		c.w.ValidPathInfo(info)
		c.w.Bool(opts.Repair)
		c.w.Bool(opts.DontCheckSigs)
	}
	if c.version < sinceFramedNar {
		return c.addPulled(ctx, log, request, nar)
	}
	return c.feed(ctx, opAddToStoreNar, log, request,
		func(up *feeder) error { return up.copyNar(info, nar) }, nil)
}

// addPulled hands out the NAR as the daemon asks for it.
func (c *Client) addPulled(ctx context.Context, log nix.Logger, request func(), nar io.Reader) error {
	k, err := c.begin(ctx, opAddToStoreNar)
	if err != nil {
		return err
	}
	var srcErr error
	buf := make([]byte, pullSize)
	pull := func(limit uint64) error {
		n, err := io.ReadAtLeast(nar, buf[:min(limit, pullSize)], 1)
		if err != nil {
			srcErr = fmt.Errorf("read NAR that the daemon asks for: %w", err)
			return srcErr
		}
		c.w.String(string(buf[:n]))
		return c.w.Flush()
	}
	err = c.exchange(opAddToStoreNar, reply{log: log, pull: pull}, request, nil)
	if srcErr != nil && errors.Is(err, srcErr) {
		return k.Abandon(srcErr)
	}
	return k.End(err)
}
