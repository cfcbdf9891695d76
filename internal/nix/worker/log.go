package worker

import (
	"fmt"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readLog reads the log message that kind announces.
func (c *conn) readLog(kind uint64) nix.LogMessage {
	switch kind {
	case stderrNext:
		return nix.LogMessage{Kind: nix.LogText, Text: c.r.UserText()}
	case stderrStartActivity:
		return nix.LogMessage{
			Kind: nix.LogStartActivity, ID: c.r.Uint64(), Level: c.r.Uint64(), Type: c.r.Uint64(),
			Text: c.r.UserText(), Fields: c.readFields(), Parent: c.r.Uint64(),
		}
	case stderrStopActivity:
		return nix.LogMessage{Kind: nix.LogStopActivity, ID: c.r.Uint64()}
	case stderrResult:
		return nix.LogMessage{Kind: nix.LogResult, ID: c.r.Uint64(), Type: c.r.Uint64(), Fields: c.readFields()}
	}
	c.r.Fail(fmt.Errorf("expected a log message or a reply, got %#x", kind))
	return nix.LogMessage{}
}

// writeLog writes a log message with its kind.
func (c *conn) writeLog(m nix.LogMessage) {
	switch m.Kind {
	case nix.LogText:
		c.w.Uint64(stderrNext)
		c.w.String(m.Text)
	case nix.LogStartActivity:
		c.w.Uint64(stderrStartActivity)
		c.w.Uint64(m.ID)
		c.w.Uint64(m.Level)
		c.w.Uint64(m.Type)
		c.w.String(m.Text)
		c.writeFields(m.Fields)
		c.w.Uint64(m.Parent)
	case nix.LogStopActivity:
		c.w.Uint64(stderrStopActivity)
		c.w.Uint64(m.ID)
	case nix.LogResult:
		c.w.Uint64(stderrResult)
		c.w.Uint64(m.ID)
		c.w.Uint64(m.Type)
		c.writeFields(m.Fields)
	}
}

// Tags of fields. Any other ends a client's connection.
const (
	fieldInt  = 0
	fieldText = 1
)

func (c *conn) readFields() []nix.LogField {
	return wire.List(c.r, maxFields, func() nix.LogField {
		if c.r.Optional() { // fieldText is 1
			return nix.TextField(c.r.UserText())
		}
		return nix.IntField(c.r.Uint64())
	})
}

func (c *conn) writeFields(fields []nix.LogField) {
	c.w.Uint64(uint64(len(fields)))
	for _, f := range fields {
		if f.IsText {
			c.w.Uint64(fieldText)
			c.w.String(f.Text)
		} else {
			c.w.Uint64(fieldInt)
			c.w.Uint64(f.Int)
		}
	}
}
