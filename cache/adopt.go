package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"syscall"
	"time"

	"nixbastion/internal/nix"
)

// adoptOffers takes over what predecessors offer, and reports whether anything was.
func (c *Cache) adoptOffers() bool {
	if !c.predecessors.some.Load() || c.retired.Load() != nil {
		return false
	}
	c.predecessors.adopting.Lock()
	defer c.predecessors.adopting.Unlock()
	if c.isClosed() {
		return false
	}
	adopted := false
	for _, p := range c.predecessors.list() {
		names, err := p.offers()
		if err != nil {
			c.complain(p, "cannot read what a process offers", "err", err)
		}
		for _, name := range names {
			took, err := c.adoptOffer(p, name)
			if err != nil {
				c.complain(p, "cannot adopt a path", "offer", name, "err", err)
			}
			adopted = adopted || took
		}
	}
	return adopted
}

// complain is for what is tried again soon and may fail again.
func (c *Cache) complain(p *predecessor, what string, about ...any) {
	if time.Since(p.complained) >= complainEvery {
		p.complained = time.Now()
		c.log.Error(what, append(about, "dir", p.dir)...)
	}
}

// offers names what a predecessor offers, in its order.
func (p *predecessor) offers() ([]string, error) {
	var names []string
	err := eachName(p.root, outDir, func(some []string) error {
		names = append(names, some...)
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	slices.Sort(names)
	return names, err
}

// adoptOffer makes a verified path of an offer, on its way to the disk as others
// are. What is being decided about just now, or cannot be read now, is left for the next
// time.
func (c *Cache) adoptOffer(p *predecessor, name string) (took bool, err error) {
	records, err := p.readOffer(path.Join(outDir, name))
	if _, system := errors.AsType[syscall.Errno](err); system {
		return false, err
	}
	if err != nil {
		c.log.Error("dropped what a process offers, as it is no path", "dir", p.dir, "offer", name, "err", err)
		return false, p.root.RemoveAll(path.Join(outDir, name))
	}
	var rec *record
	for _, rec = range records {
		break
	}
	release := c.tryClaim(rec.info.Path)
	if release == nil {
		return false, nil
	}
	defer release()
	keys := make([]key, 0, len(records))
	for k := range records {
		if c.rival(rec, k.domain, nil) != nil {
			return false, nil
		}
		keys = append(keys, k)
	}
	vouches := vouching(keys)
	records = c.news(c.holdersNow(nil, false, keys...), records)
	s, err := c.takeOffer(p, path.Join(outDir, name), rec)
	if err != nil {
		return false, err
	}
	if len(records) == 0 {
		s.discard(nil)
		return true, nil
	}
	c.counters.added.Add(1)
	defer c.signing.enter()()
	for k, r := range records { // who took it in may have had other keys
		records[k] = c.sign(k, vouches, r)
	}
	return true, c.install(records, s, nil)
}

// vouching is the domain that vouches for an offer, for all domains too. What is offered
// for those alone has its signatures.
func vouching(keys []key) string {
	for _, k := range keys {
		if k.domain != publicDomain {
			return k.domain
		}
	}
	return publicDomain
}

func (c *Cache) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// readOffer reads the narinfos of an offer, which are all of one path and one NAR.
func (p *predecessor) readOffer(dir string) (map[key]*record, error) {
	records := map[key]*record{}
	err := eachName(p.root, dir, func(names []string) error {
		for _, name := range names {
			if name == offeredNAR {
				continue
			}
			k, err := parseFlatName(name)
			if err != nil {
				return err
			}
			text, err := readText(p.root, path.Join(dir, name))
			if err != nil {
				return err
			}
			if records[k], err = parseNarinfo(k.hashPart, text); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	archive, err := p.root.Lstat(path.Join(dir, offeredNAR))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("offer without a NAR")
	case err != nil:
		return nil, err
	}
	var first *record
	for _, rec := range records {
		if first == nil {
			first = rec
		}
		if !rec.sameBytes(first) || uint64(archive.Size()) != rec.info.NarSize {
			return nil, fmt.Errorf("offer of %s is not whole", rec.info.Path)
		}
	}
	if first == nil {
		return nil, errors.New("offer without a narinfo")
	}
	return records, nil
}

// takeOffer makes a spool of an offered NAR, as if it had just been verified here.
func (c *Cache) takeOffer(p *predecessor, dir string, rec *record) (*spool, error) {
	name := strconv.FormatUint(c.scratch.next.Add(1), 10)
	if err := c.root.Rename(path.Join(p.dir, dir, offeredNAR), path.Join(c.scratch.dir, name)); err != nil {
		return nil, err
	}
	if err := p.root.RemoveAll(dir); err != nil {
		return nil, err
	}
	s := &spool{c: c, name: name, share: share{r: c.room, use: forUpload}, release: c.hold(rec.info.References),
		narHash: rec.info.NarHash, written: int64(rec.info.NarSize), done: true}
	s.share.force(cost(rec.info.NarSize))
	return s, nil
}

// tryClaim is claimPath for one who does not wait: nil if somebody has the claim.
func (c *Cache) tryClaim(p nix.StorePath) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.claims[p.HashPart()] != nil {
		return nil
	}
	mine := &claim{done: make(chan struct{})}
	c.claims[p.HashPart()] = mine
	return func() { c.releaseClaim(p.HashPart(), mine) }
}
