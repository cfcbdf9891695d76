package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
)

// Guards against a man in the middle, who would get all inputs and could make up
// outputs.
func TestWrongHostKeyIsRefused(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, tgt *target, _ *Options) {
		tgt.hostKeys = []ssh.PublicKey{testKey("other").PublicKey()}
	}, func(w *world) {
		w.refused(HostKey, "not on file", ssh.FingerprintSHA256(w.fake.hostKey.PublicKey()), "ssh-keyscan b1.example.org")
		if n := len(w.fake.commands); n != 0 {
			w.Errorf("ran %d commands there", n)
		}
	})
}

// Guards against a target without keys being one that takes any key.
func TestNoHostKeyOnFileIsRefused(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, tgt *target, _ *Options) { tgt.hostKeys = nil }, func(w *world) {
		w.refused(HostKey, "no host key is on file")
		if n := w.count(&w.fake.dialled); n != 0 {
			w.Errorf("dialled %d times", n)
		}
	})
}

// Guards against the account and key that an admin has to fix not being named.
func TestRefusedLoginNamesAccountAndKey(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.authorized = testKey("other").PublicKey() }, func(w *world) {
		w.refused(Auth, "'nixremote'", "authorized_keys", w.pool.builders["b1"].target.identity.file)
	})
}

// Guards against a key that is exchanged and used only after a restart.
func TestIdentityFileIsReadAgainWhenItChanges(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, tgt *target, opts *Options) {
		writeKey(t, tgt.identity.file, "former client")
	}, func(w *world) {
		w.refused(Auth)
		file := w.pool.builders["b1"].target.identity.file
		writeKey(w, file, "client")
		if err := os.Chtimes(file, time.Time{}, time.Now().Add(time.Hour)); err != nil {
			w.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.get().Release()
		if err := os.Remove(file); err != nil {
			w.Fatal(err)
		}
		w.get().Release() // on the connection that exists
	})
}

// Guards against a port that answers and says nothing taking a build's time.
func TestSilentServerIsGivenUp(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.mute = true }, func(w *world) {
		started := time.Now()
		w.refused(Unreachable, "does not finish the ssh handshake")
		if d := time.Since(started); d > 10*time.Second {
			w.Errorf("took %s", d)
		}
	})
}

// Guards against "broken pipe" as the only word about a login message on
// standard output.
func TestTextBeforeTheProtocolIsQuoted(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[daemonCommand] = func(p *fakeProcess) uint32 {
			io.WriteString(p, "Welcome to b1!\n")
			return 0
		}
	}, func(w *world) {
		w.refused(Protocol, `"Welcome to b1!\n"`, "login message")
	})
}

// Guards against a builder whose sshd gives a PATH without Nix, as most do that
// were not prepared.
func TestNixIsFoundOutsideThePath(t *testing.T) {
	const elsewhere = "/nix/var/nix/profiles/default/bin/nix-daemon --stdio"
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[elsewhere] = f.programs[daemonCommand]
		delete(f.programs, daemonCommand)
	}, func(w *world) {
		w.get().Release()
		synctest.Wait()
		tried := len(w.fake.commands)
		w.get()
		w.get()
		synctest.Wait()
		for _, command := range w.fake.commands[tried:] {
			if command != elsewhere {
				w.Errorf("tried %q again", command)
			}
		}
	})
}

// Guards against an endless search, and against an error that tells of the last
// place only.
func TestMissingNixIsReported(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.programs = nil }, func(w *world) {
		w.refused(Protocol, "'nix-daemon --stdio'", "status 127", "not found")
		if n := len(w.fake.commands); n != 1+len(profilePaths) {
			w.Errorf("tried %d commands", n)
		}
	})
}

// Guards against a configured program being second-guessed.
func TestConfiguredProgramIsTheOnlyOneTried(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) { tgt.program = "/opt/nix/bin/nix-daemon" }, func(w *world) {
		w.refused(Protocol, "'/opt/nix/bin/nix-daemon --stdio'", "not found")
		if n := len(w.fake.commands); n != 1 {
			w.Errorf("tried %q", w.fake.commands)
		}
	})
}

// Guards against builds on a builder that would refuse our uploads in the middle.
func TestUntrustedAccountIsNamed(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[daemonCommand] = daemonOf(&fakeStore{}, worker.ServeOptions{Trust: nix.NotTrusted})
	}, func(w *world) {
		w.refused(Untrusted, "account 'nixremote' on builder 'b1' (b1.example.org:22) must be in trusted-users of its nix.conf")
	})
}

// Guards against a half-understood conversation with Nix before 2.4.
func TestOldDaemonIsRefused(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[daemonCommand] = func(p *fakeProcess) uint32 {
			hello := make([]byte, 16)
			io.ReadFull(p, hello)
			p.Write(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 0x6478696f), 1<<8|31))
			io.Copy(io.Discard, p)
			return 0
		}
	}, func(w *world) {
		w.refused(TooOld, "1.31", "Nix 2.4")
	})
}

// Guards against a daemon that is started and never answers.
func TestSilentDaemonIsGivenUp(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[daemonCommand] = func(p *fakeProcess) uint32 {
			io.Copy(io.Discard, p)
			return 0
		}
	}, func(w *world) {
		started := time.Now()
		w.refused(Unreachable, "no answer from 'nix-daemon --stdio'")
		if d := time.Since(started); d > 10*time.Second {
			w.Errorf("took %s", d)
		}
	})
}

// Guards against an sshd with a small MaxSessions failing every build above it.
func TestSmallMaxSessionsIsLearned(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) {
		f.maxSessions, tgt.maxJobs = 2, 10
	}, func(w *world) {
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				s, err := w.pool.Get(w.Context(), "b1")
				if err != nil {
					w.Errorf("get: %v", err)
					return
				}
				w.works(s)
				time.Sleep(time.Second)
				s.Release()
			})
		}
		all.Wait()
		if w.said() != "" {
			w.Errorf("builder is called %s", w.said())
		}
		b := w.pool.builders["b1"]
		if b.channels != 2 {
			w.Errorf("learned %d sessions per connection, want 2", b.channels)
		}
	})
}

// Guards against a try that goes round and round.
func TestNoSessionsAtAllIsReported(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.maxSessions = -1 }, func(w *world) {
		w.refused(Protocol, "MaxSessions")
	})
}

// Guards against a build that hangs, or fails for good, when the network does.
func TestConnectionCutInAnOperation(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		s := w.get()
		time.AfterFunc(time.Second, func() { w.fake.conn().Close() })
		_, err := s.BuildDerivation(w.Context(), nix.Discard, somePaths(1)[0], &nix.BasicDerivation{}, nix.BuildNormal)
		w.isFault(err, Lost, "connection lost")
		if err := s.End(w.Context()); !errors.Is(err, ErrNotSeenToEnd) {
			w.Errorf("end: %v", err)
		}
		synctest.Wait()
		w.works(w.get()) // on a new connection, at once
	})
}

// Guards against the builder's own words being lost when its daemon dies.
func TestDaemonThatDiesInAnOperation(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[daemonCommand] = func(p *fakeProcess) uint32 {
			store := &fakeStore{build: func(context.Context, nix.Logger) (*nix.BuildResult, error) {
				io.WriteString(p.Stderr(), "error: out of \x1b[31mmemory\n")
				p.exit(137)
				p.Close()
				return nil, errors.New("dead")
			}}
			return daemonOf(store, worker.ServeOptions{})(p)
		}
	}, func(w *world) {
		s := w.get()
		_, err := s.BuildDerivation(w.Context(), nix.Discard, somePaths(1)[0], &nix.BasicDerivation{}, nix.BuildNormal)
		w.isFault(err, Lost, "out of [31mmemory", "status 137")
		if err := s.End(w.Context()); err != nil {
			w.Errorf("the exit was reported, but: %v", err)
		}
	})
}

// Guards against a failure that the daemon reports being taken for the builder's.
func TestReportedErrorIsNotTheBuildersFault(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[daemonCommand] = daemonOf(&fakeStore{build: func(context.Context, nix.Logger) (*nix.BuildResult, error) {
			return nil, nix.Refuse("no such platform")
		}}, worker.ServeOptions{})
	}, func(w *world) {
		s := w.get()
		d := s.d
		_, err := s.BuildDerivation(w.Context(), nix.Discard, somePaths(1)[0], &nix.BasicDerivation{}, nix.BuildNormal)
		var remote *nix.RemoteError
		if !errors.As(err, &remote) || Broken(err) {
			w.Errorf("error %v is the builder's: %t", err, Broken(err))
		}
		s.Release()
		if isClosed(d.process.(*remoteProcess).closing) {
			w.Error("session was not kept")
		}
	})
}

// Guards against builds that run on after their client has gone.
func TestCancelledOperationEndsItsSession(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		s := w.get()
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		started := time.Now()
		_, err := s.BuildDerivation(ctx, nix.Discard, somePaths(1)[0], &nix.BasicDerivation{}, nix.BuildNormal)
		if !errors.Is(err, context.DeadlineExceeded) || Broken(err) {
			w.Errorf("build: %v", err)
		}
		if err := s.End(w.Context()); err != nil {
			w.Errorf("end: %v", err)
		}
		if d := time.Since(started); d > 3*time.Second {
			w.Errorf("session ended after %s", d)
		}
	})
}

// stubborn is a daemon that ignores the end of its input until release is
// closed.
func stubborn(release <-chan struct{}) program {
	return func(p *fakeProcess) uint32 {
		status := daemonOf(&fakeStore{}, worker.ServeOptions{})(p)
		<-release
		return status
	}
}

// Guards against a slot that counts as free while its build still runs, and
// against one that hung daemon taking the other builds of its connection along.
func TestDaemonThatDoesNotEnd(t *testing.T) {
	var release chan struct{}
	inWorld(t, func(f *fakeBuilder, _ *target, opts *Options) {
		release = make(chan struct{})
		f.programs[daemonCommand] = stubborn(release)
		opts.EndTimeout = 3 * time.Second
	}, func(w *world) {
		defer close(release)
		hung, other := w.get(), w.get()
		if hung.d.process.(*remoteProcess).conn != other.d.process.(*remoteProcess).conn {
			w.Fatal("want one connection")
		}
		started := time.Now()
		if err := hung.End(w.Context()); !errors.Is(err, ErrNotSeenToEnd) {
			w.Errorf("end: %v", err)
		}
		if d := time.Since(started); d < 3*time.Second || d > 5*time.Second {
			w.Errorf("gave up after %s", d)
		}
		_ = other
	})
}

// Guards against waiting for ever for a peer that confirms nothing, though it lives.
func TestConnectionIsClosedHardWhereNothingElseHelps(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, opts *Options) {
		opts.EndTimeout = 3 * time.Second
		serve := f.programs[daemonCommand]
		f.programs[daemonCommand] = func(p *fakeProcess) uint32 {
			f.done.Go(func() {
				for err := error(nil); err == nil; time.Sleep(time.Second / 4) {
					_, err = p.Stderr().Write([]byte("still here\n"))
				}
			})
			return serve(p)
		}
	}, func(w *world) {
		s := w.get()
		w.fake.conn().in.freeze() // it hears nothing
		started := time.Now()
		err := s.End(w.Context())
		if !errors.Is(err, ErrNotSeenToEnd) || !strings.Contains(err.Error(), "connection lost") {
			w.Errorf("end: %v", err)
		}
		if d := time.Since(started); d > 6*time.Second {
			w.Errorf("gave up after %s", d)
		}
	})
}

// Guards against a client who waits for keep-alive to give up a build that was ended.
func TestCancelledOperationOfASilentBuilderReturns(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) { opts.EndTimeout = 3 * time.Second }, func(w *world) {
		s := w.get()
		w.fake.conn().pause()
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		started := time.Now()
		if err := w.build(ctx, s, nix.Discard); err != ctx.Err() {
			w.Errorf("build: %v", err)
		}
		if d := time.Since(started); d > 6*time.Second {
			w.Errorf("returned after %s", d)
		}
	})
}

// Guards against builds that are lost because another session's end is not confirmed
// while the line is dead for a moment.
func TestSilentConnectionOutlivesTheEndOfASession(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) { opts.EndTimeout = 3 * time.Second }, func(w *world) {
		s, other := w.get(), w.get()
		if s.d.process.(*remoteProcess).conn != other.d.process.(*remoteProcess).conn {
			w.Fatal("want one connection")
		}
		w.fake.conn().pause()
		s.Close()
		time.Sleep(30 * time.Second)
		w.fake.conn().resume()
		if _, err := other.QueryValidPaths(w.Context(), nil, false); err != nil {
			w.Errorf("the other session: %v", err)
		}
		synctest.Wait()
		if !isClosed(s.d.process.gone()) {
			w.Error("the session is not gone")
		}
	})
}

// Guards against the answer to a question that nobody asked being taken for that
// to the next user's.
func TestIdleSessionThatSpeaksIsNotUsed(t *testing.T) {
	var speak chan struct{}
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		speak = make(chan struct{})
		var started atomic.Int32
		f.programs[daemonCommand] = func(p *fakeProcess) uint32 {
			if started.Add(1) == 1 { // only the one that the test watches
				go func() {
					<-speak
					p.Write([]byte("boo"))
				}()
			}
			return daemonOf(&fakeStore{}, worker.ServeOptions{})(p)
		}
	}, func(w *world) {
		s := w.get()
		d := s.d
		s.Release()
		synctest.Wait()
		close(speak)
		synctest.Wait()
		if !isClosed(d.process.(*remoteProcess).left) {
			w.Error("session was kept")
		}
		if s := w.get(); s.d == d {
			w.Error("session is used again")
		}
	})
}

// Guards against an idle session whose daemon has died being given out.
func TestIdleSessionThatEndsIsForgotten(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.get().Release()
		synctest.Wait()
		w.fake.conn().Close()
		synctest.Wait()
		w.works(w.get())
	})
}

// Guards against a panic or a hang on reports that make no sense.
func TestMalformedExitStatus(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[daemonCommand] = func(p *fakeProcess) uint32 {
			daemonOf(&fakeStore{}, worker.ServeOptions{})(p)
			p.SendRequest("exit-status", false, []byte{1})
			p.SendRequest("exit-status", false, nil)
			p.SendRequest("exit-signal", false, []byte("x"))
			panic(errNoExit)
		}
	}, func(w *world) {
		if err := w.get().End(w.Context()); err != nil {
			w.Errorf("end: %v", err)
		}
	})
}

// Guards against an sshd that closes the channel without any report, which is
// an end that was seen, too.
func TestChannelClosedWithoutStatus(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[daemonCommand] = func(p *fakeProcess) uint32 {
			daemonOf(&fakeStore{}, worker.ServeOptions{})(p)
			panic(errNoExit)
		}
	}, func(w *world) {
		if err := w.get().End(w.Context()); err != nil {
			w.Errorf("end: %v", err)
		}
	})
}

// Guards against standard error that nobody reads stopping the session, and
// against keeping all of it.
func TestEndlessStandardError(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[daemonCommand] = func(p *fakeProcess) uint32 {
			noise := make([]byte, 64<<10)
			for range 128 { // four windows
				p.Stderr().Write(noise)
			}
			return daemonOf(&fakeStore{}, worker.ServeOptions{})(p)
		}
	}, func(w *world) {
		s := w.get()
		w.works(s)
		synctest.Wait()
		if n := cap(s.d.process.(*remoteProcess).stderr.tail.buf); n > 4*keepStderr {
			w.Errorf("keeps %d bytes", n)
		}
	})
}
