package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"nixbastion/internal/nix"
)

// Sink takes the files of a binary cache.
type Sink interface {
	// Put takes one file of that many bytes. If content fails, nothing of the file
	// may be left under its name.
	Put(name string, size int64, content io.Reader) error
}

// Source yields the paths of a binary cache, what is referred to first.
type Source interface {
	// Next returns a path and its NAR, which is read before the next call, or
	// io.EOF.
	Next() (*nix.NarInfo, io.Reader, error)
}

// Refusal is a path that was left out, and why.
type Refusal struct {
	Path   string
	Reason string
}

// maxRefusals bounds the reasons that are kept.
const maxRefusals = 1000

// Exported is how far Export is.
type Exported struct {
	Paths, Bytes int64
	Of           int64 // paths that were asked for; their closure may have more
	Refused      []Refusal
}

// Export writes paths that are valid in the domain with all that they refer to,
// or with none all of the domain, as a binary cache that Nix reads. Each NAR is
// hashed on the way. A path comes after what it refers to, and its narinfo after
// its NAR, so that what is there is whole whenever it ends.
func (c *Cache) Export(ctx context.Context, domain string, paths []nix.StorePath, to Sink, tell func(Exported)) (Exported, error) {
	x := &export{c: c, ctx: ctx, domain: domain, to: to, tell: tell, state: map[nix.StorePath]exportState{}}
	if err := c.settled(ctx); err != nil {
		return x.sum, err
	}
	if len(paths) == 0 {
		var err error
		if paths, err = c.QueryAllValidPaths(ctx, domain); err != nil {
			return x.sum, err
		}
	}
	x.sum.Of = int64(len(paths))
	if err := to.Put(cacheInfoName, int64(len(cacheInfoText)), strings.NewReader(cacheInfoText)); err != nil {
		return x.sum, err
	}
	for _, p := range paths {
		if err := x.closure(p); err != nil {
			return x.sum, err
		}
	}
	return x.sum, context.Cause(ctx)
}

type export struct {
	c      *Cache
	ctx    context.Context // of the call of Export
	domain string
	to     Sink
	tell   func(Exported)
	sum    Exported
	state  map[nix.StorePath]exportState
}

// exportState is how far a path is.
type exportState uint8

const (
	unseen exportState = iota
	entered
	written
	leftOut
)

// closure writes a path after what it refers to.
func (x *export) closure(root nix.StorePath) error {
	stack := []nix.StorePath{root}
	for len(stack) > 0 && x.ctx.Err() == nil {
		p := stack[len(stack)-1]
		if x.state[p] == written || x.state[p] == leftOut {
			stack = stack[:len(stack)-1]
			continue
		}
		found := x.c.peek(x.domain, []nix.StorePath{p})[0]
		if found.rec == nil {
			x.refuse(p, "it is not there")
			stack = stack[:len(stack)-1]
			continue
		}
		if x.state[p] == unseen {
			x.state[p] = entered
			before := len(stack)
			for _, ref := range found.rec.referred() {
				if x.state[ref] == unseen {
					stack = append(stack, ref)
				}
			}
			if len(stack) > before {
				continue
			}
		}
		stack = stack[:len(stack)-1]
		if err := x.one(p, found.rec); err != nil {
			return err
		}
	}
	return context.Cause(x.ctx)
}

func (x *export) refuse(p nix.StorePath, reason string) {
	x.state[p] = leftOut
	x.sum.Refused = refused(x.sum.Refused, p.String(), reason)
}

func refused(list []Refusal, p, reason string) []Refusal {
	if len(list) < maxRefusals {
		list = append(list, Refusal{p, reason})
	}
	return list
}

// one writes a path, unless something that it refers to was left out.
func (x *export) one(p nix.StorePath, rec *record) error {
	lacks := slices.IndexFunc(rec.referred(), func(ref nix.StorePath) bool { return x.state[ref] != written })
	if lacks >= 0 {
		x.refuse(p, fmt.Sprintf("it refers to '%s', which was left out", rec.referred()[lacks]))
		return nil
	}
	nar, err := x.c.openWhole(rec, true)
	if err != nil {
		x.refuse(p, "its NAR is not there")
		return nil
	}
	defer nar.Close()
	err = x.to.Put(narName(rec.info.NarHash), int64(rec.info.NarSize), nar)
	if user, ok := errors.AsType[*nix.UserError](err); ok {
		x.refuse(p, user.Message)
		return nil
	}
	if err != nil {
		return err
	}
	text := (&nix.NarInfo{
		PathInfo: *rec.info, URL: narName(rec.info.NarHash), Compression: "none",
		FileHash: rec.info.NarHash, FileSize: rec.info.NarSize,
	}).String()
	if err := x.to.Put(p.HashPart()+narinfoSuffix, int64(len(text)), strings.NewReader(text)); err != nil {
		return err
	}
	x.state[p] = written
	x.sum.Paths++
	x.sum.Bytes += int64(rec.info.NarSize)
	x.tell(x.sum)
	return nil
}

// Imported is how far Import is.
type Imported struct {
	Added, Already, Differing, Bytes int64
	// Left counts what was refused. Refused has the reasons, of the first ones.
	Left    int64
	Refused []Refusal
}

// Import takes the paths of a binary cache, each verified as an upload is. judge
// says what of a path's claims is proven, and for whom it is taken, or refuses it.
// What is refused is left out and reported; a full store ends the import.
func (c *Cache) Import(ctx context.Context, from Source, judge func(*nix.PathInfo) (*nix.PathInfo, Grant, error), tell func(Imported)) (Imported, error) {
	var sum Imported
	for ctx.Err() == nil {
		info, nar, err := from.Next()
		if err == io.EOF {
			return sum, c.Flush(ctx)
		}
		if err != nil {
			return sum, err
		}
		outcome, err := c.importOne(ctx, info, nar, judge)
		if user, ok := errors.AsType[*nix.UserError](err); ok && !IsFull(err) {
			sum.Left++
			sum.Refused = refused(sum.Refused, info.Path.String(), user.Message)
			continue
		}
		if err != nil {
			return sum, fmt.Errorf("import %s: %w", info.Path, err)
		}
		sum.count(outcome)
		sum.Bytes += int64(info.NarSize)
		tell(sum)
	}
	return sum, context.Cause(ctx)
}

func (s *Imported) count(o Outcome) {
	switch o {
	case Added:
		s.Added++
	case AlreadyValid:
		s.Already++
	case Differs:
		s.Differing++
	}
}

// IsFull reports whether a path was not stored since there is no room for it.
func IsFull(err error) bool {
	return errors.Is(err, errNoRoom) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func (c *Cache) importOne(ctx context.Context, info *nix.NarInfo, nar io.Reader, judge func(*nix.PathInfo) (*nix.PathInfo, Grant, error)) (Outcome, error) {
	proven, grant, err := judge(&info.PathInfo)
	if err != nil {
		return 0, err
	}
	return c.Receive(ctx, proven, nar, grant)
}
