package proxy

import (
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/tracefile"
)

// historyLimit bounds the file of finished builds, and the one before it, in bytes.
const historyLimit = 256 << 20

// record appends what a client had built to the history, for nixbastion simulate. A
// history that cannot be written costs no build.
func (b *builds) record(o *order, asked time.Time, running *build, result *nix.BuildResult) {
	if b.history == nil || !result.Status.Success() || running.seconds == 0 || o.mode != nix.BuildNormal {
		return
	}
	wish := tracefile.Build{
		Asked: asked, Ended: time.Now(), Principal: o.principal.Name, Domain: o.principal.Domain,
		Drv: o.drvPath.String(), Name: o.drvPath.DrvName(), System: o.system, Features: o.features, Seconds: running.seconds,
	}
	for _, in := range o.inputs {
		wish.Inputs = append(wish.Inputs, tracefile.Input{Path: in.Path.String(), Size: int64(in.NarSize)})
	}
	for _, out := range result.Outputs {
		wish.Outputs = append(wish.Outputs, tracefile.Path{Path: out.Path.String(), Size: b.sizeOf(o, out.Path)})
	}
	if err := b.history.Record(wish); err != nil {
		o.log.Warn("build is missing in the history", "drv", o.drvPath.String(), "error", err)
	}
}

func (b *builds) sizeOf(o *order, path nix.StorePath) int64 {
	info, err := b.cache.QueryPathInfo(o.principal.Domain, path)
	if err != nil {
		return 0
	}
	return int64(info.NarSize)
}
