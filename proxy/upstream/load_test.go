package upstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix/worker"
	"nixbastion/policy"
)

// loadEvery is the pool's interval in these tests.
const loadEvery = 5 * time.Second

// loadProgram is the script on a fake: answer makes what is said to a question, with
// its number; nil says nothing more.
func loadProgram(answer func(n int) (string, bool)) program {
	return func(p *fakeProcess) uint32 {
		fmt.Fprintf(p, "load Linux 4 %d\n", time.Now().Unix()+7)
		in := bufio.NewScanner(p)
		for n := 1; in.Scan(); n++ {
			if want := fmt.Sprintf("sample %d", n); in.Text() != want {
				fmt.Fprintf(p, "not %q\n", want)
				return 1
			}
			if text, ok := answer(n); ok {
				io.WriteString(p, text)
			}
		}
		return 0
	}
}

// loadText is an answer in good order.
func loadText(n int, load1 string) string {
	return fmt.Sprintf("avg %s 0.20 0.30 1/100 4711\ntotal 1000 kB\navailable 500 kB\nFilesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 1000 900 100 90%% /\nend %d\n", load1, n)
}

func steadyLoad(n int) (string, bool) { return loadText(n, "1.50"), true }

// loadWorld is a world in which the load is asked for.
type loadWorld struct {
	*world
	mu   sync.Mutex
	told []string // what OnLoad said
}

func inLoadWorld(t *testing.T, script program, prepare func(*fakeBuilder, *target, *Options), test func(w *loadWorld)) {
	lw := &loadWorld{}
	inWorld(t, func(f *fakeBuilder, tgt *target, opts *Options) {
		if script != nil {
			f.programs[loadScript] = script
		}
		opts.LoadEvery, opts.OnLoad = loadEvery, lw.onLoad
		if prepare != nil {
			prepare(f, tgt, opts)
		}
	}, func(w *world) {
		lw.world = w
		test(lw)
	})
}

func (w *loadWorld) onLoad(_ string, l Load, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.told = append(w.told, err.Error())
	} else {
		w.told = append(w.told, fmt.Sprint(l.Load1))
	}
}

// tellings is what OnLoad said since it was last asked, repetitions once.
func (w *loadWorld) tellings() string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	var kinds []string
	for i, s := range w.told {
		if i == 0 || w.told[i-1] != s {
			kinds = append(kinds, s)
		}
	}
	w.told = nil
	return strings.Join(kinds, "\n")
}

// use has a session opened and given back, which is how builders come up.
func (w *loadWorld) use() {
	w.Helper()
	w.get().Release()
	synctest.Wait()
}

func (w *loadWorld) knows(load1 float64) {
	w.Helper()
	if l, at, err := w.pool.Load("b1"); err != nil || l.Load1 != load1 {
		w.Errorf("load is %v of %s, %v; want %g", l, at, err, load1)
	}
}

func (w *loadWorld) knowsNot(words string) {
	w.Helper()
	if l, _, err := w.pool.Load("b1"); err == nil || !strings.Contains(err.Error(), words) {
		w.Errorf("load is %v, %v; want an error with %q", l, err, words)
	}
}

// scripts counts how often the script was started.
func (w *loadWorld) scripts() int {
	w.fake.mu.Lock()
	defer w.fake.mu.Unlock()
	n := 0
	for _, c := range w.fake.commands {
		if c == loadScript {
			n++
		}
	}
	return n
}

// Guards against a login, or a process, per sample; against samples that come in
// too seldom; and against one that is left behind.
func TestLoadIsAskedOnOneChannelOfTheSameConnection(t *testing.T) {
	asked := 0
	inLoadWorld(t, loadProgram(func(n int) (string, bool) { asked = n; return steadyLoad(n) }), nil, func(w *loadWorld) {
		w.use()
		w.knows(1.5)
		if l, _, _ := w.pool.Load("b1"); l.Cores != 4 || l.MemoryAvailable != 500<<10 || l.DiskFree != 100<<10 || l.Pressure != nil || l.ClockAhead != 7*time.Second {
			w.Errorf("load is %+v", l)
		}
		time.Sleep(time.Hour)
		w.knows(1.5)
		if got := w.tellings(); got != "1.5" {
			w.Errorf("said %q", got)
		}
		if asked < 650 || asked > 800 {
			w.Errorf("asked %d times in an hour", asked)
		}
		if n, dials := w.scripts(), w.count(&w.fake.dialled); n != 1 || dials != 1 {
			w.Errorf("the script was started %d times on %d connections", n, dials)
		}
		if err := w.pool.Close(w.Context()); err != nil {
			w.Error(err)
		}
		synctest.Wait()
		if n := w.count(&w.fake.running); n != 0 {
			w.Errorf("%d programs are left", n)
		}
	})
}

// Guards against a builder that gets no builds, or a log that fills, because its
// account may not run a shell.
func TestBuilderThatCannotTellItsLoadIsUsed(t *testing.T) {
	endless := func(p *fakeProcess) uint32 {
		for {
			if _, err := io.WriteString(p, strings.Repeat("y\n", 512)); err != nil {
				return 1
			}
		}
	}
	for name, c := range map[string]struct {
		script program
		says   string
	}{
		"forced to be a daemon": {daemonOf(&fakeStore{}, worker.ServeOptions{}), "does not run a shell for account 'nixremote', which ended with status 1"},
		"no such command":       {nil, "status 127"},
		"nologin": {func(p *fakeProcess) uint32 {
			io.WriteString(p, "This account is currently not available.\n")
			return 1
		}, "This account is currently not available."},
		"other system":  {func(p *fakeProcess) uint32 { io.WriteString(p, "load FreeBSD\n"); return 0 }, "runs FreeBSD"},
		"garbage":       {func(p *fakeProcess) uint32 { io.WriteString(p, "\x00\x1b[2J\xff\n"); io.Copy(io.Discard, p); return 0 }, "makes no sense"},
		"endless":       {endless, "makes no sense"},
		"endless later": {loadProgram(func(n int) (string, bool) { return strings.Repeat("pressure cpu\n", 1000), true }), "more than 8192 bytes"},
		"silent":        {func(p *fakeProcess) uint32 { io.Copy(io.Discard, p); return 0 }, "within 10s"},
		"unasked":       {loadProgram(func(n int) (string, bool) { return loadText(n, "1.50") + "avg", true }), "more than it was asked"},
	} {
		t.Run(name, func(t *testing.T) {
			inLoadWorld(t, c.script, nil, func(w *loadWorld) {
				w.use()
				time.Sleep(time.Minute)
				w.knowsNot(c.says)
				if got := w.tellings(); !strings.Contains(got, c.says) || strings.Contains(got, "\n") {
					w.Errorf("said %q", got)
				}
				w.works(w.get())
				if n := w.scripts(); n != 1 {
					w.Errorf("the script was started %d times within a minute", n)
				}
				time.Sleep(59 * time.Minute)
				if n := w.scripts(); n < 5 || n > 7 {
					w.Errorf("the script was started %d times within an hour", n)
				}
				w.use()
				if got := w.said(); got != "" {
					w.Errorf("the builder's state became %q", got)
				}
			})
		})
	}
}

// Guards against a probe that takes the one session which a builder allows on a
// connection.
func TestLoadLeavesSessionsToBuilds(t *testing.T) {
	for sessions, probed := range map[int]bool{1: false, 2: true, 3: true} {
		t.Run(fmt.Sprint(sessions), func(t *testing.T) {
			inLoadWorld(t, loadProgram(steadyLoad), func(f *fakeBuilder, _ *target, _ *Options) { f.maxSessions = sessions }, func(w *loadWorld) {
				w.use()
				held := []*Session{w.get(), w.get(), w.get(), w.get()}
				for _, s := range held {
					w.works(s)
				}
				time.Sleep(time.Minute)
				if probed {
					w.knows(1.5)
				} else {
					w.knowsNot("one session on a connection")
				}
				for _, s := range held {
					s.Release()
				}
				time.Sleep(time.Hour)
				if got := w.said(); got != "" {
					w.Errorf("the builder's state became %q", got)
				}
				w.works(w.get())
			})
		})
	}
}

// The same where a builder begins to allow one session only while the probe has it.
func TestLoadMakesRoomForBuilds(t *testing.T) {
	inLoadWorld(t, loadProgram(steadyLoad), nil, func(w *loadWorld) {
		w.use()
		time.Sleep(5 * time.Minute) // no session is open any more
		w.knows(1.5)
		w.fake.set(func() { w.fake.maxSessions = 1 })
		s := w.get()
		w.works(s)
		synctest.Wait()
		w.knowsNot("one session on a connection")
		if got := w.tellings(); !strings.HasSuffix(got, errOneSession.Error()) {
			w.Errorf("said %q", got)
		}
		time.Sleep(time.Minute)
		if n := w.count(&w.fake.running); n != 2 { // the session and one for the next user
			w.Errorf("%d programs run", n)
		}
		s.Release()
	})
}

// Guards against a load of long ago that is taken for that of now, and against a
// builder that is taken for free because it is too busy to say that it is not.
func TestLateLoadIsToldFromUnknownLoad(t *testing.T) {
	var mu sync.Mutex
	stuck := false
	more := make(chan string, 1)
	inLoadWorld(t, nil, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[loadScript] = func(p *fakeProcess) uint32 {
			return loadProgram(func(n int) (string, bool) {
				mu.Lock()
				defer mu.Unlock()
				if stuck {
					more <- loadText(n, "9.00")
				}
				return loadText(n, "1.50"), !stuck
			})(p)
		}
	}, func(w *loadWorld) {
		w.use()
		time.Sleep(time.Minute)
		mu.Lock()
		stuck = true
		mu.Unlock()
		w.knows(1.5)
		time.Sleep(30 * time.Second)
		w.knowsNot(ErrLoadLate.Error())
		if _, _, err := w.pool.Load("b1"); !errors.Is(err, ErrLoadLate) {
			w.Errorf("error is %v", err)
		}
		if got := w.tellings(); !strings.HasPrefix(got, "1.5\ndoes not answer") || strings.Count(got, "\n") != 1 {
			w.Errorf("said %q", got)
		}
		<-more
		mu.Lock()
		stuck = false
		mu.Unlock()
		time.Sleep(5 * time.Minute) // it was given up, and asked anew
		w.knows(1.5)
		w.works(w.get())
	})
}

// Guards against a probe that is not there any more after its connection was lost,
// and against a builder that is found to be gone only by the next build.
func TestLoadIsAskedAgainAfterAReconnect(t *testing.T) {
	inLoadWorld(t, loadProgram(steadyLoad), nil, func(w *loadWorld) {
		w.use()
		w.fake.conn().Close()
		time.Sleep(20 * time.Second)
		w.knows(1.5)
		if n := w.scripts(); n != 2 {
			w.Errorf("the script was started %d times", n)
		}
		w.fake.set(func() { w.fake.unreachable = errors.New("no route") })
		w.fake.conn().Close()
		time.Sleep(20 * time.Second)
		if got := w.said(); got != "b1 down: no route" {
			w.Errorf("said %q", got)
		}
		w.knowsNot("cannot be asked")
		w.fake.set(func() { w.fake.unreachable = nil })
		time.Sleep(2 * time.Minute)
		w.knows(1.5)
		if got := w.tellings(); got != "1.5" {
			w.Errorf("said %q", got)
		}
	})
}

// Guards against a builder that never sleeps because it is always asked.
func TestPausedLoadLetsTheConnectionGo(t *testing.T) {
	inLoadWorld(t, loadProgram(steadyLoad), nil, func(w *loadWorld) {
		w.use()
		time.Sleep(time.Hour)
		if n := w.count(&w.fake.dialled); n != 1 {
			w.Fatalf("dialled %d times", n)
		}
		w.pool.PauseLoad("b1", true)
		w.knowsNot("is not asked")
		time.Sleep(time.Hour)
		w.fake.mu.Lock()
		open := len(w.fake.conns)
		w.fake.mu.Unlock()
		if open != 0 {
			w.Errorf("%d connections are open", open)
		}
		if got := w.tellings(); got != "1.5\nis not asked for its load" {
			w.Errorf("said %q", got)
		}
		w.pool.PauseLoad("b1", false)
		time.Sleep(time.Second)
		w.knows(1.5)
	})
}

// Guards against a change of the policy that counts only after a restart, or that
// cuts the builds which run.
func TestPolicyChangesHowTheLoadIsAsked(t *testing.T) {
	inLoadWorld(t, loadProgram(steadyLoad), nil, func(w *loadWorld) {
		s := w.get()
		tgt := *w.pool.builders["b1"].target
		change := func(wish loadWish) {
			next := tgt
			next.load = wish
			w.pool.update([]*target{&next})
		}
		change(loadWish{off: true})
		synctest.Wait()
		w.knowsNot("is not asked")
		change(loadWish{every: time.Minute})
		synctest.Wait()
		w.knows(1.5)
		time.Sleep(3 * time.Minute)
		w.knows(1.5)
		w.works(s)
		if n := w.count(&w.fake.dialled); n != 1 {
			w.Errorf("dialled %d times", n)
		}
		s.Release()
	})
}

// Guards against a builder's daemon at a socket of this machine whose load is not
// seen, and against figures of another machine.
func TestLoadOfThisMachine(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only on Linux")
	}
	told := make(chan error, 8)
	d := startDaemon(t, nil)
	pool := NewPool(Options{LoadEvery: time.Hour, OnLoad: func(_ string, l Load, err error) {
		if err == nil && (l.Cores < 1 || l.MemoryTotal < 1<<20) {
			err = fmt.Errorf("load is %+v", l)
		}
		told <- err
	}})
	defer pool.Close(t.Context())
	pool.Update([]policy.Builder{{Name: "here", Socket: d.socket, MaxJobs: 1}})
	s, err := pool.Get(t.Context(), "here")
	if err != nil {
		t.Fatal(err)
	}
	s.Release()
	if err := <-told; err != nil && !strings.Contains(err.Error(), "/nix/store") { // which need not be here
		t.Error(err)
	}
}

// Guards against a script that a real shell does not understand, that needs an
// environment, that outlives its input, or that the account's own shell could
// take for more than one word.
func TestLoadScriptRunsInARealShell(t *testing.T) {
	inner, _ := strings.CutPrefix(loadScript, "exec /bin/sh -c '")
	inner, closed := strings.CutSuffix(inner, "'")
	if !closed || strings.ContainsAny(inner, "'\\!\n") {
		t.Fatalf("the script is not one word for every shell: %q", loadScript)
	}
	if runtime.GOOS != "linux" {
		t.Skip("only on Linux")
	}
	script := strings.ReplaceAll(loadScript, "/nix/store", "/")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.Env = []string{}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := newLoadReader(out)
	for n := 1; n <= 3; n++ {
		a := ask(in, read, n)
		if a.err != nil || a.sample.Cores < 1 || a.sample.MemoryAvailable == 0 || a.sample.DiskFree == 0 {
			t.Fatalf("answer %d is %+v, %v", n, a.sample, a.err)
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("after the end of its input: %v", err)
	}
}
