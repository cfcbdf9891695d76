package upstream

import (
	"context"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
)

const fourCores = daemonCommand + " --option cores 4"

// settled makes the fake answer the commands of some settings, and of none.
func settled(f *fakeBuilder, _ *target, _ *Options) {
	for _, command := range []string{fourCores, daemonCommand + " --option cores 8"} {
		f.programs[command] = daemonOf(&fakeStore{}, worker.ServeOptions{})
	}
}

func (w *world) getWith(settings Settings) *Session {
	w.Helper()
	s, err := w.pool.GetWith(w.Context(), "b1", settings)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

// started counts the programs that were started by a command.
func (w *world) started(command string) int {
	w.fake.mu.Lock()
	defer w.fake.mu.Unlock()
	n := 0
	for _, c := range w.fake.commands {
		if c == command {
			n++
		}
	}
	return n
}

// Guards against a build that gets the settings of the one before it, and against a
// new session for each build that has any.
func TestSettingsStayWithThoseWhoWantThem(t *testing.T) {
	inWorld(t, settled, func(w *world) {
		four := w.getWith(Settings{Cores: 4})
		d := four.d
		four.Release()
		synctest.Wait()
		plain := w.get()
		if plain.d.settings != (Settings{}) || plain.d.command != daemonCommand {
			w.Errorf("whoever wants nothing got %q", plain.d.command)
		}
		plain.Release()
		again := w.getWith(Settings{Cores: 4})
		if again.d.settings != d.settings || again.d.command != fourCores {
			w.Errorf("whoever wants four cores got %q", again.d.command)
		}
		again.Release()
		synctest.Wait()
		for range 10 {
			w.getWith(Settings{Cores: 4}).Release()
		}
		synctest.Wait()
		if n := w.started(fourCores); n > 2 { // the first, and one in advance
			w.Errorf("%d sessions were opened for four cores", n)
		}
	})
}

// Guards against a build that waits for minutes behind sessions that wait for other
// users.
func TestIdleSessionsOfOthersMakeRoom(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, tgt *target, opts *Options) {
		settled(f, tgt, opts)
		f.maxSessions, tgt.maxJobs, opts.Channels = 1, 1, 1
	}, func(w *world) {
		var held []*Session
		for range w.pool.builders["b1"].maxSessions() - 1 {
			held = append(held, w.get())
		}
		w.get().Release() // waits idle in the last place
		synctest.Wait()
		began := time.Now()
		s := w.getWith(Settings{Cores: 8})
		if took := time.Since(began); took > time.Second {
			w.Errorf("it took %s", took)
		}
		w.works(s)
		s.Release()
		for _, s := range held {
			s.Release()
		}
	})
}

// Guards against settings that are put where a wrapper of the admin's does not expect
// them, and against limits that are rounded to none.
func TestSettingsOnTheCommandLine(t *testing.T) {
	all := Settings{MaxSilent: 1500 * time.Millisecond, Timeout: time.Hour, MaxLogSize: 4096, Cores: 2}
	for command, want := range map[string]string{
		"nix-daemon --stdio":        "nix-daemon --stdio --option cores 2 --option max-silent-time 2 --option timeout 3600 --option max-build-log-size 4096",
		"nix-store --serve --write": "nix-store --serve --write --option cores 2 --option max-silent-time 2 --option timeout 3600 --option max-build-log-size 4096",
		"/usr/local/bin/wrapped -x": "/usr/local/bin/wrapped -x",
	} {
		if got := all.onCommand(command); got != want {
			t.Errorf("%q becomes %q", command, got)
		}
		if got := (Settings{}).onCommand(command); got != command {
			t.Errorf("%q becomes %q without settings", command, got)
		}
	}
}

// tellingStore is a daemon's store that notes what it is told.
type tellingStore struct {
	fakeStore
	told chan nix.ClientOptions
}

func (s *tellingStore) SetOptions(_ context.Context, opts nix.ClientOptions) error {
	s.told <- opts
	return nil
}

// A daemon that has no command line is told in the protocol, and only what takes
// nothing of its own away. Guards against a session that keeps the builder from
// building, or from being told anything.
func TestDaemonThatHearsUsItselfIsToldInTheProtocol(t *testing.T) {
	store := &tellingStore{told: make(chan nix.ClientOptions, 10)}
	d := startDaemon(t, func(d *localDaemon) { d.store = store })
	w := localWorld(t, d, Options{})
	w.works(w.get())
	w.works(w.getWith(Settings{Timeout: time.Hour}))
	w.works(w.getWith(Settings{Cores: 3, MaxSilent: time.Minute, Timeout: time.Hour, MaxLogSize: 4096}))
	got := <-store.told
	want := nix.ClientOptions{
		Verbosity: uint32(nix.LevelInfo), MaxBuildJobs: 1, BuildCores: 3, MaxSilentTime: 60,
		Overrides: map[string]string{"timeout": "3600", "max-build-log-size": "4096"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("told %+v, want %+v", got, want)
	}
}
