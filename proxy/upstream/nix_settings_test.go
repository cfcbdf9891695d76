package upstream

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
)

// settingsText is an answer in good order.
const settingsText = "extra-platforms = i686-linux\nsandbox = true\nsystem = x86_64-linux\nsystem-features = benchmark big-parallel\ntrusted-users = root @wheel\naccount = nixremote\ngroups = nixremote wheel\nend =\n"

func saying(text string) program {
	return func(p *fakeProcess) uint32 {
		io.WriteString(p, text)
		io.Copy(io.Discard, p)
		return 0
	}
}

// Guards against a check that believes the policy where the builder could be asked,
// and against one that leaves something running there.
func TestCheckReadsTheSettingsOfTheBuilder(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
		f.programs[settingsScript] = saying(settingsText)
		f.programs[loadScript] = loadProgram(steadyLoad)
	}, func(w *world) {
		r, err := w.pool.Check(w.Context(), "b1")
		if err != nil || r.SettingsErr != nil || r.LoadErr != nil {
			w.Fatalf("%v, %v, %v", err, r.SettingsErr, r.LoadErr)
		}
		s := r.Settings
		if s.System != "x86_64-linux" || !s.builds("i686-linux") || s.builds("aarch64-linux") || !slices.Equal(s.Features, []string{"benchmark", "big-parallel"}) ||
			!s.trusts() || s.Account != "nixremote" || s.Sandbox != "true" {
			w.Errorf("settings: %+v", s)
		}
		synctest.Wait()
		if w.count(&w.fake.running) != 0 || len(w.fake.conns) != 0 || w.count(&w.fake.dialled) != 1 {
			w.Errorf("%d programs run, %d connections are left of %d", w.fake.running, len(w.fake.conns), w.fake.dialled)
		}
	})
}

// Guards against a builder that keeps its own check waiting, or that is of no use since
// it does not tell its settings.
func TestCheckDoesWithoutSettings(t *testing.T) {
	for says, answer := range map[string]program{
		"does not run a shell":   nil,
		"no program nix":         saying("account = nixremote\ngroups = x\nend =\n"),
		"more than 65536 bytes":  saying("trusted-users = " + strings.Repeat("a", maxSettingsAnswer) + "\n"),
		"makes no sense here":    saying("Welcome to b1!\nend =\n"),
		"does not answer within": saying("system = x86_64-linux\n"),
		"allows one session":     nil,
	} {
		inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
			if answer != nil {
				f.programs[settingsScript] = answer
			}
			if says == "allows one session" {
				f.maxSessions = 1
			}
		}, func(w *world) {
			r, err := w.pool.Check(w.Context(), "b1")
			if err != nil || r.SettingsErr == nil || !strings.Contains(r.SettingsErr.Error(), says) || r.Trust != nix.Trusted {
				w.Errorf("%s: %v, %v", says, err, r.SettingsErr)
			}
		})
	}
}

// Guards against a script that a real shell does not understand, that needs an
// environment, or that the account's own shell could take for more than one word; and
// against one that asks a Nix of some age in vain.
func TestSettingsScriptRunsInARealShell(t *testing.T) {
	show := "printf 'cores = 4\\nsystem = x86_64-linux\\nsystem-features = kvm a-b\\nextra-platforms = \\n'"
	for age, nix := range map[string]string{
		"new":  `test "$3 $4" = "config show" && test "$2" = nix-command && ` + show,
		"2.8":  `test "$3" = show-config && test "$2" = nix-command && ` + show,
		"2.3":  `test "$1" = show-config && ` + show,
		"none": "exit 1",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "nix"), []byte("#!/bin/sh\n"+nix+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		script := settingsScriptFor(dir + "/nix-daemon --stdio")
		inner, _ := strings.CutPrefix(script, "exec /bin/sh -c '")
		inner, closed := strings.CutSuffix(inner, "'")
		if !closed || strings.ContainsAny(inner, "'\\!\n") || !strings.Contains(inner, dir) {
			t.Fatalf("the script is not one word for every shell: %q", script)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
		cmd.Env = []string{}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		s, err := readSettings(strings.NewReader(string(out)))
		switch {
		case age == "none":
			if err == nil {
				t.Errorf("%s: %+v", age, s)
			}
		case err != nil || s.System != "x86_64-linux" || !slices.Equal(s.Features, []string{"kvm", "a-b"}) || s.Account == "" || len(s.Groups) == 0:
			t.Errorf("%s: %+v, %v:\n%s", age, s, err, out)
		}
	}
	for _, odd := range []string{"nix-daemon --stdio", "~/x/nix-daemon --stdio", "/a'b/nix-daemon --stdio"} {
		if got := settingsScriptFor(odd); got != settingsScript {
			t.Errorf("%s: %s", odd, got)
		}
	}
}

// Guards against an answer that is cut, doubled, or in pieces.
func TestSettingsAreReadWholeOrNotAtAll(t *testing.T) {
	if _, err := readSettings(iotest.OneByteReader(strings.NewReader(settingsText))); err != nil {
		t.Error(err)
	}
	for n := range len(settingsText) {
		if s, err := readSettings(strings.NewReader(settingsText[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %+v, %v", n, s, err)
		}
	}
	for _, text := range []string{"system = a\n" + settingsText, "colour = red\n" + settingsText, "end =\n" + settingsText, "end =\n"} {
		if s, err := readSettings(strings.NewReader(text)); err == nil {
			t.Errorf("%q: %+v", text, s)
		}
	}
}

// Guards against a check that never ends since the Nix of this machine does not answer,
// and against programs that it leaves behind.
func TestOwnSettingsAreNotWaitedForForEver(t *testing.T) {
	dir := t.TempDir()
	pid := filepath.Join(dir, "pid")
	if err := os.WriteFile(filepath.Join(dir, "nix"), []byte("#!/bin/sh\necho $$ >"+pid+"\nsleep 3600 &\nwait\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := make(chan error, 1)
	go func() {
		_, err := ownSettings(ctx, settingsScriptIn(dir))
		asked <- err
	}()
	nix := waitForPID(t, pid)
	cancel()
	select {
	case err := <-asked:
		if err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("got %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits")
	}
	for deadline := time.Now().Add(time.Minute); syscall.Kill(nix, 0) == nil && !isZombie(nix); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nix is still there")
		}
	}
}

func waitForPID(t *testing.T, file string) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if text, err := os.ReadFile(file); err == nil && strings.HasSuffix(string(text), "\n") {
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("it was not asked")
	return 0
}

// isZombie says that a process has ended, and nobody has taken note.
func isZombie(pid int) bool {
	stat, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return strings.Contains(string(stat), ") Z ")
}
