package wire

import (
	"errors"
	"strings"
	"time"

	"nixbastion/internal/nix"
)

// UserText reads a text for people: of a long one the end is skipped.
func (r *Reader) UserText() string { return r.Text(KeepText, MaxText) }

// CutText keeps a text for people small enough to be written to a client that is
// still sending and reads only in between.
func CutText(s string) string {
	if len(s) <= KeepText {
		return s
	}
	return strings.ToValidUTF8(s[:KeepText], "") + "..."
}

// ForUser returns what the user may read of err, and whether there is more for
// the log in it.
func ForUser(err error) (text *nix.RemoteError, more bool) {
	var remote *nix.RemoteError
	var user *nix.UserError
	var format *FormatError
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

// NotValid gives ErrNotFound the text that clients look for.
func NotValid(path nix.StorePath, err error) error {
	if errors.Is(err, nix.ErrNotFound) {
		return nix.Refuse("path '%s' is not valid", path)
	}
	return err
}
