package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"nixbastion/internal/nix"
)

// maxReferences bounds the references of a path.
const maxReferences = 10_000

// Receive takes the upload of a path: it waits for space, streams the NAR to
// disk, verifies it and lets it be valid in the domain. It reads exactly the NAR,
// at most info.NarSize bytes, and nothing at all of what it refuses beforehand.
// References must be valid in the domain. Signatures are kept as they are given:
// the caller leaves out what it does not trust. What is wrong with the bytes
// is a nix.UserError in Nix's own words.
func (c *Cache) Receive(ctx context.Context, info *nix.PathInfo, nar io.Reader, g Grant) (Outcome, error) {
	return c.ReceiveShown(ctx, info, nar, g, nil)
}

// ReceiveShown is Receive for an upload that somebody may want to read while it
// grows: show is called before the first byte is read, unless the path is valid in
// the domain already. The client waits for show to return. Nil shows it to nobody.
func (c *Cache) ReceiveShown(ctx context.Context, info *nix.PathInfo, nar io.Reader, g Grant, show func(*Growing)) (Outcome, error) {
	rec, err := c.admit(info, g)
	if err != nil {
		return 0, err
	}
	s, err := c.newSpool(forUpload, rec.info.References) // before they are looked up: so none is lost between
	if err != nil {
		return 0, err
	}
	if err := c.checkReferences(g.Domain, rec.info); err != nil {
		s.discard(err)
		return 0, err
	}
	if show == nil || c.find(g.Domain, []nix.StorePath{info.Path})[0] != nil {
		return c.receive(ctx, rec, s, nar, g)
	}
	growing := &Growing{info: rec.info, spool: s, settled: make(chan struct{})}
	show(growing)
	outcome, err := c.receive(ctx, rec, s, nar, g)
	growing.settle(outcome, err)
	return outcome, err
}

// ReceiveFound takes a path that was found where it can be had again, on a builder.
// It does not use the space that is reserved for uploads, and what it refers to
// need not be valid here: that the rest of its closure can be had in the same way
// is for the caller to know. All else is as in Receive.
func (c *Cache) ReceiveFound(ctx context.Context, info *nix.PathInfo, nar io.Reader, g Grant) (Outcome, error) {
	rec, err := c.admit(info, g)
	if err != nil {
		return 0, err
	}
	s, err := c.newSpool(forOutput, rec.info.References)
	if err != nil {
		return 0, err
	}
	return c.receive(ctx, rec, s, nar, g)
}

func (c *Cache) receive(ctx context.Context, rec *record, s *spool, nar io.Reader, g Grant) (Outcome, error) {
	if err := s.take(ctx, rec.info, nar); err != nil {
		s.discard(err)
		return 0, err
	}
	return c.commit(ctx, arrived(rec), s, g, nil)
}

// admit checks what can be checked before the content and makes a record that
// is our own.
func (c *Cache) admit(info *nix.PathInfo, g Grant) (*record, error) {
	if err := checkDomain(g.Domain); err != nil {
		return nil, err
	}
	switch {
	case info.Path.IsZero():
		return nil, nix.Refuse("path info without a path")
	case info.NarHash.Algo() != nix.SHA256:
		return nil, nix.Refuse("path '%s' has no SHA-256 NAR hash", info.Path)
	case info.NarSize == 0:
		return nil, nix.Refuse("path '%s' has a NAR of 0 bytes", info.Path)
	case info.NarSize > uint64(c.room.size):
		return nil, nix.Refuse("path '%s' of %d bytes does not fit into the proxy's store, which may hold %d", info.Path, info.NarSize, c.room.size)
	case len(info.References) > maxReferences:
		return nil, nix.Refuse("path '%s' has %d references, more than %d", info.Path, len(info.References), maxReferences)
	case len(info.Sigs) > maxSigs:
		return nil, nix.Refuse("path '%s' has %d signatures, more than %d", info.Path, len(info.Sigs), maxSigs)
	}
	if err := checkAddress(info); err != nil {
		return nil, err
	}
	own := info.Clone()
	own.References = nix.SortPaths(own.References)
	own.Ultimate = false
	own.RegistrationTime = c.now().Unix()
	return &record{info: own, provenance: g.Provenance}, nil
}

// checkAddress refuses a path that does not follow from its content address,
// before anybody waits for the content.
func checkAddress(info *nix.PathInfo) error {
	if info.CA.IsZero() {
		return nil
	}
	err := info.CheckContentAddress()
	if _, told := errors.AsType[*nix.UserError](err); err != nil && !told {
		err = nix.Refuse("path '%s': %v", info.Path, err)
	}
	return err
}

// arrived is the record of a path whose content was verified: a content address
// that held proves it.
func arrived(rec *record) *record {
	if rec.info.CA.IsZero() {
		return rec
	}
	return &record{info: rec.info, provenance: ContentAddressed}
}

// checkReferences refuses a path that refers to what the domain does not have.
func (c *Cache) checkReferences(domain string, info *nix.PathInfo) error {
	refs := slices.DeleteFunc(slices.Clone(info.References), func(r nix.StorePath) bool { return r == info.Path })
	for i, rec := range c.find(domain, refs) {
		if rec == nil {
			return nix.Refuse("path '%s' refers to '%s' which is not valid", info.Path, refs[i])
		}
	}
	return nil
}

// ReceiveUnnamed takes a NAR whose path follows from its content. When all was
// read, name makes the path info from its hash and size; NarHash and NarSize are
// set by the cache. The content address that the info carries is believed: the
// caller has just made it from these bytes. It returns the info of what is valid
// now, which has other bytes than those read if the path was there already.
func (c *Cache) ReceiveUnnamed(ctx context.Context, nar io.Reader, g Grant, name func(narHash nix.Hash, narSize uint64) (*nix.PathInfo, error)) (*nix.PathInfo, Outcome, error) {
	s, err := c.newSpool(forUpload, nil)
	if err != nil {
		return nil, 0, err
	}
	info, err := s.takeUnnamed(ctx, nar, name)
	if err != nil {
		s.discard(err)
		return nil, 0, err
	}
	rec, err := c.admit(info, g)
	if err == nil {
		s.refer(rec.info.References)
		err = c.checkReferences(g.Domain, rec.info)
	}
	if err != nil {
		s.discard(err)
		return nil, 0, err
	}
	outcome, err := c.commit(ctx, arrived(rec), s, g, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("add %s: %w", info.Path, err)
	}
	info, err = c.QueryPathInfo(g.Domain, info.Path)
	return info, outcome, err
}
