package worker

import (
	"context"

	"nixbastion/internal/nix"
)

// readMissing reads what realising targets takes.
func (c *conn) readMissing() *nix.Missing {
	return &nix.Missing{
		WillBuild:      c.r.StorePaths(c.limits.Paths),
		WillSubstitute: c.r.StorePaths(c.limits.Paths),
		Unknown:        c.r.StorePaths(c.limits.Paths),
		DownloadSize:   c.r.Uint64(),
		NarSize:        c.r.Uint64(),
	}
}

func (c *conn) writeMissing(m *nix.Missing) {
	c.w.StorePaths(m.WillBuild)
	c.w.StorePaths(m.WillSubstitute)
	c.w.StorePaths(m.Unknown)
	c.w.Uint64(m.DownloadSize)
	c.w.Uint64(m.NarSize)
}

func (q *request) queryMissing() (func(), error) {
	targets := q.readDerivedPaths()
	if err := q.received(); err != nil {
		return nil, err
	}
	store, ok := q.store.(nix.MissingQuerier)
	if !ok {
		missing, err := q.unknown(targets)
		return func() { q.writeMissing(missing) }, err
	}
	missing, err := store.QueryMissing(q.ctx, targets)
	return func() { q.writeMissing(missing) }, err
}

// unknown calls everything unknown that is not valid as it is: the client then
// brings it.
func (q *request) unknown(targets []nix.DerivedPath) (*nix.Missing, error) {
	asked := make([]nix.StorePath, len(targets))
	for i, t := range targets {
		asked[i] = t.Path
	}
	valid, err := q.store.QueryValidPaths(q.ctx, nix.SortPaths(asked), false)
	if err != nil {
		return nil, err
	}
	found := make(map[nix.StorePath]bool, len(valid))
	for _, p := range valid {
		found[p] = true
	}
	missing := &nix.Missing{}
	for _, t := range targets {
		if t.Built || !found[t.Path] {
			missing.Unknown = append(missing.Unknown, t.Path)
		}
	}
	return missing, nil
}

// QueryMissing implements [nix.MissingQuerier].
func (c *Client) QueryMissing(ctx context.Context, targets []nix.DerivedPath) (*nix.Missing, error) {
	if err := c.canName(targets); err != nil {
		return nil, err
	}
	var missing *nix.Missing
	err := c.do(ctx, opQueryMissing, c.log,
		func() { c.writeDerivedPaths(targets) },
		func() { missing = c.readMissing() })
	if err != nil {
		return nil, err
	}
	return missing, nil
}
