package worker

import (
	"context"
	"errors"
	"fmt"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readDrvOutput reads the id of an output: derivation and name with the feature,
// else hash and name in one string.
func (c *conn) readDrvOutput() nix.DrvOutput {
	if c.has(FeatureRealisationPaths) {
		return nix.DrvOutput{DrvPath: c.r.StorePath(), Output: c.r.OutputName()}
	}
	text := c.r.String(wire.MaxString)
	if c.r.Err() != nil {
		return nix.DrvOutput{}
	}
	id, err := nix.ParseDrvOutput(text)
	if err != nil {
		c.r.Fail(err)
	}
	return id
}

func (c *conn) writeDrvOutput(id nix.DrvOutput) {
	if c.has(FeatureRealisationPaths) {
		c.w.StorePath(id.DrvPath)
		c.w.String(id.Output)
		return
	}
	c.w.String(id.String())
}

// readRealisation reads what RegisterDrvOutput carries.
func (c *conn) readRealisation() nix.Realisation {
	switch {
	case c.has(FeatureRealisationPaths):
		return nix.Realisation{ID: c.readDrvOutput(), OutPath: c.r.StorePath(), Sigs: c.r.RealisationSigs()}
	case c.version >= sinceRealisationJSON:
		return *c.r.RealisationJSON()
	default:
		return nix.Realisation{ID: c.readDrvOutput(), OutPath: c.readBasePath()}
	}
}

func (c *conn) writeRealisation(r nix.Realisation) {
	switch {
	case c.has(FeatureRealisationPaths):
		c.writeDrvOutput(r.ID)
		c.w.StorePath(r.OutPath)
		c.w.StringSet(r.Sigs)
	case c.version >= sinceRealisationJSON:
		c.w.RealisationJSON(&r)
	default:
		c.writeDrvOutput(r.ID)
		c.w.String(r.OutPath.Base())
	}
}

func (c *conn) readBasePath() nix.StorePath {
	base := c.r.String(wire.MaxString)
	if c.r.Err() != nil {
		return nix.StorePath{}
	}
	path, err := nix.ParseStorePathBase(base)
	if err != nil {
		c.r.Fail(err)
	}
	return path
}

// readFound reads the answer to QueryRealisation; nil if there is none.
func (c *conn) readFound(id nix.DrvOutput) *nix.Realisation {
	switch {
	case c.has(FeatureRealisationPaths):
		if !c.r.Optional() {
			return nil
		}
		return &nix.Realisation{ID: id, OutPath: c.r.StorePath(), Sigs: c.r.RealisationSigs()}
	case c.version >= sinceRealisationJSON:
		return last(wire.List(c.r, 1, c.r.RealisationJSON))
	default:
		return last(wire.List(c.r, 1, func() *nix.Realisation {
			return &nix.Realisation{ID: id, OutPath: c.r.StorePath()}
		}))
	}
}

func last(list []*nix.Realisation) *nix.Realisation {
	if len(list) == 0 {
		return nil
	}
	return list[len(list)-1]
}

func (c *conn) writeFound(r *nix.Realisation) {
	c.w.Bool(r != nil) // a tag, or the count of a collection: the same number
	switch {
	case r == nil:
	case c.has(FeatureRealisationPaths):
		c.w.StorePath(r.OutPath)
		c.w.StringSet(r.Sigs)
	case c.version >= sinceRealisationJSON:
		c.w.RealisationJSON(r)
	default:
		c.w.StorePath(r.OutPath)
	}
}

func (q *request) registerDrvOutput() (func(), error) {
	r := q.readRealisation()
	if err := q.received(); err != nil {
		return nil, err
	}
	store, ok := q.store.(nix.RealisationStore)
	if !ok {
		return nil, q.unsupported()
	}
	return nil, store.RegisterDrvOutput(q.ctx, r)
}

// queryRealisation answers with none where the store keeps none, which is always
// a legal answer.
func (q *request) queryRealisation() (func(), error) {
	id := q.readDrvOutput()
	if err := q.received(); err != nil {
		return nil, err
	}
	store, ok := q.store.(nix.RealisationStore)
	if !ok {
		return func() { q.writeFound(nil) }, nil
	}
	r, err := store.QueryRealisation(q.ctx, id)
	if errors.Is(err, nix.ErrNotFound) {
		r, err = nil, nil
	}
	return func() { q.writeFound(r) }, err
}

// RegisterDrvOutput implements [nix.RealisationStore].
func (c *Client) RegisterDrvOutput(ctx context.Context, r nix.Realisation) error {
	if err := c.canRealise(opRegisterDrvOutput, r.ID); err != nil {
		return err
	}
	return c.do(ctx, opRegisterDrvOutput, c.log, func() { c.writeRealisation(r) }, nil)
}

// QueryRealisation implements [nix.RealisationStore].
func (c *Client) QueryRealisation(ctx context.Context, id nix.DrvOutput) (*nix.Realisation, error) {
	if err := c.canRealise(opQueryRealisation, id); err != nil {
		return nil, err
	}
	var r *nix.Realisation
	err := c.do(ctx, opQueryRealisation, c.log,
		func() { c.writeDrvOutput(id) },
		func() { r = c.readFound(id) })
	if err == nil && r == nil {
		err = fmt.Errorf("query realisation of %s: %w", id, nix.ErrNotFound)
	}
	return r, err
}

// canRealise refuses what would break the session: a daemon of 2.35 or newer
// that is asked about realisations without the feature leaves the request unread.
func (c *Client) canRealise(op Op, id nix.DrvOutput) error {
	byPath := c.has(FeatureRealisationPaths)
	switch {
	case c.version < sinceRealisations:
		return c.needs(op, sinceRealisations)
	case c.namesByPath && !byPath:
		return fmt.Errorf("%s: daemon needs the feature %s, which was not offered to it", op, FeatureRealisationPaths)
	case byPath && id.DrvPath.IsZero(), !byPath && id.DrvHash == "":
		return fmt.Errorf("%s: output %s is not named in the way of this daemon", op, id)
	}
	return nil
}
