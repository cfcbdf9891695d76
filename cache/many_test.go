package cache

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/nix"
)

// readerDir tells the test binary to be the process that opens a store of many
// paths; readerPaths says how many there are, readerBrief that it asks for one and
// dies.
const (
	readerDir   = "NIXBASTION_CACHE_READER"
	readerPaths = "NIXBASTION_CACHE_READER_PATHS"
	readerBrief = "NIXBASTION_CACHE_READER_BRIEF"
)

// many is how many paths the store has: a million where long counts are wanted.
func many() int {
	if os.Getenv("NIXBASTION_SOAK") == "1" {
		return 1_000_000
	}
	return 2_000
}

// manyPath names a path without hashing.
func manyPath(i int) nix.StorePath {
	return mustPath(fmt.Sprintf("%032d-package-with-a-usual-name-1.2.3", i))
}

// manyHash is in the order of the paths, so that the index is made in minutes.
func manyHash(i int) nix.Hash {
	h, err := nix.NewHash(nix.SHA256, fmt.Appendf(nil, "%032d", i))
	if err != nil {
		panic(err)
	}
	return h
}

// manyRow is a path with 4 references, where there are as many before it.
func manyRow(i int) *row {
	info := &nix.PathInfo{
		Path: manyPath(i), NarHash: manyHash(i), NarSize: 100_000,
		Deriver: mustPath(fmt.Sprintf("%032d-package-with-a-usual-name-1.2.3.drv", i)), RegistrationTime: 1_700_000_000,
	}
	for _, back := range []int{1, 10, 100, 1000} {
		if i >= back {
			info.References = append(info.References, manyPath(i-back))
		}
	}
	info.References = nix.SortPaths(info.References)
	return &row{record: record{info: info, provenance: DomainVouched}, lastUse: 1_700_000_000 + int64(i)}
}

// fillIndex makes the index of a store of n paths, without their files.
func fillIndex(t *testing.T, dir string, n int) {
	t.Helper()
	c := openCache(t, Options{Dir: dir})
	scanned(t, c)
	for from := 0; from < n; from += 50_000 {
		err := c.onKeeper(func(k *keeper) error {
			done, err := c.index.update(func(tx *indexTx) error {
				for i := from; i < min(from+50_000, n); i++ {
					if err := tx.put(keyOf("team", manyPath(i)), manyRow(i)); err != nil {
						return err
					}
				}
				return nil
			})
			c.applied(done)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	closeCache(t, c)
}

// Guards against a start that waits for a scan, and memory that grows with the
// store: processes of their own open it, answer, and tell what it took. The second
// and the third find what one left that died.
func TestManyPathsOpenAtOnce(t *testing.T) {
	dir := newDir(t)
	fillIndex(t, dir, many())
	info, err := os.Stat(filepath.Join(dir, indexName))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("index of %d MiB", info.Size()>>20)
	for _, how := range []string{"", readerBrief + "=1", readerBrief + "=1"} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), readerDir+"="+dir, fmt.Sprintf("%s=%d", readerPaths, many()), how)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v:\n%s", how, err, out)
		}
		t.Logf("%s\n%s", how, out)
	}
}

// readMany is the process that opens a store of many paths.
func readMany(dir string) {
	if err := readManyOf(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func readManyOf(ctx context.Context, dir string) error {
	var n int
	if _, err := fmt.Sscan(os.Getenv(readerPaths), &n); err != nil {
		return err
	}
	began := time.Now()
	c, err := Open(ctx, Options{Dir: dir, Size: 1 << 50, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	opened := time.Since(began)
	if _, err := c.QueryPathInfo("team", manyPath(n/2)); err != nil {
		return err
	}
	fmt.Printf("%d paths opened in %v, the first answer after %v\nRssAnon then %s", n, opened, time.Since(began), rssAnon())
	if os.Getenv(readerBrief) != "" {
		os.Exit(0)
	}
	debug.FreeOSMemory() // what is garbage of the start
	fmt.Printf("RssAnon without garbage %s", rssAnon())
	const asked = 2 * DefaultHotRecords
	for i := 0; i < n; i += max(1, n/asked) {
		if len(c.QueryValidPaths("team", []nix.StorePath{manyPath(i)})) != 1 {
			return fmt.Errorf("path %d is not there", i)
		}
	}
	fmt.Printf("RssAnon with all hot records %s", rssAnon())
	return c.Close()
}

// rssAnon is the memory of this process that is not of files.
func rssAnon() string {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			return strings.TrimSpace(rest) + "\n"
		}
	}
	return "unknown\n"
}

// Guards against a recovery that keeps users waiting: a killed process leaves
// the index unmarked, and the scan that follows runs behind answers.
func TestManyPathsAreBackAfterAKill(t *testing.T) {
	n := 10_000
	if os.Getenv("NIXBASTION_SOAK") != "1" {
		n = 500
	}
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	all := filler(t, c, "p", n)
	c.lostTrack() // as a killed process leaves it
	closeCache(t, c)
	for _, without := range []string{"", indexName} {
		if without != "" {
			if err := os.Remove(filepath.Join(dir, without)); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		c = openCache(t, Options{Dir: dir})
		opened := time.Since(began)
		all[n-1].holds(t, c, "team")
		answered := time.Since(began)
		scanned(t, c)
		t.Logf("%d paths, lost %q: opened in %v, answered after %v, all in the index after %v", n, without, opened, answered, time.Since(began))
		if got := len(allRows(t, c)); got != n {
			t.Errorf("%d of %d paths are in the index", got, n)
		}
		c.lostTrack()
		closeCache(t, c)
	}
}
