package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/policy"
	"nixbastion/proxy/upstream"
	"nixbastion/route"
)

// bedroom is a builder with a wake and a sleep command in a synctest bubble, as the
// sleepers see it.
type bedroom struct {
	*testing.T
	*sleepers
	ran []string // commands
	// alsoOther says that another process uses the builders.
	alsoOther atomic.Bool

	mu sync.Mutex // guards what follows
	// up is whether the machine answers; boots is how long the wake command's effect
	// takes, never if negative.
	up       bool
	boots    time.Duration
	commands map[string]error // how commands end
	takes    time.Duration    // how long they take
	asleep   bool             // for the pool
	users    int
	used     time.Time
	drained  bool
}

func inBedroom(t *testing.T, test func(b *bedroom)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bedroom{T: t, boots: 39500 * time.Millisecond, takes: 3 * time.Second, used: time.Now(), commands: map[string]error{}}
		r := route.New(route.Options{})
		r.SetBuilders([]route.Builder{{Name: "b1", Systems: map[string]float64{"x86_64-linux": 1}, MaxJobs: 1, Domains: []string{"default"}}})
		isDrained := func(string) bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.drained
		}
		b.sleepers = newSleepers(t.Context(), b, r, isDrained, slog.New(slog.DiscardHandler))
		b.sleepers.run, b.sleepers.shared = b.command, b.alsoOther.Load
		b.update([]policy.Builder{b.policyBuilder()})
		test(b)
		b.close(errShutdown)
	})
}

func (b *bedroom) policyBuilder() policy.Builder {
	return policy.Builder{Name: "b1", Address: "b1.example.org:22", Wake: policy.Wake{
		Command: []string{"wake", "b1"}, Timeout: 5 * time.Minute, Sleep: []string{"sleep", "b1"}, After: 10 * time.Minute,
	}}
}

func (b *bedroom) command(ctx context.Context, argv, env []string) (string, error) {
	b.mu.Lock()
	b.ran = append(b.ran, argv[0])
	takes, boots, err := b.takes, b.boots, b.commands[argv[0]]
	b.mu.Unlock()
	if want := []string{"NIXBASTION_BUILDER=b1", "NIXBASTION_ADDRESS=b1.example.org:22"}; !slices.Equal(env, want) {
		b.Errorf("environment %q, want %q", env, want)
	}
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "first line\nno such machine", err
	}
	if argv[0] == "sleep" {
		b.set(func() { b.up = false })
	} else if boots >= 0 {
		time.AfterFunc(boots, func() { b.set(func() { b.up = true }) })
	}
	return "", nil
}

func (b *bedroom) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

func (b *bedroom) commandsRun() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.ran, " ")
}

// The methods of the pool.

func (b *bedroom) Reach(context.Context, string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.up {
		return &upstream.Error{Builder: "b1", Kind: upstream.Unreachable, Err: errors.New("no route to host")}
	}
	b.asleep, b.used = false, time.Now()
	return nil
}

func (b *bedroom) Look(_ context.Context, name string) error {
	b.mu.Lock()
	up, asleep := b.up, b.asleep
	b.mu.Unlock()
	switch {
	case asleep:
		return errors.New("is asleep")
	case up:
		b.setUp(name, true, "")
		return nil
	case b.unreachable(name):
		b.set(func() { b.asleep = true })
	default:
		b.setUp(name, false, "no route to host")
	}
	return errors.New("no route to host")
}

func (b *bedroom) Sleep(_ context.Context, _ string, idle time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users > 0 || time.Since(b.used) < idle {
		return false
	}
	b.asleep = true
	return true
}

func (b *bedroom) Wake(string) { b.set(func() { b.asleep, b.used = false, time.Now() }) }

func (b *bedroom) Asleep(string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asleep
}

func (b *bedroom) Idle(string) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users > 0 {
		return 0
	}
	return time.Since(b.used)
}

// build is what a holder of a lease does, for so long.
func (b *bedroom) build(ctx context.Context, takes time.Duration) (told []string, err error) {
	release, err := b.need(ctx, "b1", func(line string) { told = append(told, line) })
	if err != nil {
		return told, err
	}
	b.set(func() { b.users++ })
	release()
	time.Sleep(takes)
	b.set(func() { b.users--; b.used = time.Now() })
	return told, nil
}

func (b *bedroom) trouble() string { return b.router.Status().Builders[0].Trouble }

// Guards against a wake command that runs for each build, against builds that fail
// since their builder slept, and against a sleeping builder that counts as down.
func TestBuilderIsWokenOnceForAllWhoNeedIt(t *testing.T) {
	inBedroom(t, func(b *bedroom) {
		b.Look(b.Context(), "b1")
		if got := b.stateOf("b1"); got != "asleep" || b.trouble() != "" {
			b.Fatalf("state %q, trouble %q", got, b.trouble())
		}
		var building sync.WaitGroup
		for i := range 5 {
			building.Go(func() {
				time.Sleep(time.Duration(i) * time.Second)
				told, err := b.build(b.Context(), time.Minute)
				want := []string{"waking builder 'b1' (up to 5 min)", "builder 'b1' is awake after 43 s"}
				if err != nil || !slices.Equal(told, want) {
					b.Errorf("told %q, %v, want %q", told, err, want)
				}
			})
		}
		building.Wait()
		if told, err := b.build(b.Context(), 0); err != nil || len(told) > 0 {
			b.Errorf("awake, and told %q, %v", told, err)
		}
		if got := b.commandsRun(); got != "wake" {
			b.Errorf("ran %q", got)
		}
		if got := b.all["b1"].expected(); got != 43*time.Second {
			b.Errorf("expected to wake in %s", got)
		}
	})
}

// Guards against a builder that does not wake, holds builds for ever and is woken
// over and over; and against one that stays down when it comes late.
func TestBuilderThatDoesNotWakeIsDownForAWhile(t *testing.T) {
	inBedroom(t, func(b *bedroom) {
		b.set(func() { b.boots = -1 })
		b.Look(b.Context(), "b1")
		began := time.Now()
		_, err := b.build(b.Context(), 0)
		var fault *upstream.Error
		if !errors.As(err, &fault) || fault.Builder != "b1" || !strings.Contains(fault.Reason(), "could not be woken: it did not answer in time: no route to host") {
			b.Errorf("error %v", err)
		}
		if took := time.Since(began); took != 5*time.Minute {
			b.Errorf("failed after %s", took)
		}
		if got := b.trouble(); !strings.Contains(got, "could not be woken") {
			b.Errorf("trouble %q", got)
		}
		if _, err := b.build(b.Context(), 0); err == nil || b.commandsRun() != "wake" {
			b.Errorf("woken again at once: ran %q, %v", b.commandsRun(), err)
		}
		time.Sleep(firstWakePause)
		b.Look(b.Context(), "b1") // as the pool does it with what is down
		if got := b.stateOf("b1"); got != "asleep" {
			b.Errorf("after the pause: %q", got)
		}
		b.set(func() { b.commands["wake"] = errors.New("exit status 3") })
		if _, err := b.build(b.Context(), 0); err == nil || !strings.Contains(err.Error(), `wake command: exit status 3: "no such machine"`) {
			b.Errorf("a command that fails: %v", err)
		}
		time.Sleep(firstWakePause)
		b.Look(b.Context(), "b1")
		if got := b.stateOf("b1"); got != "" {
			b.Errorf("the second pause is as short as the first: %q", got)
		}
		b.set(func() { b.up = true })
		b.Look(b.Context(), "b1")
		if _, err := b.build(b.Context(), 0); err != nil || b.commandsRun() != "wake wake" {
			b.Errorf("it came late: ran %q, %v", b.commandsRun(), err)
		}
	})
}

// Guards against a builder that is put to sleep while it is used or looked after, and
// against one that is never.
func TestIdleBuilderIsPutToSleep(t *testing.T) {
	inBedroom(t, func(b *bedroom) {
		b.set(func() { b.up = true })
		if _, err := b.build(b.Context(), time.Hour); err != nil || b.commandsRun() != "" {
			b.Fatalf("ran %q under a build, %v", b.commandsRun(), err)
		}
		time.Sleep(9 * time.Minute)
		b.set(func() { b.drained = true })
		time.Sleep(time.Hour)
		if got := b.commandsRun(); got != "" {
			b.Errorf("ran %q while it is drained", got)
		}
		b.set(func() { b.drained = false })
		if _, err := b.build(b.Context(), time.Minute); err != nil {
			b.Error(err)
		}
		time.Sleep(10*time.Minute + 2*time.Second)
		synctest.Wait()
		if got := b.commandsRun(); got != "sleep" || b.stateOf("b1") != "asleep" || !b.Asleep("b1") {
			b.Errorf("ran %q, state %q", got, b.stateOf("b1"))
		}
		// The command still runs.
		told, err := b.build(b.Context(), 0)
		want := []string{"builder 'b1' is falling asleep; it is woken then", "waking builder 'b1' (up to 5 min)", "builder 'b1' is awake after 43 s"}
		if err != nil || !slices.Equal(told, want) || b.commandsRun() != "sleep wake" {
			b.Errorf("told %q, ran %q, %v", told, b.commandsRun(), err)
		}
		time.Sleep(time.Hour)
		if got := b.commandsRun(); got != "sleep wake sleep" {
			b.Errorf("ran %q", got)
		}
	})
}

// Guards against a builder that falls asleep between the word that it is awake and
// the session there.
func TestBuilderStaysAwakeForWhoGetsASession(t *testing.T) {
	inBedroom(t, func(b *bedroom) {
		b.set(func() { b.up = true })
		release, err := b.need(b.Context(), "b1", func(string) {})
		if err != nil {
			b.Fatal(err)
		}
		time.Sleep(time.Hour)
		if got := b.commandsRun(); got != "" {
			b.Errorf("ran %q", got)
		}
		release()
		time.Sleep(time.Hour)
		if got := b.commandsRun(); got != "sleep" {
			b.Errorf("afterwards ran %q", got)
		}
	})
}

// Guards against a builder that is lost since it could not be put to sleep.
func TestBuilderThatCannotBePutToSleepStaysAwake(t *testing.T) {
	inBedroom(t, func(b *bedroom) {
		b.set(func() { b.up, b.commands["sleep"] = true, errors.New("exit status 1") })
		time.Sleep(11 * time.Minute)
		if told, err := b.build(b.Context(), 0); err != nil || len(told) > 0 || b.commandsRun() != "sleep" {
			b.Errorf("told %q, ran %q, %v", told, b.commandsRun(), err)
		}
	})
}

// Guards against a reload that leaves a builder asleep which nobody wakes any more,
// and against one that forgets that it sleeps.
func TestReloadKeepsWhoSleeps(t *testing.T) {
	inBedroom(t, func(b *bedroom) {
		b.Look(b.Context(), "b1")
		changed := b.policyBuilder()
		changed.Wake.After = time.Hour
		b.update([]policy.Builder{changed})
		if got := b.stateOf("b1"); got != "asleep" {
			b.Errorf("after a reload: %q", got)
		}
		failed := make(chan error, 1)
		go func() {
			_, err := b.build(b.Context(), 0)
			failed <- err
		}()
		synctest.Wait()
		changed.Wake = policy.Wake{}
		b.update([]policy.Builder{changed})
		if err := <-failed; err == nil || !strings.Contains(err.Error(), "taken out of the policy") {
			b.Errorf("who waited: %v", err)
		}
		if told, err := b.build(b.Context(), 0); err != nil || len(told) > 0 || b.Asleep("b1") {
			b.Errorf("told %q, %v", told, err)
		}
	})
}

// Guards against a client that waits for a builder after it has hung up, and against
// a waking builder that is given up with the first who leaves.
func TestWhoLeavesDoesNotEndTheWaking(t *testing.T) {
	inBedroom(t, func(b *bedroom) {
		b.Look(b.Context(), "b1")
		ctx, leave := context.WithTimeoutCause(b.Context(), 10*time.Second, errNobodyWaits)
		defer leave()
		if _, err := b.build(ctx, 0); !errors.Is(err, errNobodyWaits) {
			b.Errorf("who left: %v", err)
		}
		began := time.Now()
		if _, err := b.build(b.Context(), 0); err != nil || time.Since(began) != 33*time.Second || b.commandsRun() != "wake" {
			b.Errorf("who stays: after %s, ran %q, %v", time.Since(began), b.commandsRun(), err)
		}
	})
}

// Guards against commands that outlive the proxy or their time, with what they have
// started, and against output without end.
func TestCommandEndsWithAllThatItStarted(t *testing.T) {
	dir := t.TempDir()
	pids := filepath.Join(dir, "pids")
	script := fmt.Sprintf(`sleep 1000 & echo $$ $! >%s; mv %[1]s %[1]s.done; wait`, pids)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := runCommand(ctx, []string{"/bin/sh", "-c", script}, nil)
		ended <- err
	}()
	var text []byte
	eventually(t, "the command runs", func() bool {
		var err error
		text, err = os.ReadFile(pids + ".done")
		return err == nil
	})
	cancel(errShutdown)
	if err := <-ended; !errors.Is(err, errShutdown) {
		t.Errorf("error %v", err)
	}
	gone := func(pids string) {
		for _, pid := range strings.Fields(pids) {
			eventually(t, "process "+pid+" is gone", func() bool {
				stat, err := os.ReadFile("/proc/" + pid + "/stat")
				return err != nil || strings.Contains(string(stat), ") Z ")
			})
		}
	}
	gone(string(text))
	out, err := runCommand(t.Context(), []string{"/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"}, nil)
	if err != nil || out == "" {
		t.Errorf("output %q, %v", out, err)
	}
	gone(out) // also after a good end
	out, err = runCommand(t.Context(), []string{"/bin/sh", "-c", `yes | head -c 1000000; echo "$NIXBASTION_BUILDER is up"; sleep 1000 & exit 0`}, []string{"NIXBASTION_BUILDER=b1"})
	if err != nil || len(out) > maxCommandOutput || !strings.HasSuffix(out, "\nb1 is up") {
		t.Errorf("%d bytes of output, %v: ...%s", len(out), err, lastWords(out))
	}
	if _, err := runCommand(t.Context(), []string{filepath.Join(dir, "none")}, nil); err == nil {
		t.Error("ran what is not there")
	}
	if out, err := runCommand(t.Context(), []string{"/bin/sh", "-c", "echo why; exit 3"}, nil); err == nil || err.Error() != "exit status 3" || out != "why" {
		t.Errorf("output %q, %v", out, err)
	}
}

// Guards against an upgrade that switches a builder off on which the other process has a
// build.
func TestNoBuilderIsPutToSleepWhileTwoProcessesUseIt(t *testing.T) {
	inBedroom(t, func(b *bedroom) {
		b.set(func() { b.up = true })
		b.alsoOther.Store(true)
		if _, err := b.build(b.Context(), time.Minute); err != nil {
			b.Fatal(err)
		}
		time.Sleep(time.Hour)
		if got := b.commandsRun(); got != "" {
			b.Errorf("ran %q", got)
		}
		b.alsoOther.Store(false)
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		if got := b.commandsRun(); got != "sleep" {
			b.Errorf("once it is alone it ran %q", got)
		}
	})
}

// Guards against a command that speaks to the service manager in the proxy's name, as
// some that start containers or machines do.
func TestCommandsDoNotSpeakForTheProxy(t *testing.T) {
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		t.Setenv(name, "ours")
	}
	t.Setenv("NIXBASTION_TEST", "theirs")
	out, err := runCommand(t.Context(), []string{"/bin/sh", "-c", "env"}, []string{"NIXBASTION_BUILDER=b1"})
	if err != nil || strings.Contains(out, "=ours") || !strings.Contains(out, "=theirs") || !strings.Contains(out, "NIXBASTION_BUILDER=b1") {
		t.Errorf("the command has the environment\n%s\n%v", out, err)
	}
}
