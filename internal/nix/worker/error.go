package worker

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readError reads the fields behind stderrError.
func (c *conn) readError() *nix.RemoteError {
	if c.version < sinceStructuredErrors {
		return &nix.RemoteError{Message: c.readText(), Status: c.r.Uint32()}
	}
	e := &nix.RemoteError{}
	if kind := c.r.String(maxString); kind != "Error" && c.r.Err() == nil {
		c.r.Fail(fmt.Errorf("expected an error of type %q, got %q", "Error", clip(kind)))
	}
	e.Level = c.r.Uint64()
	c.r.String(maxString) // a name that nobody uses
	e.Message = c.readText()
	c.r.Expect("no position", 0)
	e.Traces = wire.List(c.r, maxTraces, func() string {
		c.r.Expect("no position", 0)
		return c.readText()
	})
	return e
}

// readText reads a text for people.
func (c *conn) readText() string { return c.r.Text(keepText, maxText) }

// writeRemoteError writes stderrError with its fields.
func (c *conn) writeRemoteError(e *nix.RemoteError) {
	c.w.Uint64(stderrError)
	message := cutText(e.Message)
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
		c.w.String(cutText(hint))
	}
}

// cutText keeps an error small enough to be written to a client that is still
// sending and reads only in between.
func cutText(s string) string {
	if len(s) <= keepText {
		return s
	}
	return strings.ToValidUTF8(s[:keepText], "") + "..."
}

// writeError writes an error of the store in the form for the user.
func (c *conn) writeError(err error) {
	e, _ := forUser(err)
	c.writeRemoteError(e)
}

// forUser returns what the user may read of err, and whether there is more for
// the log in it.
func forUser(err error) (text *nix.RemoteError, more bool) {
	var remote *nix.RemoteError
	var user *nix.UserError
	var format *wire.FormatError
	switch {
	case errors.As(err, &user):
		return &nix.RemoteError{Message: user.Message}, user.Err != nil
	case errors.As(err, &remote):
		return remote, false
	case errors.As(err, &format):
		return &nix.RemoteError{Message: format.Error()}, false
	case errors.Is(err, nix.ErrNotFound):
		return &nix.RemoteError{Message: nix.ErrNotFound.Error()}, false
	}
	now := time.Now().UTC().Format(time.RFC3339)
	return &nix.RemoteError{Message: "internal error; the proxy's log has more, at " + now}, true
}

// notValid gives ErrNotFound the text that clients look for.
func notValid(path nix.StorePath, err error) error {
	if errors.Is(err, nix.ErrNotFound) {
		return nix.Refuse("path '%s' is not valid", path)
	}
	return err
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
