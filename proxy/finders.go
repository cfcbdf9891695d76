package proxy

import (
	"context"
	"errors"

	"nixbastion/internal/nix"
)

// QueryReferrers answers from the cache.
func (s *session) QueryReferrers(ctx context.Context, path nix.StorePath) ([]nix.StorePath, error) {
	if err := s.sentAway(); err != nil {
		return nil, err
	}
	return s.cache.QueryReferrers(ctx, s.domain(), path)
}

// QueryValidDerivers knows the derivation that a path's info names, if that is
// valid too. Others that would make the same path are not looked for.
func (s *session) QueryValidDerivers(ctx context.Context, path nix.StorePath) ([]nix.StorePath, error) {
	info, err := s.QueryPathInfo(ctx, path)
	if err != nil || info.Deriver.IsZero() {
		return nil, err
	}
	return s.pins.Pin(s.domain(), []nix.StorePath{info.Deriver}), nil
}

// QueryPathFromHashPart answers from the cache and pins the path. One that only a
// builder holds is brought first.
func (s *session) QueryPathFromHashPart(ctx context.Context, hashPart string) (nix.StorePath, error) {
	if err := s.sentAway(); err != nil {
		return nix.StorePath{}, err
	}
	path, err := s.cache.QueryPathFromHashPart(s.domain(), hashPart)
	if err == nil {
		s.pinned(path)
		return path, nil
	}
	if errors.Is(err, nix.ErrNotFound) {
		if path, ok := s.found.bringNamed(ctx, s.principal, hashPart); ok && s.pinned(path) {
			return path, nil
		}
	}
	return nix.StorePath{}, err
}

// QueryAllValidPaths lists the domain. Who may only read has to know what to ask
// for: names tell what others work on.
func (s *session) QueryAllValidPaths(ctx context.Context) ([]nix.StorePath, error) {
	if err := s.mayWrite("list all paths"); err != nil {
		return nil, err
	}
	return s.cache.QueryAllValidPaths(ctx, s.domain())
}
