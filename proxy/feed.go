package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy/upstream"
	"nixbastion/route"
)

// A large upload is fed ahead: while it still comes, it is sent on to the builder
// that will run the client's build for all that is known, so that the build need not
// wait for it a second time. It is a guess, and nothing depends on it: the upload
// never waits for a feed, a feed holds no slot, it ends when its client leaves or
// another builder is chosen, and the build asks the builder itself what is there. The
// builder gets the last bytes only once the upload was verified.

const (
	// feedFrom is from which size on, in bytes, an upload is fed ahead: smaller ones
	// are sent in less time than it takes to ask for them.
	feedFrom = 4 << 20
	// maxFeedLines is how many clients feed one builder at the same time, each on a
	// session that the builder has to spare.
	maxFeedLines = 2
	// maxFeedClosure bounds what a path that is fed refers to, in paths.
	maxFeedClosure = 10_000
	// maxFeedClients is of how many clients the last builder is remembered.
	maxFeedClients = 10_000
	// feedMajor and feedMinor are the oldest release of Nix that is fed. Before it a
	// daemon could hang, with its locks, when an upload broke off.
	feedMajor, feedMinor = 2, 34
)

var (
	errFeedEnds  = errors.New("the client has left")
	errFeedWrong = errors.New("another builder was chosen")
	errFeedLate  = errors.New("somebody else has the whole path already")
)

// feeds has what all clients feed ahead.
type feeds struct {
	pool   *upstream.Pool
	router *route.Router
	cache  *cache.Cache
	policy *policy.Live

	sending     *sending
	misses      *misses
	differences *differences
	// ctx ends with the proxy, which then waits for running.
	ctx     context.Context
	running *sync.WaitGroup

	mu      sync.Mutex // guards what follows
	loads   map[string]feedLoad
	clients *simplelru.LRU[feedClient, feedGuess]
}

// feedLoad is what is under way to a builder.
type feedLoad struct {
	lines int
	bytes int64
}

// feedClient is a client as far as its next build is guessed from its last one.
type feedClient struct {
	principal string
	remote    netip.Addr
}

// feedGuess is the builder of a client's last build. After a wrong guess none is
// made until two builds in a row ran on one builder, and after uploads without a
// build none until there is one again.
type feedGuess struct {
	builder string
	wary    bool
	copies  bool
}

func newFeeds(f *feeds) *feeds {
	clients, err := simplelru.NewLRU[feedClient, feedGuess](maxFeedClients, nil)
	if err != nil {
		panic(fmt.Sprintf("size of clients remembered: %v", err)) // it is a constant
	}
	f.loads, f.clients = map[string]feedLoad{}, clients
	return f
}

// reserve takes a place for bytes more to a builder, and for a line more.
func (f *feeds) reserve(builder string, lines int, bytes int64) bool {
	limit := f.policy.Current().Scheduling.FeedAheadLimit
	f.mu.Lock()
	defer f.mu.Unlock()
	load := f.loads[builder]
	if bytes > limit-load.bytes || load.lines+lines > maxFeedLines {
		return false
	}
	f.loads[builder] = feedLoad{load.lines + lines, load.bytes + bytes}
	return true
}

func (f *feeds) giveBack(builder string, lines int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	load := f.loads[builder]
	load.lines -= lines
	load.bytes -= bytes
	if load == (feedLoad{}) {
		delete(f.loads, builder)
		return
	}
	f.loads[builder] = load
}

// ran remembers where a build of a client runs, and whether it was guessed wrongly.
func (f *feeds) ran(client feedClient, builder string, wrong bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, _ := f.clients.Get(client)
	f.clients.Add(client, feedGuess{builder: builder, wary: wrong || last.wary && last.builder != builder})
}

// copied remembers that a client uploaded something and asked for no build.
func (f *feeds) copied(client feedClient) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, _ := f.clients.Get(client)
	last.copies = true
	f.clients.Add(client, last)
}

// guess returns the builder that will run the next build of a client: the only one
// of its domain that takes builds, or that of its last build.
func (f *feeds) guess(domain string, client feedClient) (policy.Builder, bool) {
	f.mu.Lock()
	last, _ := f.clients.Get(client)
	f.mu.Unlock()
	if last.copies {
		return policy.Builder{}, false
	}
	names := f.router.Takes(domain)
	if len(names) != 1 {
		names = slices.DeleteFunc(names, func(name string) bool { return name != last.builder || last.wary })
	}
	builders := f.policy.Current().Builders
	at := slices.IndexFunc(builders, func(b policy.Builder) bool { return slices.Contains(names, b.Name) })
	if at < 0 {
		return policy.Builder{}, false
	}
	return builders[at], true
}

// feedable reports whether a builder may be given what is not yet wanted there. One
// that several domains share would hold it before any of them may want other bytes.
func feedable(b *policy.Builder) bool {
	return len(b.Domains) == 1 && b.Protocol != policy.ProtocolServe
}

// safe reports whether a builder may be sent bytes ahead. Where they must match ours
// later, only those that nobody can bring otherwise.
func safe(b *policy.Builder, info *nix.PathInfo) bool {
	return b.Content == policy.ContentAccept || !info.CA.IsZero()
}

// wanted reports whether a builder is to be sent a path, for all that is known here.
func (f *feeds) wanted(b *policy.Builder, domain string, info *nix.PathInfo) bool {
	return safe(b, info) && !f.pool.Lists(b.Name, info.Path) &&
		!f.misses.has(foundKey{domain, info.Path}, b.Name) && !f.sending.has(b.Name, info.Path)
}

// feeder feeds ahead what one session of a client uploads. A nil feeder has fed
// nothing: it may be told of builds.
type feeder struct {
	*feeds
	domain string
	client feedClient
	log    *slog.Logger
	ctx    context.Context // of what the session feeds
	cancel context.CancelCauseFunc

	mu   sync.Mutex // guards what follows
	line *feedLine  // nil: none that takes more
	// unused is the last upload that was fed and followed by no build so far.
	unused *cache.Growing
}

func (f *feeds) newFeeder(p *policy.Principal, log *slog.Logger) *feeder {
	ctx, cancel := context.WithCancelCause(f.ctx)
	return &feeder{feeds: f, domain: p.Domain, client: feedClient{principal: p.Name}, log: log, ctx: ctx, cancel: cancel}
}

// close ends what is under way, and lets go of what the builder has.
func (f *feeder) close() {
	f.mu.Lock()
	unused := f.unused
	f.mu.Unlock()
	if unused != nil && unused.Valid() {
		f.copied(f.client)
	}
	f.cancel(errFeedEnds)
}

// offer feeds an upload ahead, if that may be of use. It does not wait for anything.
func (f *feeder) offer(growing *cache.Growing) {
	info := growing.Info()
	if !f.policy.Current().Scheduling.FeedAhead || info.NarSize < feedFrom {
		return
	}
	line := f.lineFor(info)
	if line == nil || !f.reserve(line.builder.Name, 0, int64(info.NarSize)) {
		return
	}
	nar, err := growing.Open(line.ctx)
	if err != nil {
		f.giveBack(line.builder.Name, 0, int64(info.NarSize))
		f.log.Warn("upload cannot be fed ahead", "path", info.Path.String(), "error", err)
		return
	}
	f.mu.Lock()
	f.unused = growing
	f.mu.Unlock()
	line.add(&feed{growing: growing, nar: nar, reserved: int64(info.NarSize)})
}

// lineFor returns the line on which a path is to be sent, or nil.
func (f *feeder) lineFor(info *nix.PathInfo) *feedLine {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.line != nil && f.line.takesMore() {
		if f.wanted(&f.line.builder, f.domain, info) {
			return f.line
		}
		return nil
	}
	b, ok := f.guess(f.domain, f.client)
	if !ok || !feedable(&b) || !f.wanted(&b, f.domain, info) || !f.reserve(b.Name, 1, 0) {
		return nil
	}
	f.line = f.newLine(b)
	f.running.Go(f.line.run)
	return f.line
}

// chosen says where the client's build runs. What is fed elsewhere ends at once.
func (f *feeder) chosen(builder string) {
	if f == nil {
		return
	}
	f.mu.Lock()
	f.unused = nil
	line := f.line
	wrong := line != nil && line.builder.Name != builder
	if wrong {
		f.line = nil
	}
	f.mu.Unlock()
	if wrong {
		line.cancel(errFeedWrong)
	}
	f.ran(f.client, builder, wrong)
}

// taken says that the build keeps from now on what it needs.
func (f *feeder) taken() {
	if f == nil {
		return
	}
	f.mu.Lock()
	line := f.line
	f.line = nil
	f.mu.Unlock()
	if line != nil {
		line.last()
	}
}
