package e2e

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// TestMain prints the table of the long counts after all else, and ends the beds
// that tests share.
func TestMain(m *testing.M) {
	status := m.Run()
	if err := closeCommonBeds(); err != nil {
		fmt.Fprintln(os.Stderr, "close beds:", err)
		status = max(status, 1)
	}
	table.print(os.Stdout)
	os.Exit(status)
}

// A count is a line of the table that `make soak` prints: what one test did, and
// how often. A test owns its line; subtests add to it one after another.
type count struct {
	what   string // name of the test
	rounds int
	failed int
	peak   int64 // largest RssAnon of the proxy in bytes; 0 if nobody looked
	took   time.Duration
	notes  []string
}

// table has a line for each test that asked for one.
var table counts

type counts struct {
	mu    sync.Mutex // guards lines; each line is its test's
	lines []*count
}

// counted returns the line of a test, and begins it the first time. Its time and
// whether the test failed are filled in when the test ends.
func counted(t *testing.T) *count {
	t.Helper()
	c, isNew := table.line(t.Name())
	if !isNew {
		return c
	}
	began := time.Now()
	t.Cleanup(func() {
		c.took = time.Since(began)
		c.rounds = max(c.rounds, 1)
		if t.Failed() {
			c.failed = max(c.failed, 1)
		}
	})
	return c
}

func (t *counts) line(what string) (c *count, isNew bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.lines {
		if c.what == what {
			return c, false
		}
	}
	c = &count{what: what}
	t.lines = append(t.lines, c)
	return c, true
}

// round runs one round as a subtest and counts it.
func (c *count) round(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	c.rounds++
	if !t.Run(fmt.Sprintf("round %d", c.rounds), f) {
		c.failed++
	}
}

// saw notes how much memory the proxy took.
func (c *count) saw(rss int64) { c.peak = max(c.peak, rss) }

// note adds words for a person.
func (c *count) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

// print writes the table, if the long counts are what was asked for.
func (t *counts) print(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !soak() || len(t.lines) == 0 {
		return
	}
	slices.SortFunc(t.lines, func(a, b *count) int { return cmp.Compare(a.what, b.what) })
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "\ntest\trounds\tfailed\tmost memory\ttime\t")
	for _, c := range t.lines {
		fmt.Fprintf(out, "%s\t%d\t%d\t%s\t%s\t%s\n", strings.TrimPrefix(c.what, "TestSoak"), c.rounds, c.failed,
			mebibytes(c.peak), c.took.Round(time.Second), strings.Join(c.notes, "; "))
	}
	out.Flush() // to standard output: nobody is left to tell
}

func mebibytes(n int64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
