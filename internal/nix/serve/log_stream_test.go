package serve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
)

// lineLogger logs lines of a build.
func logLine(log nix.Logger, line string) {
	log.Log(nix.LogMessage{Kind: nix.LogResult, ID: 1, Type: nix.ResultBuildLogLine, Fields: []nix.LogField{nix.TextField(line)}})
}

// stuckWriter takes nothing until it is opened or broken.
type stuckWriter struct {
	open   chan struct{}
	broken chan struct{}

	mu    sync.Mutex
	heard bytes.Buffer
}

func newStuckWriter() *stuckWriter {
	return &stuckWriter{open: make(chan struct{}), broken: make(chan struct{})}
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	select {
	case <-w.open:
	case <-w.broken:
		return 0, io.ErrClosedPipe
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard.Write(p)
}

// Guards against phases and activities, which people would read in the log of
// their build, and against lines of it being lost or joined.
func TestLogIsTheTextOfABuild(t *testing.T) {
	var heard bytes.Buffer
	l := newLogStream(context.Background(), &heard)
	for _, m := range someMessages {
		l.Log(m)
	}
	l.close(context.Background())
	same(t, "text", heard.String(), someText)
}

// Guards against a client that does not read its log and has the memory of the
// proxy for it, or the reply before the log.
func TestLogOfASlowClientIsBoundedAndComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stderr, store := newStuckWriter(), newMemStore()
		line := strings.Repeat("x", 1023)
		logged := 0
		store.build = func(_ context.Context, log nix.Logger) (*nix.BuildResult, error) {
			for range 4096 {
				logLine(log, line)
				logged++
			}
			return someResult(), nil
		}
		c := connect(t, store, ServeOptions{Write: true, Stderr: stderr}).greet()
		c.askUsual(cmdBuildDerivation)
		synctest.Wait()
		if most := 2*logBacklog/1024 + 2; logged > most || logged < most/2 {
			t.Errorf("%d lines of 1 KiB wait for a client that does not read", logged)
		}
		close(stderr.open)
		c.readBuildResult()
		check(t, "read the result", c.r.Err())
		same(t, "log in front of the reply", stderr.heard.String() == strings.Repeat(line+"\n", 4096), true)
		c.Close()
		<-c.done
	})
}

// Guards against a reply that waits for ever: a client that does not read its
// log and leaves, of which the stream of the log itself says nothing.
func TestHangUpEndsTheWaitForASlowClient(t *testing.T) {
	for name, lines := range map[string]int{"build waits": 4096, "reply waits": 1} {
		synctest.Test(t, func(t *testing.T) {
			stderr, store := newStuckWriter(), newMemStore()
			store.build = func(ctx context.Context, log nix.Logger) (*nix.BuildResult, error) {
				for range lines {
					logLine(log, strings.Repeat("x", 1023))
				}
				return someResult(), ctx.Err()
			}
			c := connect(t, store, ServeOptions{Write: true, Stderr: stderr}).greet()
			c.askUsual(cmdBuildDerivation)
			synctest.Wait()
			c.Close()
			if err := <-c.done; !errors.Is(err, ErrHangUp) {
				t.Errorf("%s: serve: %v", name, err)
			}
			close(stderr.broken) // as the owner does after Serve
		})
	}
}

// Guards against a log that nobody can read any more stopping a build.
func TestBrokenLogStopsNothing(t *testing.T) {
	stderr, store := newStuckWriter(), storeWithPaths()
	close(stderr.broken)
	store.build = func(_ context.Context, log nix.Logger) (*nix.BuildResult, error) {
		for range 4096 {
			logLine(log, strings.Repeat("x", 1023))
		}
		return someResult(), nil
	}
	c := connect(t, store, ServeOptions{Write: true, Stderr: stderr}).greet()
	c.askUsual(cmdBuildDerivation)
	c.readBuildResult()
	c.expectUsable(t)
}

// Guards against a dead-lock with a client that reads its log only when its
// upload is through, and against lines that vanish without a word.
func TestLogNeverBlocksAnUpload(t *testing.T) {
	stderr, store := newStuckWriter(), storeWithPaths()
	store.add = func(_ context.Context, log nix.Logger, src nix.PathSource) error {
		for range 4096 {
			nix.Line(log, strings.Repeat("x", 1023))
		}
		close(stderr.open)
		_, _, err := src.Next()
		return err
	}
	c := connect(t, store, ServeOptions{Write: true, Stderr: stderr}).greet()
	c.askUsual(cmdAddToStoreNar)
	c.r.Expect("the reply", 1)
	if !strings.HasSuffix(stderr.heard.String(), " log messages were dropped during the upload\n") {
		t.Errorf("log ends with %q", stderr.heard.String()[max(0, stderr.heard.Len()-100):])
	}
	c.expectUsable(t)
}

// Guards against a refused upload that is never told, because its log waits for
// a client that waits for its upload.
func TestRefusalOfAnUploadDoesNotWaitForItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stderr, store := newStuckWriter(), newMemStore()
		store.add = func(_ context.Context, log nix.Logger, _ nix.PathSource) error {
			nix.Line(log, "a line")
			return nix.Refuse("quota exceeded")
		}
		c := connect(t, store, ServeOptions{Write: true, Stderr: stderr}).greet()
		start := time.Now()
		c.w.Uint64(uint64(cmdAddToStoreNar))
		c.w.ValidPathInfo(somePaths()[1].Info)
		c.w.Flush()
		if err := <-c.done; err == nil || err.Error() != "quota exceeded" || time.Since(start) > lastWords {
			t.Errorf("serve: %v after %s", err, time.Since(start))
		}
		close(stderr.broken)
	})
}

// Guards against a packet per log line.
func TestManyLogLinesShareFewPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &slowWriter{}
		l := newLogStream(context.Background(), w)
		const lines = 10_000
		for range lines {
			logLine(l, "line")
		}
		l.close(context.Background())
		if w.writes > lines/100 || w.bytes != lines*len("line\n") {
			t.Errorf("%d packets with %d bytes for %d lines", w.writes, w.bytes, lines)
		}
	})
}

// slowWriter needs a moment for each packet.
type slowWriter struct{ writes, bytes int }

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(time.Millisecond) // on the test's clock
	w.writes++
	w.bytes += len(p)
	return len(p), nil
}

// Guards against a line that waits for the next one while a build is silent.
func TestSingleLogLineLeavesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stderr, store := newStuckWriter(), newMemStore()
		close(stderr.open)
		store.build = func(ctx context.Context, log nix.Logger) (*nix.BuildResult, error) {
			nix.Line(log, "waiting for a builder")
			<-ctx.Done()
			return nil, ctx.Err()
		}
		c := connect(t, store, ServeOptions{Write: true, Stderr: stderr}).greet()
		c.askUsual(cmdBuildDerivation)
		synctest.Wait()
		same(t, "log", stderr.heard.String(), "waiting for a builder\n")
		c.Close()
		<-c.done
	})
}

// Guards against text between two commands, which would become part of the log
// of the next build.
func TestLogAfterTheCommandIsDropped(t *testing.T) {
	store := newMemStore()
	var kept nix.Logger
	store.build = func(_ context.Context, log nix.Logger) (*nix.BuildResult, error) {
		kept = log
		return someResult(), nil
	}
	c := dial(t, store, ClientOptions{}, ServeOptions{Write: true})
	_, err := c.BuildDerivation(context.Background(), nil, pathNamed("x.drv"), someDerivation(), nix.BuildNormal)
	check(t, "build", err)
	nix.Line(kept, "too late")
	check(t, "serve", c.hangUp())
	same(t, "log", c.stderr.String(), "")
}

// Guards against lines of several goroutines cut into each other.
func TestLogTakesManyGoroutines(t *testing.T) {
	var heard bytes.Buffer
	l := newLogStream(context.Background(), &heard)
	line := strings.Repeat("x", 100)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 2000 {
				logLine(l, line)
			}
		})
	}
	wg.Wait()
	l.close(context.Background())
	same(t, "log is whole", heard.String() == strings.Repeat(line+"\n", 8000), true)
}
