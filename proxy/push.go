package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

// push brings the inputs of a build to a builder, from the cache.
type push struct {
	cache  *cache.Cache
	domain string
	inputs []*nix.PathInfo
	log    nix.Logger
	// match refuses a builder that holds other bytes for an input; without it they
	// are used, and noted in differences.
	match       bool
	differences *differences
	// sending is what others send, which is waited for instead.
	sending *sending
	// feeder has what was fed ahead for the client of the build.
	feeder *feeder

	// sent is how many bytes of inputs run has sent, and took how long that took.
	sent int64
	took time.Duration
}

// errInputGone says that a builder has lost an input between two questions, as the
// garbage collector of one does that was not told in time.
var errInputGone = errors.New("an input is gone")

// inputError says that an input cannot be read in the proxy's own store. No other
// builder changes that.
type inputError struct{ err error }

func (e *inputError) Error() string { return "read inputs: " + e.err.Error() }

func (e *inputError) Unwrap() error { return e.err }

// run names all inputs as temporary roots, then asks which are there, then sends
// the others: in that order, since only what is rooted cannot be collected
// between question and build. What somebody else is sending there is asked for again
// when that has ended.
func (p *push) run(ctx context.Context, sess *upstream.Session) error {
	p.feeder.chosen(sess.Builder())
	defer p.feeder.taken()
	ask := make([]nix.StorePath, len(p.inputs))
	for i, in := range p.inputs {
		ask[i] = in.Path
	}
	if err := sess.AddTempRoots(ctx, ask); err != nil {
		return err
	}
	held := make(map[nix.StorePath]bool, len(p.inputs))
	for {
		valid, err := sess.QueryValidPaths(ctx, ask, false)
		if err != nil {
			return err
		}
		for _, path := range valid {
			held[path] = true
		}
		if err := p.compare(ctx, sess, valid); err != nil {
			return err
		}
		ask, err = p.bring(ctx, sess, held)
		if err != nil || len(ask) == 0 {
			return err
		}
	}
}

// bring sends what a builder lacks and adds it to held, but for what others are
// sending there: for that it waits, and returns it.
func (p *push) bring(ctx context.Context, sess *upstream.Session, held map[nix.StorePath]bool) (others []nix.StorePath, _ error) {
	missing := missingOf(p.inputs, held)
	mine, own, senders := p.sending.claim(sess.Builder(), missing, nil)
	if err := p.sendClaimed(ctx, sess, mine, own); err != nil {
		return nil, err
	}
	for _, in := range mine {
		held[in.Path] = true
		p.differences.note(sess.Builder(), in, nil)
	}
	if len(senders) == 0 {
		return nil, nil
	}
	var rest []*nix.PathInfo
	for _, in := range missing {
		if !held[in.Path] {
			rest = append(rest, in)
			others = append(others, in.Path)
		}
	}
	p.sayWaiting(rest, sess.Builder())
	return others, await(ctx, senders)
}

// sayWaiting tells the client of inputs that somebody else sends, as send does.
func (p *push) sayWaiting(paths []*nix.PathInfo, builder string) {
	var total uint64
	for _, in := range paths {
		total += in.NarSize
	}
	if total >= announceSize {
		nix.Line(p.log, fmt.Sprintf("waiting for %d paths (%.0f MiB) that are on their way to '%s' already", len(paths), float64(total)/(1<<20), builder))
	}
}

func (p *push) sendClaimed(ctx context.Context, sess *upstream.Session, mine []*nix.PathInfo, own *sender) error {
	defer p.sending.release(own) // after a panic too
	return p.send(ctx, sess, mine)
}

// compare looks whether what the builder holds is what we hold.
func (p *push) compare(ctx context.Context, sess *upstream.Session, held []nix.StorePath) error {
	ours := make(map[nix.StorePath]*nix.PathInfo, len(p.inputs))
	for _, in := range p.inputs {
		ours[in.Path] = in
	}
	if !p.match {
		held = p.differences.unseen(sess.Builder(), held, ours)
	}
	if len(held) == 0 {
		return nil
	}
	infos, err := sess.QueryPathInfos(ctx, held)
	if err != nil {
		return err
	}
	if p.match {
		return sameContent(held, infos, ours)
	}
	for _, theirs := range infos {
		if theirs != nil && ours[theirs.Path] != nil {
			p.differences.note(sess.Builder(), ours[theirs.Path], theirs)
		}
	}
	return nil
}

// sameContent compares what a builder says of the paths that it called valid; an
// info is nil where it then knew nothing of one.
func sameContent(held []nix.StorePath, infos []*nix.PathInfo, ours map[nix.StorePath]*nix.PathInfo) error {
	for i, theirs := range infos {
		if theirs == nil {
			return fmt.Errorf("%w: %w", errInputGone, nix.Refuse("calls %s valid and then knows nothing of it", held[i]))
		}
		if our := ours[theirs.Path]; our != nil && our.NarHash != theirs.NarHash {
			return nix.Refuse("holds %s with other content (%s, ours is %s)", theirs.Path, theirs.NarHash, our.NarHash)
		}
	}
	return nil
}

// missingOf returns the inputs that a builder lacks, references first.
func missingOf(inputs []*nix.PathInfo, held map[nix.StorePath]bool) []*nix.PathInfo {
	byPath := make(map[nix.StorePath]*nix.PathInfo, len(inputs))
	for _, in := range inputs {
		byPath[in.Path] = in
	}
	return inOrder(inputs, func(path nix.StorePath) *nix.PathInfo {
		if held[path] {
			return nil
		}
		return byPath[path]
	})
}

// inOrder sorts what lookup knows of infos so that references come first.
func inOrder(infos []*nix.PathInfo, lookup func(nix.StorePath) *nix.PathInfo) []*nix.PathInfo {
	var sorted []*nix.PathInfo
	done := make(map[nix.StorePath]bool, len(infos))
	type step struct {
		info *nix.PathInfo
		next int // reference to look at
	}
	for _, root := range infos {
		if done[root.Path] || lookup(root.Path) == nil {
			continue
		}
		done[root.Path] = true
		stack := []step{{info: root}} // not recursion: chains of references are as long as a client likes
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.next == len(top.info.References) {
				sorted = append(sorted, top.info)
				stack = stack[:len(stack)-1]
				continue
			}
			ref := top.info.References[top.next]
			top.next++
			if info := lookup(ref); info != nil && !done[ref] {
				done[ref] = true
				stack = append(stack, step{info: info})
			}
		}
	}
	return sorted
}

// announceSize is from which size on, in bytes, the client is told that its
// inputs are sent to the builder.
const announceSize = 8 << 20

func (p *push) send(ctx context.Context, sess *upstream.Session, missing []*nix.PathInfo) error {
	if len(missing) == 0 {
		return nil
	}
	var total uint64
	for _, in := range missing {
		total += in.NarSize
	}
	if total >= announceSize {
		nix.Line(p.log, fmt.Sprintf("sending %d paths (%.0f MiB) to '%s'", len(missing), float64(total)/(1<<20), sess.Builder()))
	}
	src := &cachedPaths{ctx: ctx, cache: p.cache, domain: p.domain, paths: missing}
	defer src.close()
	began := time.Now()
	err := sess.AddMultipleToStore(ctx, p.log,
		nix.PathSource{Count: uint64(len(missing)), Next: src.next},
		nix.AddOptions{DontCheckSigs: true})
	if src.err != nil && ctx.Err() == nil {
		return &inputError{src.err}
	}
	p.sent += int64(total)
	p.took += time.Since(began)
	return err
}

// cachedPaths yields paths of the cache one by one.
type cachedPaths struct {
	ctx    context.Context
	cache  *cache.Cache
	domain string
	paths  []*nix.PathInfo
	open   io.ReadCloser
	err    error // of our own store, not of the builder
}

func (c *cachedPaths) next() (*nix.PathInfo, io.Reader, error) {
	c.close()
	if len(c.paths) == 0 {
		return nil, nil, io.EOF
	}
	info := c.paths[0]
	c.paths = c.paths[1:]
	nar, err := c.cache.OpenNar(c.ctx, c.domain, info.Path)
	if err != nil {
		c.err = fmt.Errorf("read input %s: %w", info.Path, err)
		return nil, nil, c.err
	}
	c.open = nar
	return info, c, nil
}

// Read reads the NAR that is open.
func (c *cachedPaths) Read(p []byte) (int, error) {
	n, err := c.open.Read(p)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

func (c *cachedPaths) close() {
	if c.open != nil {
		c.open.Close()
		c.open = nil
	}
}
