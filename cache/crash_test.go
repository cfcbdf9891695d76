package cache

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
)

// writerDir tells the test binary that it is to be the process that gets killed,
// and where; writerSize is the size of its cache.
const (
	writerDir  = "NIXBASTION_CACHE_WRITER"
	writerSize = "NIXBASTION_CACHE_WRITER_SIZE"
)

// crashRounds is how often a writer is killed.
func crashRounds() int {
	if os.Getenv("NIXBASTION_SOAK") == "1" {
		return 500
	}
	return 15
}

// roundsPerStore is after how many rounds a new store is begun: each round looks at
// all that is there.
const roundsPerStore = 50

// Guards against anything half-published after kill -9: a path that is answered
// and is not whole, one that was durable and is gone, files that nothing names,
// temporary files that stay. Half of the rounds evict all the time; in all of them
// an admin is at work and the scrubber runs.
func TestKillLeavesNothingHalfPublished(t *testing.T) {
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	roomy, tight := newDir(t), newDir(t)
	durable := map[string]bool{}
	total := 0
	for round := range crashRounds() {
		if round > 0 && round%roundsPerStore == 0 {
			total += len(durable)
			roomy, tight = newDir(t), newDir(t)
			clear(durable)
		}
		dir, size := roomy, int64(DefaultSize)
		if round%2 == 1 {
			dir, size = tight, 200*unit
		}
		lines := killedWriter(t, dir, size, round%3 == 0, time.Duration(random.Int64N(int64(150*time.Millisecond))))
		if dir == roomy {
			for _, line := range lines {
				durable[line] = true
			}
		}
		checkAfterKill(t, dir, size, durable, dir == roomy)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	total += len(durable)
	t.Logf("%d kills, %d durable paths", crashRounds(), total)
	if total == 0 {
		t.Error("no round got as far as a durable path")
	}
}

// startSelf runs this test program again, with more in its environment.
func startSelf(t *testing.T, environment ...string) (cmd *exec.Cmd, said *bufio.Scanner) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), environment...)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// killedWriter runs a writer, kills it some time after it is ready, or after the
// first paths are durable, and returns what it said was durable: "domain path".
func killedWriter(t *testing.T, dir string, size int64, early bool, after time.Duration) []string {
	t.Helper()
	cmd, said := startSelf(t, writerDir+"="+dir, fmt.Sprintf("%s=%d", writerSize, size))
	if !said.Scan() || said.Text() != "ready" {
		t.Errorf("the writer said %q (%v)", said.Text(), said.Err())
	}
	var lines []string
	if !early && said.Scan() {
		lines = append(lines, said.Text())
	}
	timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
	defer timer.Stop()
	for said.Scan() {
		lines = append(lines, said.Text())
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
		t.Errorf("the writer ended by itself: %v", err)
	}
	return lines
}

func checkAfterKill(t *testing.T, dir string, size int64, durable map[string]bool, keepsAll bool) {
	t.Helper()
	c := openCache(t, Options{Dir: dir, Size: size})
	for line := range durable {
		domain, base, _ := strings.Cut(line, " ")
		if keepsAll && len(c.QueryValidPaths(domain, []nix.StorePath{mustPath(base)})) == 0 {
			t.Errorf("%s was durable and is gone", line)
		}
	}
	scanned(t, c)
	nars := map[string]bool{}
	rows := 0
	for _, k := range allRows(t, c) {
		rows++
		nars[wholeRow(t, c, k)] = true
	}
	wantFiles(t, dir, narinfoSuffix, rows)
	if got := filesIn(t, filepath.Join(dir, narDir), ""); len(got) != len(nars) {
		t.Errorf("%d NAR files, %d are named", len(got), len(nars))
	}
	if got := filesIn(t, filepath.Join(dir, tmpDir), ""); len(got) != 1 { // our lock
		t.Errorf("temporary files stay: %q", got)
	}
	if got := filesIn(t, filepath.Join(dir, quarantineDir), ""); len(got) != 0 {
		t.Errorf("found broken: %q", got)
	}
	for _, domain := range []string{publicDomain, "team", "others"} {
		closed(t, c, domain)
	}
	closeCache(t, c)
}

func allRows(t *testing.T, c *Cache) []key {
	t.Helper()
	var keys []key
	if err := c.index.oldest(func(cand candidate) bool {
		keys = append(keys, cand.key)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return keys
}

// wholeRow reads what a row names and compares it with its narinfo.
func wholeRow(t *testing.T, c *Cache, k key) (narName string) {
	t.Helper()
	recs, err := c.index.find([]key{k})
	if err != nil || recs[0] == nil {
		t.Fatalf("%v: %v", k, err)
	}
	rec := recs[0]
	onDisk, err := readNarinfo(c.root, k)
	if err != nil || !onDisk.sameBytes(rec) || onDisk.provenance != rec.provenance {
		t.Errorf("narinfo of %v: %+v, %v", k, onDisk, err)
	}
	r, err := c.OpenNar(t.Context(), k.domain, rec.info.Path)
	if err != nil {
		t.Fatalf("%v: %v", k, err)
	}
	defer r.Close()
	sum := nix.SHA256.New()
	n, err := io.Copy(sum, nar.NewReader(r))
	if err != nil || uint64(n) != rec.info.NarSize || nix.SumHash(nix.SHA256, sum) != rec.info.NarHash {
		t.Errorf("NAR of %v: %d bytes, %v", k, n, err)
	}
	return rec.info.NarHash.String()
}

// writeUntilKilled is the process that is killed. It says what is durable.
func writeUntilKilled(dir string) {
	if err := writeFor(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func writeFor(ctx context.Context, dir string) error {
	var size int64
	if _, err := fmt.Sscan(os.Getenv(writerSize), &size); err != nil {
		return err
	}
	c, err := Open(ctx, Options{Dir: dir, Size: size, ScrubRate: 16 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	var writers sync.WaitGroup
	errs := make(chan error, 5)
	writers.Go(func() { errs <- administer(ctx, c, size < DefaultSize) })
	for n := range 4 {
		writers.Go(func() { errs <- writeOn(ctx, c, fmt.Sprintf("w%d-%d", os.Getpid(), n)) })
	}
	return <-errs // which never comes
}

func writeOn(ctx context.Context, c *Cache, prefix string) error {
	pins := c.NewPins(prefix)
	var last map[string]nix.StorePath = map[string]nix.StorePath{}
	said := map[string]bool{}
	for i := 0; ; i++ {
		domain := []string{"team", "others"}[rand.IntN(2)]
		content := strings.Repeat("x", rand.IntN(20_000))
		if i%20 == 19 {
			content = strings.Repeat("x", syncAlone+rand.IntN(1000)) // equal bytes of several paths, too
		}
		var refs []nix.StorePath
		if p := last[domain]; !p.IsZero() && len(pins.Pin(domain, []nix.StorePath{p})) > 0 {
			refs = append(refs, p)
		}
		o := obj(fmt.Sprintf("%s-%d", prefix, i), content, refs...)
		g := Grant{Domain: domain, Provenance: Provenance(rand.IntN(4)), Public: len(refs) == 0 && rand.IntN(4) == 0}
		if err := o.write(ctx, c, g); err != nil {
			return err
		}
		last[domain] = o.info.Path
		said[domain+" "+o.info.Path.Base()] = true
		if i%8 == 7 {
			if err := c.Flush(ctx); err != nil {
				return err
			}
			fmt.Print(strings.Join(append(slices.Collect(maps.Keys(said)), ""), "\n"))
			clear(said)
			pins.Release()
			pins = c.NewPins(prefix)
		}
	}
}

// administer does what an admin may do while others write. Only where paths may go
// does it take any away.
func administer(ctx context.Context, c *Cache, may bool) error {
	for {
		var some []Entry
		err := c.List(ctx, "", true, func(e Entry) error {
			if e.Domain != publicDomain && rand.IntN(20) == 0 {
				some = append(some, e)
			}
			return nil
		})
		for _, e := range some {
			one := []nix.StorePath{e.Info.Path}
			switch n := rand.IntN(5); {
			case n < 2:
				err = errors.Join(err, unlessRefused(c.PinPaths(e.Domain, one)))
			case n == 2:
				err = errors.Join(err, unlessRefused(c.UnpinPaths(e.Domain, one)))
			case n == 3 && may:
				_, removeErr := c.Remove(ctx, e.Domain, one, true)
				err = errors.Join(err, unlessRefused(removeErr))
			default:
				v, verifyErr := c.Verify(ctx, e.Domain, one, func(Verification) {})
				if len(v.Lost) > 0 {
					return fmt.Errorf("found broken: %v", v.Lost)
				}
				err = errors.Join(err, unlessRefused(verifyErr))
			}
		}
		for _, domain := range []string{"team", "others"} { // or nothing could be evicted in the end
			if all := c.PinnedPaths(domain); len(all) > 10 {
				err = errors.Join(err, unlessRefused(c.UnpinPaths(domain, all)))
			}
		}
		if may {
			_, _, collectErr := c.Collect(ctx, -1, func(int64, int64) {})
			err = errors.Join(err, collectErr)
		}
		if err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// unlessRefused leaves out what happens to an admin who is not alone.
func unlessRefused(err error) error {
	if _, refused := errors.AsType[*nix.UserError](err); refused || errors.Is(err, nix.ErrNotFound) {
		return nil
	}
	return err
}

func (o object) write(ctx context.Context, c *Cache, g Grant) error {
	if rand.IntN(2) == 0 {
		_, err := c.Receive(ctx, o.info, bytes.NewReader(o.nar), g)
		return err
	}
	a, err := c.Announce(o.info, g)
	if err != nil {
		return err
	}
	if !a.Needed() {
		return errors.New("a new path is not needed")
	}
	_, err = a.Fill(ctx, bytes.NewReader(o.nar))
	return err
}
