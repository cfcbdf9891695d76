package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
	"nixbastion/internal/nix/wire"
)

// importPaths: an export stream. It is how clients upload to servers before 2.5,
// and Hydra's to any.
func (q *request) importPaths() (func() error, error) {
	if q.opts.SpoolDir == "" {
		return nil, nix.Refuse("%s is not supported through this proxy", q.cmd)
	}
	for q.r.Optional() {
		if err := q.importPath(); err != nil {
			return nil, err
		}
		q.readMessage()
	}
	return q.done, q.received()
}

// importPath takes one path into the store. The NAR comes before its name, and
// nothing says its size or hash.
func (q *request) importPath() error {
	file, err := spoolFile(q.opts.SpoolDir)
	if err != nil {
		return err
	}
	defer file.Close()
	size, hash, err := q.spool(file)
	if err != nil {
		return err
	}
	info := q.readExported()
	if q.r.Err() != nil {
		return q.r.Err()
	}
	info.NarSize, info.NarHash = size, hash
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return q.store.AddMultipleToStore(q.ctx, q.log, wire.OnePath(info, file), nix.AddOptions{DontCheckSigs: true})
}

// spoolFile makes a file that nobody else sees and that vanishes with its
// descriptor.
func spoolFile(dir string) (*os.File, error) {
	file, err := os.CreateTemp(dir, "import-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// spool copies the NAR that comes next. One that is broken or too large fails the
// reader.
func (q *request) spool(file io.Writer) (size uint64, hash nix.Hash, err error) {
	limit := min(q.limits.NarSize, maxImport)
	hasher := nix.SHA256.New()
	src := nar.NewReader(q.r)
	n, err := io.Copy(io.MultiWriter(file, hasher), io.LimitReader(src, int64(limit)))
	var syntax *nar.SyntaxError
	switch {
	case errors.As(err, &syntax):
		q.r.Fail(err)
	case err == nil && !src.Done():
		q.r.Fail(fmt.Errorf("expected a NAR of at most %d bytes, got a larger one", limit))
	}
	return uint64(n), nix.SumHash(nix.SHA256, hasher), errors.Join(err, q.r.Err())
}

// importPaths uploads in a way that servers of every version know. What the
// infos say of hashes, signatures and content addresses is lost.
func (c *Client) importPaths(ctx context.Context, src nix.PathSource) error {
	return c.send(ctx, cmdImportPaths, 1, func(up *uploader) error {
		c.w.Uint64(uint64(cmdImportPaths))
		err := up.each(src, func(info *nix.PathInfo, nar io.Reader) error {
			c.w.Uint64(1)
			if err := up.copyNar(info, nar); err != nil {
				return err
			}
			c.writeExported(info)
			return c.w.Err()
		})
		c.w.Uint64(0)
		return err
	})
}
