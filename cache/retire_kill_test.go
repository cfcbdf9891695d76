package cache

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nixbastion/internal/nix"
)

// retiringDir tells the test binary that it is to be the process that gives its
// store away and is killed, and where.
const retiringDir = "NIXBASTION_CACHE_RETIRING"

// Guards against paths that are lost with a process that is killed while another
// takes its place: what it acknowledged is valid in the other one, at once.
func TestKillOfARetiredProcessLosesNothing(t *testing.T) {
	for range retireRounds() {
		dir := newDir(t)
		old := startRetiring(t, dir)
		old.readUntil(t, "retired")
		next := openCache(t, Options{Dir: dir})
		for range 40 { // while it writes on
			old.seen(t, next, old.next(t))
		}
		time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond)
		old.kill(t)
		for _, line := range old.lines {
			old.seen(t, next, line)
		}
		alone(t, next)
		flushed(t, next)
		for _, k := range allRows(t, next) {
			wholeRow(t, next, k)
		}
		if got := filesIn(t, filepath.Join(dir, tmpDir), ""); len(got) != 1 { // our lock
			t.Errorf("temporary files stay: %q", got)
		}
		closeCache(t, next)
		if t.Failed() {
			return
		}
	}
}

// Guards against a retired process that loses what it was promised, or what it took
// in, since those that take its place are killed one after the other.
func TestKillOfTheProcessThatHasTheIndexCostsARetiredOneNothing(t *testing.T) {
	dir := newDir(t)
	size := int64(400 * unit)
	old := openCache(t, Options{Dir: dir, Size: size})
	pins := old.NewPins("anna")
	defer pins.Release()
	var mine []object
	upload := func(name string) {
		o := obj(name, strings.Repeat(name, 100))
		o.receive(t, old, in("team"))
		pins.Pin("team", []nix.StorePath{o.info.Path})
		mine = append(mine, o)
	}
	upload("before")
	retire(t, old)
	for round := range retireRounds() {
		upload(fmt.Sprint("nobody-", round))
		killedWriter(t, dir, size, false, time.Duration(rand.IntN(100))*time.Millisecond)
		for _, o := range mine {
			o.holds(t, old, "team")
		}
		if t.Failed() {
			return
		}
	}
	next := openCache(t, Options{Dir: dir, Size: size})
	for _, o := range mine {
		o.holds(t, next, "team")
	}
	closeCache(t, old)
	alone(t, next)
	scanned(t, next)
	flushed(t, next)
	for _, k := range allRows(t, next) {
		wholeRow(t, next, k)
	}
	closeCache(t, next)
}

func retireRounds() int { return max(3, crashRounds()/10) }

// retiring is a process that writes, gives the store away when it is told to, and
// writes on.
type retiring struct {
	cmd   *exec.Cmd
	said  *bufio.Scanner
	lines []string
}

func startRetiring(t *testing.T, dir string) *retiring {
	t.Helper()
	cmd, said := startSelf(t, retiringDir+"="+dir)
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return &retiring{cmd: cmd, said: said}
}

func (r *retiring) next(t *testing.T) string {
	t.Helper()
	if !r.said.Scan() {
		t.Fatalf("the process said no more: %v", r.said.Err())
	}
	r.lines = append(r.lines, r.said.Text())
	return r.said.Text()
}

func (r *retiring) readUntil(t *testing.T, want string) {
	t.Helper()
	for r.next(t) != want {
	}
}

// kill takes in what the process said before its end.
func (r *retiring) kill(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for r.said.Scan() {
		r.lines = append(r.lines, r.said.Text())
	}
	r.cmd.Wait()
}

// seen checks that what the process said it had acknowledged is valid.
func (r *retiring) seen(t *testing.T, c *Cache, line string) {
	t.Helper()
	domain, base, path := strings.Cut(line, " ")
	if !path {
		return
	}
	p := mustPath(base)
	nar, err := c.OpenNar(t.Context(), domain, p)
	if err != nil {
		t.Errorf("%s was acknowledged: %v", line, err)
		return
	}
	defer nar.Close()
	if _, err := io.Copy(io.Discard, nar); err != nil {
		t.Errorf("read %s: %v", line, err)
	}
}

// writeAndRetire is that process.
func writeAndRetire(dir string) {
	ctx := context.Background()
	c, err := Open(ctx, Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var say sync.Mutex
	for n := range 3 {
		go func() {
			var refs []nix.StorePath
			for i := 0; ; i++ {
				size := rand.IntN(20_000)
				if i%10 == 9 {
					size += syncAlone
				}
				o := obj(fmt.Sprintf("r%d-%d-%d", os.Getpid(), n, i), strings.Repeat("x", size), refs...)
				if err := o.write(ctx, c, in("team")); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				refs = []nix.StorePath{o.info.Path}
				say.Lock()
				fmt.Println("team " + o.info.Path.Base())
				say.Unlock()
			}
		}()
	}
	time.Sleep(30 * time.Millisecond)
	if err := c.Retire(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	say.Lock()
	fmt.Println("retired")
	say.Unlock()
	select {}
}
