package serve

import (
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readBuildResult reads how a build ended. There are no CPU times.
func (c *conn) readBuildResult() *nix.BuildResult {
	r := c.r.BuildEnd()
	if c.version >= sinceBuildTimes {
		c.r.BuildTimes(r)
	}
	if c.version >= sinceBuiltOutputs {
		r.Outputs = c.r.BuiltOutputs(c.version >= sinceOutputNames)
	}
	return r
}

func (c *conn) writeBuildResult(r *nix.BuildResult) {
	c.w.BuildEnd(r)
	if c.version >= sinceBuildTimes {
		c.w.BuildTimes(r)
	}
	if c.version >= sinceBuiltOutputs {
		c.w.BuiltOutputs(r.Outputs, c.version >= sinceOutputNames)
	}
}

// failed makes a result of the error of a store that could not try: an error
// would end the session, and the text of a result is what the user sees.
func (q *request) failed(err error) *nix.BuildResult {
	q.report(err)
	text, _ := wire.ForUser(err)
	return nix.Failure(nix.StatusMiscFailure, "%s", text.Message)
}
