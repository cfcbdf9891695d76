package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"nixbastion/internal/nix"
)

// DefaultSize is what a cache may hold if nobody said otherwise, in bytes.
const DefaultSize = 50 << 30

// DefaultHotRecords is how many records are kept decoded in memory if nobody
// said otherwise. One takes about 1 KiB.
const DefaultHotRecords = 100_000

// Options say how a cache is set up.
type Options struct {
	// Dir is the directory of the cache, made if it is missing.
	Dir string
	// Size is how many bytes the NARs may take, counted in blocks of 4 KiB;
	// zero means [DefaultSize].
	Size int64
	// Reserve is the part of Size that only uploads may use, so that builds go
	// on when the store is full of outputs. Zero means none.
	Reserve int64
	// HotRecords bounds the records and negative answers kept in memory; zero
	// means [DefaultHotRecords].
	HotRecords int
	// PinnedPaths and PinnedBytes bound what one owner of [Pins] may hold, in
	// paths and in bytes of their NARs; zero means [DefaultPinnedPaths] and half
	// of Size.
	PinnedPaths int
	PinnedBytes int64
	// Sign returns the signatures that a path is to have, one per key and the same
	// each time; nil means that nobody signs. It is called before a path becomes
	// valid and by [Cache.Resign], from any goroutine, and must not wait.
	Sign func(Verified) []nix.Signature
	// ScrubRate is how many bytes a second of what is on disk are read again in the
	// background, to find what rotted there. Zero means none.
	ScrubRate int64
	// Log gets what an admin should know; nil means slog.Default.
	Log *slog.Logger
	// Now is the clock of registration and recency; nil means time.Now.
	Now func() time.Time
}

// Cache is a store of paths on disk. Its methods may be called from any
// goroutine. Close it.
type Cache struct {
	root    *os.Root
	scratch *scratch
	index   *index
	room    *room
	log     *slog.Logger
	now     func() time.Time

	signer  func(Verified) []nix.Signature // nil: nobody signs
	signing turnstile

	// pinnedPaths and pinnedBytes bound each owner of pins.
	pinnedPaths int
	pinnedBytes int64

	keeper   *keeper
	counters counters
	// checked has the NARs that were read and found right; reading counts those
	// that are being read.
	checked *checkedNARs
	reading atomic.Int64
	// scanning says that published paths may be missing in the index.
	scanning atomic.Bool
	// lost says that they will be missing until the next start.
	lost atomic.Bool
	// retired is set while another process has the index.
	retired      atomic.Pointer[retirement]
	predecessors predecessors

	stop context.CancelFunc // ends the goroutines of wg
	wg   sync.WaitGroup
	// scrubRate is that of the options.
	scrubRate int64
	// background reads and scans while we have the index.
	background     sync.WaitGroup
	stopBackground context.CancelFunc

	// mu guards the fields below. It comes before the locks of spools and of
	// the room, and nothing is read or written on disk under it.
	mu quickMutex
	// scanEnded is closed when the background scan of Open or Reclaim has ended.
	scanEnded chan struct{}
	// closed refuses what would publish.
	closed bool
	// pending has what arrives or is verified and is not durable yet.
	pending map[key]*publication
	// hot has decoded records of the index, nil for a path that is not there.
	hot *simplelru.LRU[key, *record]
	// changes counts what happened to the index: an answer read before a
	// change must not enter hot after it.
	changes uint64
	pins    map[string]int       // holders by hash part, in all domains
	owners  map[string]*pinOwner // of pins, by name
	// kept has what the admin has pinned, by domain. Each is counted in pins too.
	kept   map[string]map[nix.StorePath]struct{}
	claims map[string]*claim // by hash part
	// touched has the paths used since recency was last written.
	touched map[key]int64
}

// Open opens the cache in a directory and answers at once: what a crash left
// outside the index is looked for in the background. It fails if another process
// has the cache open, unless that has retired. The context bounds nothing but the opening.
func Open(ctx context.Context, o Options) (*Cache, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	c, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("open cache %s: %w", o.Dir, err)
	}
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	c.wg.Go(func() { c.keeper.run(alive) })
	c.beginBackground(ctx, c.index.incomplete)
	return c, nil
}

// beginBackground begins what goes on besides while this process has the index.
func (c *Cache) beginBackground(ctx context.Context, incomplete bool) {
	ctx, c.stopBackground = context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	c.mu.Lock()
	c.scanEnded = ended
	c.mu.Unlock()
	c.scanning.Store(incomplete)
	if incomplete {
		c.background.Go(func() {
			defer close(ended)
			c.rebuild(ctx)
		})
	} else {
		close(ended)
	}
	if c.predecessors.some.Load() {
		c.background.Go(func() { c.followPredecessors(ctx) })
	}
	if c.scrubRate > 0 {
		c.background.Go(func() { newScrubber(c, c.scrubRate).run(ctx) })
	}
}

func (c *Cache) endBackground() {
	c.stopBackground()
	c.background.Wait()
}

func (c *Cache) scanEnd() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.scanEnded
}

func (o Options) withDefaults() (Options, error) {
	o.Size = orDefault(o.Size, DefaultSize)
	o.HotRecords = orDefault(o.HotRecords, DefaultHotRecords)
	o.PinnedPaths = orDefault(o.PinnedPaths, DefaultPinnedPaths)
	o.PinnedBytes = orDefault(o.PinnedBytes, o.Size/2)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	switch {
	case o.Dir == "":
		return o, errors.New("no directory")
	case o.Size < 0 || o.HotRecords < 0 || o.PinnedPaths < 0 || o.PinnedBytes < 0 || o.ScrubRate < 0:
		return o, errors.New("a negative bound")
	case o.Reserve < 0 || o.Reserve >= o.Size:
		return o, fmt.Errorf("a reserve of %d bytes in a size of %d", o.Reserve, o.Size)
	}
	return o, nil
}

func open(o Options) (*Cache, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(o.Dir)
	if err != nil {
		return nil, err
	}
	c, err := openIn(root, o)
	if err != nil {
		root.Close()
		return nil, err
	}
	return c, nil
}

func openIn(root *os.Root, o Options) (*Cache, error) {
	if err := makeLayout(root); err != nil {
		return nil, err
	}
	x, err := openIndex(root, o.Log) // first: it is what keeps a second process out
	if err != nil {
		return nil, err
	}
	c, err := newCache(root, x, o)
	if err != nil {
		return nil, errors.Join(err, x.close(false))
	}
	return c, nil
}

func newCache(root *os.Root, x *index, o Options) (*Cache, error) {
	bytes, paths, err := x.totals()
	if err != nil {
		return nil, err
	}
	hot, err := simplelru.NewLRU[key, *record](o.HotRecords, nil)
	if err != nil {
		return nil, err
	}
	scratch, err := openScratch(root)
	if err != nil {
		return nil, err
	}
	c := &Cache{
		root: root, index: x, scratch: scratch, hot: hot, log: o.Log, now: o.Now, signer: o.Sign,
		pinnedPaths: o.PinnedPaths, pinnedBytes: o.PinnedBytes, scrubRate: o.ScrubRate,
		pending: map[key]*publication{}, pins: map[string]int{}, owners: map[string]*pinOwner{},
		claims: map[string]*claim{}, touched: map[key]int64{}, checked: newCheckedNARs(o.Now),
		kept: map[string]map[nix.StorePath]struct{}{},
	}
	c.counters.paths.Store(paths)
	c.keeper = newKeeper(c)
	c.room = newRoom(o.Size, o.Reserve, bytes, c.keeper.evictSoon)
	c.predecessors.all = scratch.before
	c.predecessors.some.Store(len(scratch.before) > 0)
	if err := c.loadPins(); err != nil {
		return nil, errors.Join(err, scratch.close(root))
	}
	return c, nil
}

func orDefault[T int | int64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// ErrClosed says that the cache was closed.
var ErrClosed = errors.New("the store is closed")

// whyNot is why the keeper does not do something.
func (c *Cache) whyNot() error {
	if c.retired.Load() != nil {
		return nix.Refuse("the proxy was upgraded and ends this session soon; connect again")
	}
	return ErrClosed
}

// Close makes durable what is verified, ends the background work and gives the
// directory free. Callers end their sessions first: what is still arriving is
// dropped.
func (c *Cache) Close() error {
	if !c.beginClose() {
		return nil
	}
	c.abandonArrivals()
	flushErr := c.flush(nil)
	c.endBackground()
	c.stop()
	c.wg.Wait()
	c.predecessors.closeAll()
	if r := c.retired.Load(); r != nil {
		r.promises.close()
		return errors.Join(flushErr, c.scratch.leave(), c.root.Close())
	}
	return errors.Join(flushErr, c.scratch.close(c.root), c.index.close(flushErr == nil && c.complete()), c.root.Close())
}

// beginClose lets nothing become valid any more, and reports false if that was done
// before. What is adopted is before it, or left to the next process.
func (c *Cache) beginClose() bool {
	c.predecessors.adopting.Lock()
	defer c.predecessors.adopting.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	already := c.closed
	c.closed = true
	return !already
}

// abandonArrivals fails those who follow what will not come to its end.
func (c *Cache) abandonArrivals() {
	for _, p := range c.pendingWhere(func(p *publication) bool { return p.arriving }) {
		p.spool.finish(ErrClosed)
	}
}

// Flush returns when all that is verified now is durable.
func (c *Cache) Flush(ctx context.Context) error { return c.flush(ctx.Done()) }

func (c *Cache) flush(done <-chan struct{}) error {
	var err error
	for _, p := range c.pendingWhere(func(p *publication) bool { return !p.arriving }) {
		c.keeper.hurry()
		select {
		case <-p.published:
			err = errors.Join(err, p.publishErr)
		case <-done:
			return context.Canceled
		}
	}
	return err
}

func (c *Cache) pendingWhere(match func(*publication) bool) []*publication {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*publication
	for _, p := range c.pending {
		if match(p) {
			list = append(list, p)
		}
	}
	return list
}
