package upstream

import (
	"bytes"
	"context"
	"fmt"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/serve"
)

// serveClient is a client of the serve protocol. The log of a build is what the
// program prints on its standard error meanwhile.
type serveClient struct {
	*serve.Client
	process  process
	activity uint64 // the last one's id
}

// BuildDerivation implements [nix.Store]. The log comes as an activity of the
// build with its lines, as the worker protocol has it: that is what clients keep
// for `nix log`. All of it was handed on when the call returns.
func (c *serveClient) BuildDerivation(ctx context.Context, log nix.Logger, drvPath nix.StorePath, drv *nix.BasicDerivation, mode nix.BuildMode) (_ *nix.BuildResult, err error) {
	c.activity++
	lines := startBuildLines(log, c.activity, drvPath)
	c.process.tap(lines)
	defer func() {
		c.process.untap(ctx)
		lines.stop()
		if err == nil {
			c.process.forget() // a log explains no failure of what comes next
		}
	}()
	return c.Client.BuildDerivation(ctx, nix.Discard, drvPath, drv, mode)
}

// maxLogLine is where a line of a log is cut in two, in bytes.
const maxLogLine = 64 << 10

// buildLines makes the log of a build from text.
type buildLines struct {
	log  nix.Logger
	id   uint64
	line []byte // the beginning of one, shorter than maxLogLine
}

func startBuildLines(log nix.Logger, id uint64, drvPath nix.StorePath) *buildLines {
	log.Log(nix.LogMessage{
		Kind: nix.LogStartActivity, ID: id, Level: nix.LevelInfo, Type: nix.ActivityBuild,
		Text: fmt.Sprintf("building '%s'", drvPath),
		// The derivation, the machine, and which round of how many.
		Fields: []nix.LogField{nix.TextField(drvPath.String()), nix.TextField(""), nix.IntField(1), nix.IntField(1)},
	})
	return &buildLines{log: log, id: id}
}

// Write hands on the lines that are complete.
func (l *buildLines) Write(text []byte) (int, error) {
	size := len(text)
	for len(text) > 0 {
		room := maxLogLine - len(l.line)
		end := bytes.IndexByte(text[:min(room, len(text))], '\n')
		switch {
		case end >= 0:
			l.emit(text[:end])
			text = text[end+1:]
		case len(text) >= room:
			l.emit(text[:room])
			text = text[room:]
		default:
			l.line = append(l.line, text...)
			text = nil
		}
	}
	return size, nil
}

// emit hands on the line that ends with rest.
func (l *buildLines) emit(rest []byte) {
	l.log.Log(nix.LogMessage{
		Kind: nix.LogResult, ID: l.id, Type: nix.ResultBuildLogLine,
		Fields: []nix.LogField{nix.TextField(string(l.line) + string(rest))},
	})
	l.line = l.line[:0]
}

// stop ends the log; what is left without an end is a line, too.
func (l *buildLines) stop() {
	if len(l.line) > 0 {
		l.emit(nil)
	}
	l.log.Log(nix.LogMessage{Kind: nix.LogStopActivity, ID: l.id})
}
