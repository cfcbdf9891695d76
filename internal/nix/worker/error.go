package worker

import (
	"errors"
	"fmt"
	"strings"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readError reads the fields behind stderrError.
func (c *conn) readError() *nix.RemoteError {
	if c.version < sinceStructuredErrors {
		return &nix.RemoteError{Message: c.r.UserText(), Status: c.r.Uint32()}
	}
	e := &nix.RemoteError{}
	if kind := c.r.String(wire.MaxString); kind != "Error" && c.r.Err() == nil {
		c.r.Fail(fmt.Errorf("expected an error of type %q, got %q", "Error", clip(kind)))
	}
	e.Level = c.r.Uint64()
	c.r.String(wire.MaxString) // a name that nobody uses
	e.Message = c.r.UserText()
	c.r.Expect("no position", 0)
	e.Traces = wire.List(c.r, maxTraces, func() string {
		c.r.Expect("no position", 0)
		return c.r.UserText()
	})
	return e
}

// writeRemoteError writes stderrError with its fields.
func (c *conn) writeRemoteError(e *nix.RemoteError) {
	c.w.Uint64(stderrError)
	message := wire.CutText(e.Message)
	if c.version < sinceStructuredErrors {
		c.w.String(message)
		c.w.Uint64(uint64(max(e.Status, 1)))
		return
	}
	c.w.String("Error")
	c.w.Uint64(e.Level)
	c.w.String("Error")
	c.w.String(message)
	c.w.Uint64(0) // no position
	traces := e.Traces[:min(len(e.Traces), maxTraces)]
	c.w.Uint64(uint64(len(traces)))
	for _, hint := range traces {
		c.w.Uint64(0)
		c.w.String(wire.CutText(hint))
	}
}

// writeError writes an error of the store in the form for the user.
func (c *conn) writeError(err error) {
	e, _ := wire.ForUser(err)
	c.writeRemoteError(e)
}

// notFound recognises a daemon's way to say that a path is not there.
func notFound(err error) error {
	var remote *nix.RemoteError
	if errors.As(err, &remote) && strings.Contains(remote.Message, "is not valid") {
		return fmt.Errorf("%w: %w", nix.ErrNotFound, err)
	}
	return err
}

// clip cuts hostile text to a length that fits an error message.
func clip(s string) string {
	const limit = 128
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "..."
}
