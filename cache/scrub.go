package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"nixbastion/internal/nix"
)

const (
	// scrubEvery is how often a round through the store begins, if the one before
	// has ended by then: a small store need not be read all the time.
	scrubEvery = 24 * time.Hour
	// scrubUnderLoad is the part of the rate, one in so many, at which the scrubber
	// goes on while NARs come or are read. It never stops: a store that is always
	// busy is to be read too.
	scrubUnderLoad = 8
	// scrubNote is how often it is written down how far a round is.
	scrubNote = time.Minute
	// scrubPause is the wait after an error, which must not make a loop that spins.
	scrubPause = time.Minute
	// scrubName is the file that says how far the round is.
	scrubName = "scrubbed"
)

// round is how far the scrubber is.
type round struct {
	began time.Time
	last  nix.Hash // of the NAR that was read last; zero at the beginning
	ended bool
}

// scrubber reads published NARs again and again, in the order of their hashes, and
// has those dropped that are not what they were.
type scrubber struct {
	c     *Cache
	limit *rate.Limiter
	round round
	noted time.Time
}

func newScrubber(c *Cache, bytesPerSecond int64) *scrubber {
	return &scrubber{c: c, limit: rate.NewLimiter(rate.Limit(bytesPerSecond), chunk)}
}

// run scrubs until ctx ends.
func (s *scrubber) run(ctx context.Context) {
	s.recall()
	for ctx.Err() == nil {
		err := s.step(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			s.c.log.Error("cannot check what is on disk", "err", err)
			sleep(ctx, scrubPause)
		}
	}
	s.note()
}

// step reads the next NAR, or waits for the next round.
func (s *scrubber) step(ctx context.Context) error {
	if s.round.ended || s.round.began.IsZero() {
		sleep(ctx, min(scrubEvery, s.round.began.Add(scrubEvery).Sub(s.c.now()))) // clocks jump
		if ctx.Err() != nil {
			return nil
		}
		s.round = round{began: s.c.now()}
	}
	next, err := s.c.index.narsBehind(s.round.last, 1)
	switch {
	case ctx.Err() != nil || err != nil:
		return err
	case len(next) == 0:
		s.round.ended = true
		s.note()
		s.c.log.Info("read the whole store again", "began", s.round.began, "broken", s.c.counters.broken.Load())
		return nil
	}
	lost, err := s.c.checkNAR(ctx, next[0], s.pace)
	if ctx.Err() != nil {
		return nil // it is read again at the next start
	}
	s.round.last = next[0].hash
	if len(lost) > 0 {
		s.c.log.Error("found a NAR broken that nobody had asked for", "nar", next[0].hash, "paths", len(lost))
	}
	if s.c.now().Sub(s.noted) >= scrubNote {
		s.note()
	}
	return err
}

// pace waits until so many bytes may be read.
func (s *scrubber) pace(ctx context.Context, bytes int) error {
	s.c.counters.scrubbed.Add(int64(bytes))
	turns := 1
	if s.c.busy() {
		turns = scrubUnderLoad
	}
	for range turns {
		if err := s.limit.WaitN(ctx, bytes); err != nil {
			return err
		}
	}
	return nil
}

// busy reports whether NARs come or are read.
func (c *Cache) busy() bool { return c.reading.Load() > 0 || c.room.arriving() }

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// note writes down how far the round is. It is of little account if that fails, or
// is lost with the power: then more is read again.
func (s *scrubber) note() {
	s.noted = s.c.now()
	if err := s.write(); err != nil {
		s.c.log.Error("cannot note how far the store was read", "err", err)
	}
}

func (s *scrubber) write() error {
	name, err := s.c.scratch.write([]byte(s.round.String()))
	if err != nil {
		return err
	}
	return s.c.scratch.publish(s.c.root, name, scrubName)
}

// recall takes up the round of the process before.
func (s *scrubber) recall() {
	text, err := readText(s.c.root, scrubName)
	if err == nil {
		s.round, err = parseRound(text)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.c.log.Warn("reads the store from its beginning", "err", err)
	}
	s.noted = s.c.now()
}

// String is the text of the file: when the round began, in seconds since 1970, and
// the hash of the last NAR, "start" or "end".
func (r round) String() string {
	at := "start"
	switch {
	case r.ended:
		at = "end"
	case !r.last.IsZero():
		at = r.last.Nix32()
	}
	return fmt.Sprintf("%d %s\n", r.began.Unix(), at)
}

func parseRound(text string) (round, error) {
	began, at, ok := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
	seconds, err := strconv.ParseInt(began, 10, 64)
	if !ok || err != nil {
		return round{}, fmt.Errorf("%s: %q is not a time and a place", scrubName, clip(text))
	}
	r := round{began: time.Unix(seconds, 0)}
	switch at {
	case "start":
	case "end":
		r.ended = true
	default:
		if r.last, err = nix.ParseHash(at, nix.SHA256); err != nil || r.last.Algo() != nix.SHA256 {
			return round{}, fmt.Errorf("%s: %q is not the hash of a NAR", scrubName, clip(at))
		}
	}
	return r, nil
}

func clip(text string) string { return text[:min(len(text), 100)] }
