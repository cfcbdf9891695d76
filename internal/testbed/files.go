package testbed

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
)

// WriteFile makes or replaces a file on the host, with its folders. It belongs
// to root and everybody may read it.
func (h *Host) WriteFile(ctx context.Context, path string, text []byte) error {
	return h.writeFrom(ctx, path, bytes.NewReader(text), "root", 0o644)
}

// CopyFile brings a file of the machine to the host, with the same mode.
// HostSpec.Binds does so without copying.
func (h *Host) CopyFile(ctx context.Context, outer, path string) error {
	f, err := os.Open(outer)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return h.writeFrom(ctx, path, f, "root", info.Mode().Perm())
}

func (h *Host) writeFrom(ctx context.Context, path string, text io.Reader, owner string, mode os.FileMode) error {
	// A folder that is there keeps its owner.
	script := `set -e; dir=${1%/*}; test -d "$dir" || { mkdir -p "$dir"; chown "$2" "$dir"; }
		umask 077; cat > "$1"; chmod "$3" "$1"; chown "$2" "$1"`
	cmd := h.Command(ctx, "sh", "-c", script, "write", path, owner, fmt.Sprintf("%o", mode))
	cmd.Stdin = text
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("write %s on %s: %w: %s", path, h.spec.Name, err, out)
	}
	return nil
}

// ReadFile returns a file of the host.
func (h *Host) ReadFile(ctx context.Context, path string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := h.Command(ctx, "cat", "--", path)
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("read %s on %s: %w: %s", path, h.spec.Name, err, stderr.Bytes())
	}
	return text, nil
}

// PlaceKey puts a private key into an account's home and returns its file.
func (h *Host) PlaceKey(ctx context.Context, accountName string, key Key) (string, error) {
	a, err := lookupAccount(accountName)
	if err != nil {
		return "", err
	}
	file := key.fileOf(a)
	return file, h.writeFrom(ctx, file, bytes.NewReader(key.PrivatePEM), a.name, 0o600)
}

// Authorize replaces the keys that open an account of the host; none closes it
// for new connections.
func (h *Host) Authorize(ctx context.Context, accountName string, keys ...Key) error {
	a, err := lookupAccount(accountName)
	if err != nil {
		return err
	}
	return h.WriteFile(ctx, authorizedKeys(a), []byte(authorizedText(keys)))
}

// AuthorizeMore lets keys in besides those that open the account already.
func (h *Host) AuthorizeMore(ctx context.Context, accountName string, keys ...Key) error {
	a, err := lookupAccount(accountName)
	if err != nil {
		return err
	}
	cmd := h.Command(ctx, "sh", "-c", `mkdir -p "${1%/*}"; cat >> "$1"`, "authorize", authorizedKeys(a))
	cmd.Stdin = strings.NewReader(authorizedText(keys))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("authorize keys for %s on %s: %w: %s", accountName, h.spec.Name, err, out)
	}
	return nil
}
