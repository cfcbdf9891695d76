package worker

import (
	"context"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readOptions reads twelve integers and a map: some have meant nothing for years.
func (c *conn) readOptions() nix.ClientOptions {
	o := nix.ClientOptions{KeepFailed: c.r.Bool(), KeepGoing: c.r.Bool(), TryFallback: c.r.Bool()}
	o.Verbosity = c.r.Uint32()
	o.MaxBuildJobs = c.r.Uint32()
	o.MaxSilentTime = c.r.Uint32()
	c.r.Uint64() // whether to use the build hook
	c.r.Uint64() // whether build logs go to the terminal
	c.r.Uint64() // log type
	c.r.Uint64() // whether to print the build trace
	o.BuildCores = c.r.Uint32()
	o.UseSubstitutes = c.r.Bool()
	o.Overrides = c.r.StringMap(maxOverrides, wire.MaxString)
	return o
}

// notVerboseBuild (the level of vomit) makes the daemon send log lines of builds
// as results of their activity instead of text.
const notVerboseBuild = nix.LevelVomit

func (c *conn) writeOptions(o nix.ClientOptions) {
	c.w.Bool(o.KeepFailed)
	c.w.Bool(o.KeepGoing)
	c.w.Bool(o.TryFallback)
	c.w.Uint64(uint64(o.Verbosity))
	c.w.Uint64(uint64(o.MaxBuildJobs))
	c.w.Uint64(uint64(o.MaxSilentTime))
	c.w.Uint64(1)
	c.w.Uint64(notVerboseBuild)
	c.w.Uint64(0)
	c.w.Uint64(0)
	c.w.Uint64(uint64(o.BuildCores))
	c.w.Bool(o.UseSubstitutes)
	c.w.StringMap(o.Overrides)
}

// setOptions drops the options where the store takes none. Refusing them would
// end old clients' sessions.
func (q *request) setOptions() (func(), error) {
	opts := q.readOptions()
	if err := q.received(); err != nil {
		return nil, err
	}
	if store, ok := q.store.(nix.OptionSetter); ok {
		return nil, store.SetOptions(q.ctx, opts)
	}
	return nil, nil
}

// SetOptions implements [nix.OptionSetter]. Everything but the overrides is
// replaced by the next call; overrides cannot be taken back and hold as long as
// the session.
func (c *Client) SetOptions(ctx context.Context, opts nix.ClientOptions) error {
	return c.do(ctx, opSetOptions, c.log, func() { c.writeOptions(opts) }, nil)
}
