package serve

import (
	"math"
	"time"

	"nixbastion/internal/nix"
)

// BuildOptions are what a client asks of one build. How many of them are sent
// depends on the version; those that are not are zero. The zero value asks for
// nothing.
type BuildOptions struct {
	// MaxSilentTime and BuildTimeout are in seconds, MaxLogSize in bytes; 0 for
	// none.
	MaxSilentTime, BuildTimeout uint32
	MaxLogSize                  uint64
	// Repeats asks to build so many times more. Servers since 2.13 refuse it.
	Repeats uint32
	// EnforceDeterminism and KeepFailed mean nothing to a proxy.
	EnforceDeterminism, KeepFailed bool
}

func (c *conn) readBuildOptions() BuildOptions {
	o := BuildOptions{MaxSilentTime: c.r.Uint32(), BuildTimeout: c.r.Uint32()}
	if c.version >= sinceLogLimit {
		o.MaxLogSize = c.r.Uint64()
	}
	if c.version >= sinceRepeats {
		o.Repeats = c.r.Uint32()
		o.EnforceDeterminism = c.r.Bool()
	}
	if c.version >= sinceKeepFailed {
		o.KeepFailed = c.r.Bool()
	}
	return o
}

func (c *conn) writeBuildOptions(o BuildOptions) {
	c.w.Uint64(uint64(o.MaxSilentTime))
	c.w.Uint64(uint64(o.BuildTimeout))
	if c.version >= sinceLogLimit {
		c.w.Uint64(o.MaxLogSize)
	}
	if c.version >= sinceRepeats {
		c.w.Uint64(uint64(o.Repeats))
		c.w.Bool(o.EnforceDeterminism)
	}
	if c.version >= sinceKeepFailed {
		c.w.Bool(o.KeepFailed)
	}
}

// limits never overflow: 32 bits of seconds are 136 years, and 292 would fit.
func (o BuildOptions) limits() nix.BuildLimits {
	return nix.BuildLimits{
		MaxSilent:  time.Duration(o.MaxSilentTime) * time.Second,
		Timeout:    time.Duration(o.BuildTimeout) * time.Second,
		MaxLogSize: o.MaxLogSize,
	}
}

// optionsOf asks for limits, whose times are rounded up to seconds.
func optionsOf(limits nix.BuildLimits) BuildOptions {
	return BuildOptions{MaxSilentTime: seconds(limits.MaxSilent), BuildTimeout: seconds(limits.Timeout), MaxLogSize: limits.MaxLogSize}
}

func seconds(d time.Duration) uint32 {
	return uint32(min((max(d, 0)+time.Second-1)/time.Second, math.MaxUint32))
}

// prepare tells the store of the options, or says why there is no build with
// them.
func (q *request) prepare(o BuildOptions) *nix.BuildResult {
	if o.Repeats != 0 {
		return nix.Failure(nix.StatusMiscFailure,
			"client requested %d repeating builds, which are not supported; set 'repeat = 0' in its nix.conf", o.Repeats)
	}
	if store, ok := q.store.(nix.BuildLimiter); ok {
		store.SetBuildLimits(o.limits())
	}
	return nil
}
