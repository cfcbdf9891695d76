package proxy

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// The ledger knows every build: those that wait or run, and of those that have ended
// as many as the policy says, with their logs, also over a restart. It decides nothing:
//
//	ledger.go         what there is, by id
//	ledger_entry.go   one build while it is under way
//	ledger_record.go  what is known of a build, as answers and files have it
//	ledger_files.go   STATE/builds: ID.json is a record, ID.log the text of a log
//	logtext.go        the log of a build as text

// maxKeeping is how many builds may have ended whose logs are still to be written.
// With more the disk is too slow, and theirs are not kept: each takes memory.
const maxKeeping = 256

// ledger is safe for concurrent use.
type ledger struct {
	files    recordFiles
	policy   *policy.Live
	inflight *inflight
	log      *slog.Logger
	// others reports whether another process of an upgrade uses the directory too.
	others func() bool
	// keeping has a token for each log that is to be written, and writing one for the
	// one that is.
	keeping, writing chan struct{}

	mu sync.Mutex // guards what follows; before that of an entry
	// looking says that others used the directory at the start, and have not all ended.
	looking bool
	// open are the builds that have not ended, or whose log is not written yet.
	open map[string]*ledgerEntry
	// ended are those before, the oldest first. No record in it is ever changed.
	ended []*buildRecord
}

// openLedger reads what was kept. What a crash left is cleared away, unless others use the
// directory too, and may be writing it.
func openLedger(dir string, others func() bool, live *policy.Live, builds *inflight, log *slog.Logger) (*ledger, error) {
	l := &ledger{
		files: recordFiles{dir: dir, log: log}, policy: live, inflight: builds, log: log,
		keeping: make(chan struct{}, maxKeeping), writing: make(chan struct{}, 1), open: map[string]*ledgerEntry{},
		others: others, looking: others(),
	}
	if err := l.files.open(!l.looking); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readLocked(!l.looking)
	l.pruneLocked()
	return l, nil
}

// begin notes a build, with the log that its clients get.
func (l *ledger) begin(o *order, key buildKey, running *build) *ledgerEntry {
	e := &ledgerEntry{ledger: l, key: key, build: running, log: running.log, record: newRecord(o, time.Now())}
	e.release, _ = running.log.hold()
	l.mu.Lock()
	defer l.mu.Unlock()
	e.record.ID = l.newID(o, e.record.Asked)
	l.open[e.record.ID] = e
	return e
}

// idLength is how many characters an id has: short enough to be typed, and enough for
// ids to differ mostly without a second look.
const idLength = 6

// newID makes an id that no other build has. The caller holds mu.
func (l *ledger) newID(o *order, asked time.Time) string {
	for n := 0; ; n++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d %d", o.principal.Domain, o.drvPath, asked.UnixNano(), n))
		id := nix.EncodeNix32(sum[:20])[:idLength]
		taken := slices.ContainsFunc(l.ended, func(r *buildRecord) bool { return r.ID == id })
		if l.open[id] == nil && !taken {
			return id
		}
	}
}

// keep writes what is known of a build that has ended. Its clients have the result
// already.
func (l *ledger) keep(e *ledgerEntry) {
	defer e.release()
	record := e.snapshot()
	select {
	case l.keeping <- struct{}{}:
		l.writing <- struct{}{}
		if err := l.files.write(&record, e.log); err != nil {
			l.log.Warn("build is not kept", "build", record.ID, "drv", record.Derivation, "error", err)
		}
		<-l.writing
		<-l.keeping
	default:
		l.log.Warn("build is not kept, since the disk is too slow", "build", record.ID, "drv", record.Derivation)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, record.ID)
	l.insertLocked(&record)
	l.pruneLocked()
}

// insertLocked adds a build to those that have ended.
func (l *ledger) insertLocked(r *buildRecord) {
	i, _ := slices.BinarySearchFunc(l.ended, r, func(a, b *buildRecord) int { return a.Ended.Compare(*b.Ended) })
	l.ended = slices.Insert(l.ended, i, r)
}

// pruneLocked forgets the oldest beyond the limits of the policy.
func (l *ledger) pruneLocked() {
	limits := l.policy.Current().Limits
	for len(l.ended) > limits.BuildHistory {
		l.files.remove(l.ended[0].ID)
		l.ended = l.ended[1:]
	}
	var bytes int64
	for i, r := range slices.Backward(l.ended) {
		if bytes += r.LogBytes; bytes > limits.BuildLogs && r.LogBytes > 0 {
			bytes -= r.LogBytes
			l.files.removeLog(r.ID)
			without := *r
			without.LogBytes = 0
			l.ended[i] = &without
		}
	}
}

// lookLocked takes in what processes before this one wrote, whose last builds end after
// this one has begun. Without them nothing is read: a history may be long.
func (l *ledger) lookLocked() {
	if !l.looking {
		return
	}
	if !l.others() {
		l.looking, l.files.seen = false, time.Time{} // for the last time, and whatever was seen
	}
	l.readLocked(false)
}

func (l *ledger) readLocked(clearing bool) {
	known := map[string]bool{}
	for _, r := range l.ended {
		known[r.ID] = true
	}
	for id := range l.open {
		known[id] = true
	}
	for _, r := range l.files.news(known, clearing) {
		l.insertLocked(r)
	}
}

// all returns what is known of every build that an asker may see: those under way by
// arrival, then those that have ended, the latest first. The latter are shared: do not
// change them.
func (l *ledger) all(a *asker) (underWay, ended []*buildRecord) { return l.since(a, time.Time{}) }

// since is all without what ended before a time.
func (l *ledger) since(a *asker, from time.Time) (underWay, ended []*buildRecord) {
	l.mu.Lock()
	l.lookLocked()
	l.pruneLocked()
	entries := slices.Collect(maps.Values(l.open))
	for _, r := range slices.Backward(l.ended) {
		if r.Ended.Before(from) {
			break
		}
		if a.sees(r.Domain) {
			ended = append(ended, r)
		}
	}
	l.mu.Unlock()
	for _, e := range entries {
		switch r := e.snapshot(); {
		case !a.sees(r.Domain):
		case r.Ended != nil: // and its log is being written
			i, _ := slices.BinarySearchFunc(ended, r.Ended, func(e *buildRecord, at *time.Time) int { return at.Compare(*e.Ended) })
			ended = slices.Insert(ended, i, &r)
		default:
			underWay = append(underWay, &r)
		}
	}
	slices.SortFunc(underWay, func(a, b *buildRecord) int { return a.Asked.Compare(b.Asked) })
	return underWay, ended
}

// entry is a build that is under way, or whose log is being written; nil if there is
// none of that id.
func (l *ledger) entry(id string) *ledgerEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open[id]
}

// maxListed is how many builds a question names that may mean any of them.
const maxListed = 10

// find returns the build that an asker means: by its id, or by the begin of its id,
// its derivation's hash, its name or its path. Of several builds of one derivation
// the latest is meant.
func (l *ledger) find(a *asker, text string, underWay bool) (*buildRecord, error) {
	running, ended := l.all(a)
	slices.Reverse(running)
	all := running
	if !underWay {
		all = append(all, ended...)
	}
	var found []*buildRecord
	for _, r := range all {
		switch {
		case r.ID == text:
			return r, nil
		case r.matches(text) && !slices.ContainsFunc(found, func(f *buildRecord) bool { return f.Derivation == r.Derivation && f.Domain == r.Domain }):
			found = append(found, r)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, usage("%s may be any of %d builds:\n%s", quoted(text), len(found), listed(found))
	case underWay && slices.ContainsFunc(ended, func(r *buildRecord) bool { return r.ID == text || r.matches(text) }):
		return nil, nix.Refuse("build %s has ended already", quoted(text))
	}
	return nil, nix.Refuse("there is no build %s; the question `builds` lists those that are known", quoted(text))
}

func listed(found []*buildRecord) string {
	var text strings.Builder
	for _, r := range found[:min(len(found), maxListed)] {
		fmt.Fprintf(&text, "  %s  %s, %s for %s\n", r.ID, r.Name, r.stateText(), list(r.Principals))
	}
	if more := len(found) - maxListed; more > 0 {
		fmt.Fprintf(&text, "  and %d more\n", more)
	}
	return strings.TrimSuffix(text.String(), "\n")
}
