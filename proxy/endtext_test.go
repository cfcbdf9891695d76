package proxy

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against a session's last words that tell a client where things lie on
// the proxy's disk, and against last words that tell it nothing.
func TestLastWordsOfASessionAreForTheClient(t *testing.T) {
	onDisk := &os.PathError{Op: "read", Path: "/var/lib/nixbastion/cache/nar/x", Err: syscall.EIO}
	for want, err := range map[string]error{
		errInternal.Error():              fmt.Errorf("NarFromPath: %w", onDisk),
		"the disk is full":               fmt.Errorf("NarFromPath: %w", &nix.UserError{Message: "the disk is full", Err: onDisk}),
		"read handshake: unexpected EOF": fmt.Errorf("read handshake: %w", io.ErrUnexpectedEOF),
		"two":                            errors.New("two"),
	} {
		if got := endText(err); got != want {
			t.Errorf("of %v the client reads %q, want %q", err, got, want)
		}
	}
}
