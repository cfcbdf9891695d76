package cache

import (
	"context"
	"fmt"
	"slices"
	"time"

	"nixbastion/internal/nix"
)

// Questions by something else than the path are answered from the index and
// from what is on its way there. They mark nothing as used: who lists a store has
// no use for all of it.

const (
	// maxFound is how many paths one question may find. They take about 50 MiB.
	maxFound = 500_000
	// findStep is how many rows are looked at in one transaction, so that none
	// keeps the index from reusing its pages for long.
	findStep = 1024
	// scanWait is how long a question waits for the scan that follows a crash.
	scanWait = 10 * time.Second
)

// QueryReferrers returns the paths that are valid in the domain and refer to p,
// itself if it does too. Other than in Nix a path that is not valid may have some:
// see "whole" in the package's words.
func (c *Cache) QueryReferrers(ctx context.Context, domain string, p nix.StorePath) ([]nix.StorePath, error) {
	f := &finding{c: c, domain: domain, match: func(info *nix.PathInfo) bool {
		return slices.Contains(info.References, p)
	}}
	behind := func(last key) ([]key, error) { return c.index.referrersBehind(p.HashPart(), last, findStep) }
	if err := f.run(ctx, behind); err != nil {
		return nil, fmt.Errorf("find what refers to %s: %w", p, err)
	}
	if rec := c.peek(domain, []nix.StorePath{p})[0].rec; rec != nil && rec.info.HasSelfReference() {
		f.found = append(f.found, p) // the index leaves these out
	}
	return nix.SortPaths(f.found), nil
}

// QueryAllValidPaths returns all paths that are valid in the domain.
func (c *Cache) QueryAllValidPaths(ctx context.Context, domain string) ([]nix.StorePath, error) {
	f := &finding{c: c, domain: domain, match: func(*nix.PathInfo) bool { return true }}
	for _, d := range []string{domain, publicDomain} {
		behind := func(last key) ([]key, error) { return c.index.domainBehind(d, last, findStep) }
		if err := f.run(ctx, behind); err != nil {
			return nil, fmt.Errorf("list all paths: %w", err)
		}
	}
	return nix.SortPaths(f.found), nil
}

// QueryPathFromHashPart returns the path that is valid in the domain and begins
// with these 32 characters, or nix.ErrNotFound.
func (c *Cache) QueryPathFromHashPart(domain, hashPart string) (nix.StorePath, error) {
	if isHashPart(hashPart) {
		for _, d := range []string{domain, publicDomain} {
			rec := c.holders(nil, true, key{d, hashPart})[key{d, hashPart}]
			if rec != nil && c.peek(domain, []nix.StorePath{rec.info.Path})[0].rec != nil {
				return rec.info.Path, nil
			}
		}
	}
	return nix.StorePath{}, fmt.Errorf("hash part %q: %w", hashPart, nix.ErrNotFound)
}

// isHashPart refuses what a client made up, as file names are made of it.
func isHashPart(s string) bool {
	_, err := nix.ParseStorePathBase(s + "-x")
	return err == nil && len(s) == hashPartLen
}

// finding collects what a domain sees of the paths that match.
type finding struct {
	c      *Cache
	domain string
	match  func(*nix.PathInfo) bool
	found  []nix.StorePath // perhaps twice
	// pending is what was on its way into the index when the search began: it
	// holds in place of rows of the same key.
	pending map[key]*record
}

// run looks at the keys that behind yields step by step, from the one behind last
// on.
func (f *finding) run(ctx context.Context, behind func(last key) ([]key, error)) error {
	if err := f.c.awaitScan(ctx); err != nil {
		return err
	}
	f.c.adoptOffers()
	f.pending = f.c.pendingIn(f.domain) // first: what leaves it meanwhile is in the index
	for k, rec := range f.pending {
		if err := f.take(k, rec); err != nil {
			return err
		}
	}
	var last key
	for ctx.Err() == nil {
		keys, err := behind(last)
		if err != nil || len(keys) == 0 {
			return err
		}
		last = keys[len(keys)-1]
		if err := f.takeRows(keys); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

func (f *finding) takeRows(keys []key) error {
	keys = slices.DeleteFunc(keys, func(k key) bool {
		return k.domain != f.domain && k.domain != publicDomain || f.pending[k] != nil
	})
	recs, err := f.c.index.find(keys)
	if err != nil {
		return err
	}
	for i, rec := range recs {
		if rec == nil {
			continue // evicted meanwhile
		}
		if err := f.take(keys[i], rec); err != nil {
			return err
		}
	}
	return nil
}

func (f *finding) take(k key, rec *record) error {
	switch {
	case !f.match(rec.info) || !f.c.sees(f.domain, k, rec):
		return nil
	case len(f.found) == maxFound:
		return nix.Refuse("more than %d paths were found; the proxy does not list so many", maxFound)
	}
	f.found = append(f.found, rec.info.Path)
	return nil
}

// sees reports whether a record is the one that a domain is answered with: its
// own goes before the public one.
func (c *Cache) sees(domain string, k key, rec *record) bool {
	c.mu.Lock()
	leaving := c.leaving(domain, rec.info.Path)
	c.mu.Unlock()
	if leaving || k.domain == domain {
		return !leaving
	}
	mine := keyOf(domain, rec.info.Path)
	own := c.holders(nil, true, mine)[mine]
	return own == nil || own.info.Path != rec.info.Path
}

// pendingIn returns the records on their way to the index that a domain may see.
func (c *Cache) pendingIn(domain string) map[key]*record {
	c.mu.Lock()
	defer c.mu.Unlock()
	records := map[key]*record{}
	for k, p := range c.pending {
		if k.domain == domain || k.domain == publicDomain {
			records[k] = p.records[k]
		}
	}
	return records
}

// awaitScan waits until all that is published is in the index.
func (c *Cache) awaitScan(ctx context.Context) error {
	if c.retired.Load() != nil {
		return nix.Refuse("the proxy was upgraded and ends this session soon; connect again")
	}
	timer := time.NewTimer(scanWait)
	defer timer.Stop()
	select {
	case <-c.scanEnd():
	case <-timer.C:
		return nix.Refuse("the proxy still reads its store after a crash; ask again in some minutes")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !c.complete() {
		return nix.Refuse("the proxy's index is incomplete since its disk failed; its admin has to restart it")
	}
	return nil
}
