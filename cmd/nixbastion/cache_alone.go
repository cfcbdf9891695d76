package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy"
)

// alone carries a request out on the store of a proxy that does not run.
func (q *cacheRequest) alone(ctx context.Context, socket string, pol *policy.Policy, d *desk) (err error) {
	if pol == nil {
		return fmt.Errorf("no proxy answers on %s\nhint: for another socket, or the store of a proxy that does not run, say --config FILE", socket)
	}
	dir := filepath.Join(pol.StateDir, "cache")
	if err := mayOpen(dir); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c, err := cache.Open(ctx, cache.Options{
		Dir: dir, Size: pol.Cache.Size, Reserve: pol.Cache.SpoolReserve,
		Sign: func(v cache.Verified) []nix.Signature { return proxy.SignPath(pol, v) },
		Log:  log,
	})
	if err != nil {
		return fmt.Errorf("%w\nhint: if a proxy runs, it answers on admin.socket of its policy, and nobody answers on %s", err, socket)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	err = q.run(ctx, c, pol, d)
	if cacheWork[q.Do].changes {
		err = errors.Join(err, q.recordAlone(pol.Audit, err, log))
	}
	return err
}

// mayOpen refuses to make a store, and files in it that its proxy could not read.
func mayOpen(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no store in %s; the proxy makes it at its first start", dir)
	}
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && int(st.Uid) != os.Geteuid() {
		name := strconv.Itoa(int(st.Uid))
		if account, err := user.LookupId(name); err == nil {
			name = account.Username
		}
		return fmt.Errorf("the store in %s belongs to account %s, whose proxy could not read what another account writes there\nhint: runuser -u %s -- nixbastion cache COMMAND", dir, name, name)
	}
	return nil
}
