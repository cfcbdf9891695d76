package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/serve"
	"nixbastion/internal/nix/worker"
	"nixbastion/policy"
)

const serveCommand = "nix-store --serve --write"

// serveOf is a program that serves a store over the serve protocol, and ends as
// Nix does.
func serveOf(store nix.Store) program {
	return func(p *fakeProcess) uint32 {
		err := serve.Serve(context.Background(), p, store, serve.ServeOptions{Write: true, Stderr: p.Stderr()})
		if err != nil {
			fmt.Fprintf(p.Stderr(), "error: %v\n", err)
			return 1
		}
		return 0
	}
}

// inServeWorld is inWorld with a builder that is spoken to by the serve protocol.
// Prepare returns what its program builds; the process is that of the session.
func inServeWorld(t *testing.T, prepare func(*fakeBuilder, *target, *Options), build func(p *fakeProcess) (*nix.BuildResult, error), test func(w *world)) {
	inWorld(t, func(f *fakeBuilder, tgt *target, opts *Options) {
		tgt.protocol = policy.ProtocolServe
		f.programs = map[string]program{serveCommand: func(p *fakeProcess) uint32 {
			store := &fakeStore{build: func(context.Context, nix.Logger) (*nix.BuildResult, error) { return build(p) }}
			if build == nil {
				store.build = nil
			}
			return serveOf(store)(p)
		}}
		if prepare != nil {
			prepare(f, tgt, opts)
		}
	}, test)
}

// logBook keeps the messages of a log.
type logBook struct {
	mu       sync.Mutex
	messages []nix.LogMessage
}

func (l *logBook) Log(m nix.LogMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.messages = append(l.messages, m)
}

// lines returns the lines of builds, and forgets everything.
func (l *logBook) lines() (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.messages {
		if m.Type == nix.ResultBuildLogLine {
			lines = append(lines, m.Fields[0].Text)
		}
	}
	l.messages = nil
	return lines
}

// build has some derivation built.
func (w *world) build(ctx context.Context, s *Session, log nix.Logger) error {
	w.Helper()
	result, err := s.BuildDerivation(ctx, log, somePaths(1)[0], &nix.BasicDerivation{}, nix.BuildNormal)
	if err == nil && result.Status != nix.StatusBuilt {
		w.Errorf("result is %+v", result)
	}
	return err
}

func built() (*nix.BuildResult, error) { return &nix.BuildResult{Status: nix.StatusBuilt}, nil }

// Guards against a builder with `protocol: ssh` that is asked what it has no
// words for, is started anew for every build, or holds no temporary roots.
func TestServeBuilderWorks(t *testing.T) {
	var store *fakeStore
	inWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) {
		tgt.protocol = policy.ProtocolServe
		store = &fakeStore{build: func(context.Context, nix.Logger) (*nix.BuildResult, error) { return built() }}
		f.programs = map[string]program{serveCommand: serveOf(store)}
	}, func(w *world) {
		r, err := w.pool.Check(w.Context(), "b1")
		if err != nil {
			w.Fatal(err)
		}
		if r.Command != serveCommand || r.Protocol != "2.7" || r.Nix != "2.4 or newer" || r.Trust != nix.TrustUnknown {
			w.Errorf("report: %+v", r)
		}
		w.get().Release()
		synctest.Wait()
		started := len(w.fake.commands)
		for range 3 {
			s := w.get()
			if err := s.AddTempRoots(w.Context(), somePaths(5)); err != nil {
				w.Error(err)
			}
			w.works(s)
			if err := w.build(w.Context(), s, nix.Discard); err != nil {
				w.Error(err)
			}
			s.Release()
		}
		synctest.Wait()
		if n := len(w.fake.commands); n != started {
			w.Errorf("started %d programs more", n-started)
		}
		if len(store.roots) != 15 {
			w.Errorf("%d temporary roots, want 15", len(store.roots))
		}
	})
}

// Guards against a question that ends the session because the protocol does not
// know it.
func TestServeBuilderRefusesWhatItHasNoWordsFor(t *testing.T) {
	inServeWorld(t, nil, nil, func(w *world) {
		s := w.get()
		_, all := s.QueryAllValidPaths(w.Context())
		_, missing := s.QueryMissing(w.Context(), nil)
		_, outputs := s.QueryDerivationOutputMap(w.Context(), somePaths(1)[0])
		_, check := s.BuildDerivation(w.Context(), nix.Discard, somePaths(1)[0], &nix.BasicDerivation{}, nix.BuildCheck)
		_, results := s.BuildPathsWithResults(w.Context(), nix.Discard, nil, nix.BuildNormal)
		_, added := s.AddToStore(w.Context(), nix.Discard, nix.AddToStoreRequest{}, strings.NewReader(""))
		for what, err := range map[string]error{"all paths": all, "missing": missing, "outputs": outputs, "check": check, "results": results, "add": added} {
			var refusal *nix.UserError
			if !errors.As(err, &refusal) || Broken(err) || !strings.Contains(err.Error(), "serve protocol") {
				w.Errorf("%s: %v", what, err)
			}
		}
		w.works(s)
	})
}

// Guards against logs that clients do not keep, that lack their end, that hold
// lines of any length, or that have what was not said by the build.
func TestServeBuildLogIsThatOfAnActivity(t *testing.T) {
	long := strings.Repeat("x", 2*maxLogLine+5)
	inServeWorld(t, nil, func(p *fakeProcess) (*nix.BuildResult, error) {
		io.WriteString(p.Stderr(), "one\n\ntwo\r\n"+long+"\nno end")
		return built()
	}, func(w *world) {
		s := w.get()
		for i := range uint64(2) {
			var log logBook
			if err := w.build(w.Context(), s, &log); err != nil {
				w.Fatal(err)
			}
			start, stop := log.messages[0], log.messages[len(log.messages)-1]
			fields := []nix.LogField{nix.TextField(somePaths(1)[0].String()), nix.TextField(""), nix.IntField(1), nix.IntField(1)}
			if start.Kind != nix.LogStartActivity || start.Type != nix.ActivityBuild || start.ID != i+1 || fmt.Sprint(start.Fields) != fmt.Sprint(fields) {
				w.Errorf("log begins with %+v", start)
			}
			if stop.Kind != nix.LogStopActivity || stop.ID != start.ID {
				w.Errorf("log ends with %+v", stop)
			}
			for _, m := range log.messages[1 : len(log.messages)-1] {
				if m.ID != start.ID || m.Kind != nix.LogResult {
					w.Errorf("message %+v", m)
				}
			}
			want := []string{"one", "", "two\r", long[:maxLogLine], long[:maxLogLine], "xxxxx", "no end"}
			if got := log.lines(); fmt.Sprint(got) != fmt.Sprint(want) {
				w.Errorf("lines are %.50q", got)
			}
		}
	})
}

// Guards against a log without its last lines: sshd may send an answer before
// the log that was written ahead of it, which then comes a piece a turn.
func TestServeLogThatTrailsItsAnswer(t *testing.T) {
	const pieces = 5
	var left atomic.Int32
	inServeWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		read := "" // in the turn in which the last request came; sent in some later one
		f.onRequest = func(p *fakeProcess, req *ssh.Request) {
			io.WriteString(p.Stderr(), read)
			req.Reply(false, nil)
			read = ""
			if n := left.Add(-1); n >= 0 {
				read = fmt.Sprintf("%d left\n", n)
			}
		}
	}, func(p *fakeProcess) (*nix.BuildResult, error) {
		left.Store(pieces)
		io.WriteString(p.Stderr(), "begin\n")
		return built()
	}, func(w *world) {
		s := w.get()
		for range 50 {
			var log logBook
			if err := w.build(w.Context(), s, &log); err != nil {
				w.Fatal(err)
			}
			if got := log.lines(); len(got) != pieces+1 || got[pieces] != "0 left" {
				w.Fatalf("lines are %q", got)
			}
		}
	})
}

// Guards against the log of one build that begins with what was said after the
// one before, or while nobody built.
func TestServeTextBetweenBuildsIsNobodysLog(t *testing.T) {
	var session *fakeProcess
	inServeWorld(t, nil, func(p *fakeProcess) (*nix.BuildResult, error) {
		session = p
		return built()
	}, func(w *world) {
		s := w.get()
		for range 2 {
			var log logBook
			if err := w.build(w.Context(), s, &log); err != nil {
				w.Fatal(err)
			}
			if got := log.lines(); len(got) > 0 {
				w.Errorf("lines are %q", got)
			}
			io.WriteString(session.Stderr(), "warning: nobody listens\n")
			synctest.Wait()
		}
	})
}

// Guards against a build that hangs after its end because a builder does not
// answer, and against the next user being given its late answers.
func TestServeBuilderThatIsDeafOnItsChannel(t *testing.T) {
	inServeWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.onRequest = func(*fakeProcess, *ssh.Request) {}
	}, func(*fakeProcess) (*nix.BuildResult, error) { return built() }, func(w *world) {
		s := w.get()
		started := time.Now()
		if err := w.build(w.Context(), s, nix.Discard); err != nil {
			w.Error(err)
		}
		if took := time.Since(started); took > settleTime {
			w.Errorf("took %s", took)
		}
		p := s.d.process.(*remoteProcess)
		s.Release()
		synctest.Wait()
		if !isClosed(p.left) {
			w.Error("session was kept")
		}
	})
}

// Guards against a cancelled build that waits for the rest of its log.
func TestServeBuildIsCancelledAtOnce(t *testing.T) {
	inServeWorld(t, nil, nil, func(w *world) {
		s := w.get()
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		started := time.Now()
		if err := w.build(ctx, s, nix.Discard); !errors.Is(err, context.DeadlineExceeded) || Broken(err) {
			w.Errorf("build: %v", err)
		}
		if err := s.End(w.Context()); err != nil {
			w.Errorf("end: %v", err)
		}
		if took := time.Since(started); took > 2*time.Second {
			w.Errorf("took %s", took)
		}
	})
}

// Guards against taking our own words for a sign that the builder has begun.
func TestServeBuildIsGivenUpWhenItMayHaveBegun(t *testing.T) {
	inServeWorld(t, nil, nil, func(w *world) {
		s := w.get()
		ctx, cancel := context.WithTimeout(w.Context(), heedTimeout/10)
		defer cancel()
		asked := time.Now()
		if err := w.build(ctx, s, nix.Discard); err != ctx.Err() {
			w.Errorf("build: %v", err)
		}
		if took := time.Since(asked); took < heedTimeout {
			w.Errorf("it was ended %s after it was asked for", took)
		}
	})
}

// Guards against a reason that only the builder's standard error has being lost,
// or buried in the log; against a missing trust that looks like a broken builder;
// and against trying again where the answer will be the same.
func TestServeProgramThatGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		said   string
		status uint32
		kind   Kind
		words  []string
	}{
		"not trusted": {"error: you are not privileged to build input-addressed derivations\n", 1, Untrusted,
			[]string{"you are not privileged", "account 'nixremote' on builder 'b1'", "trusted-users"}},
		"unsigned": {"error: cannot add path '/nix/store/x' because it lacks a signature by a trusted key\n", 1, Untrusted,
			[]string{"lacks a signature", "trusted-users"}},
		"unsigned before 2.4": {"error: cannot add path '/nix/store/x' because it lacks a valid signature\n", 1, Untrusted,
			[]string{"lacks a valid signature", "trusted-users"}},
		"not for writing":     {"error: building paths is not allowed\n", 1, Untrusted, []string{"nix-store --serve --write"}},
		"something else":      {"error: no space\n  left\n", 1, Refused, []string{"'nix-store --serve --write' gave up BuildDerivation: error: no space left"}},
		"its daemon is gone":  {"error: unexpected end-of-file\n", 1, Lost, []string{"status 1", "unexpected end-of-file"}},
		"killed":              {"", 137, Lost, []string{"status 137"}},
		"nothing at all":      {"", 1, Lost, []string{"status 1"}},
		"two errors, the one": {"error: the first\nerror: the second\n", 1, Refused, []string{"BuildDerivation: error: the second"}},
	} {
		t.Run(name, func(t *testing.T) {
			inServeWorld(t, nil, func(p *fakeProcess) (*nix.BuildResult, error) {
				io.WriteString(p.Stderr(), "a line of the log\n"+c.said)
				p.exit(c.status)
				p.Close()
				return nil, errors.New("dead")
			}, func(w *world) {
				s := w.get()
				var log logBook
				err := w.build(w.Context(), s, &log)
				w.isFault(err, c.kind, c.words...)
				if strings.Contains(err.Error(), "a line of the log") && strings.Contains(c.said, "error:") {
					w.Errorf("error repeats the log: %v", err)
				}
				if got := log.lines(); len(got) == 0 || got[0] != "a line of the log" {
					w.Errorf("lines are %q", got)
				}
				if err := s.End(w.Context()); err != nil {
					w.Errorf("end: %v", err)
				}
			})
		})
	}
}

// Guards against the log of one build as the reason why the next one broke.
func TestServeFailureIsNotExplainedByAnOldLog(t *testing.T) {
	builds := 0
	inServeWorld(t, nil, func(p *fakeProcess) (*nix.BuildResult, error) {
		if builds++; builds == 1 {
			io.WriteString(p.Stderr(), "error: what a test wants to see\n")
			return built()
		}
		p.exit(1)
		p.Close()
		return nil, errors.New("dead")
	}, func(w *world) {
		s := w.get()
		if err := w.build(w.Context(), s, nix.Discard); err != nil {
			w.Fatal(err)
		}
		err := w.build(w.Context(), s, nix.Discard)
		w.isFault(err, Lost, "status 1")
		if strings.Contains(err.Error(), "wants to see") {
			w.Errorf("error is explained by the log before: %v", err)
		}
	})
}

// Guards against a daemon that tells nothing of trust and refuses our builds one
// by one: another builder may take them.
func TestRefusalOfTheAccountIsTheBuildersFault(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[daemonCommand] = daemonOf(&fakeStore{build: func(context.Context, nix.Logger) (*nix.BuildResult, error) {
			return nil, nix.Refuse("you are not privileged to build derivations")
		}}, worker.ServeOptions{})
	}, func(w *world) {
		w.isFault(w.build(w.Context(), w.get(), nix.Discard), Untrusted, "not privileged", "'nixremote'", "trusted-users")
	})
}

// Guards against builders that are found with one protocol and not with the
// other.
func TestServeProgramIsFound(t *testing.T) {
	const elsewhere = "/nix/var/nix/profiles/default/bin/nix-store --serve --write"
	inServeWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[elsewhere] = f.programs[serveCommand]
		delete(f.programs, serveCommand)
	}, nil, func(w *world) { w.works(w.get()) })
	inServeWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) { tgt.program = "/opt/bin/nix-store" }, nil, func(w *world) {
		w.refused(Protocol, "'/opt/bin/nix-store --serve --write'", "not found")
	})
}

// Guards against a forced command of the other protocol being a riddle.
func TestProtocolOfTheOtherKindIsRecognised(t *testing.T) {
	mismatch := func(p *fakeProcess) uint32 {
		io.ReadFull(p, make([]byte, 8))
		io.WriteString(p.Stderr(), "error: protocol mismatch\n")
		return 1
	}
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.programs[daemonCommand] = mismatch }, func(w *world) {
		w.refused(Protocol, "protocol mismatch", "protocol: ssh")
	})
	inServeWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.programs[serveCommand] = mismatch }, nil, func(w *world) {
		w.refused(Protocol, "protocol mismatch", "protocol: ssh-ng")
	})
}

// Guards against Nix 2.3, which nix-daemon cannot be used of, being refused here,
// too, and against one that tells nothing of hashes being taken.
func TestServeVersions(t *testing.T) {
	version := func(v uint64) program {
		return func(p *fakeProcess) uint32 {
			io.ReadFull(p, make([]byte, 16))
			p.Write(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 0x5452eecb), v))
			io.Copy(io.Discard, p)
			return 0
		}
	}
	inServeWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.programs[serveCommand] = version(2<<8 | 5) }, nil, func(w *world) {
		r, err := w.pool.Check(w.Context(), "b1")
		if err != nil || r.Protocol != "2.5" || r.Nix != "older than 2.4" {
			w.Errorf("report: %+v, %v", r, err)
		}
	})
	inServeWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.programs[serveCommand] = version(2<<8 | 3) }, nil, func(w *world) {
		w.refused(TooOld, "2.3", "2.4")
	})
}

// Guards against sessions of one protocol being given out when the policy names
// the other.
func TestProtocolIsAnotherWay(t *testing.T) {
	ng := newTarget(&policy.Builder{Name: "b1", Address: "b1:22"})
	plain := newTarget(&policy.Builder{Name: "b1", Address: "b1:22", Protocol: policy.ProtocolServe})
	if ng.sameAs(plain) || !plain.sameAs(newTarget(&policy.Builder{Name: "b1", Address: "b1:22", Protocol: policy.ProtocolServe})) {
		t.Error("the protocol is not looked at")
	}
}

// Guards against lines that depend on how the builder's packets cut them.
func FuzzBuildLines(f *testing.F) {
	f.Add([]byte("one\ntwo"), 3)
	f.Add([]byte("\n\n"), 1)
	f.Add([]byte(strings.Repeat("x", maxLogLine)+"\n"), maxLogLine)
	f.Add([]byte(strings.Repeat("x", 2*maxLogLine+1)), maxLogLine-1)
	f.Fuzz(func(t *testing.T, text []byte, piece int) {
		lines := func(piece int) []string {
			var log logBook
			l := startBuildLines(&log, 1, nix.StorePath{})
			for rest := text; len(rest) > 0; {
				n := min(piece, len(rest))
				l.Write(rest[:n])
				rest = rest[n:]
			}
			l.stop()
			return log.lines()
		}
		whole := lines(max(len(text), 1))
		if got := lines(max(piece, 1)); fmt.Sprint(got) != fmt.Sprint(whole) {
			t.Errorf("%d lines in pieces of %d, %d in one", len(got), piece, len(whole))
		}
		for _, line := range whole {
			if len(line) > maxLogLine || strings.Contains(line, "\n") {
				t.Errorf("a line of %d bytes", len(line))
			}
		}
		if got := strings.ReplaceAll(strings.Join(whole, ""), "\n", ""); got != strings.ReplaceAll(string(text), "\n", "") {
			t.Error("bytes are lost")
		}
	})
}
