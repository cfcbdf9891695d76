package testbed

import (
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// starter in the environment makes this program one that is about to start another,
// for ever.
const starter = "TESTBED_STARTER"

func init() {
	if os.Getenv(starter) == "" {
		return
	}
	runtime.LockOSThread()
	if child, _, _ := syscall.RawSyscall6(syscall.SYS_CLONE, syscall.CLONE_VFORK|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0); child == 0 {
		for {
			syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
	}
	os.Exit(1)
}

// Guards against waiting for ever for a program of a host that cannot stop because it
// waits for one that it starts, and that has stopped.
func TestFreezeStopsProgramsThatStartOthers(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const file = "/usr/local/bin/starter"
	host := ForTest(t).MustStart(t, HostSpec{Name: "busy", Kind: Client, Binds: map[string]string{file: self}})[0]
	states := func(want func(pid int, state string) bool) int {
		pids, err := host.processesInState(want)
		if err != nil {
			t.Fatal(err)
		}
		return len(pids)
	}
	await := func(what string, n int, want func(pid int, state string) bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); states(want) != n; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %d", what, states(want))
			}
		}
	}
	starts := func(_ int, state string) bool { return state == "D" }
	stopped := func(_ int, state string) bool { return state == "T" }
	host.MustShell(t, starter+"=1 "+file+" >/dev/null 2>&1 </dev/null &")
	await("programs that start others", 1, starts)
	frozen := make(chan error, 1)
	go func() { frozen <- host.Freeze() }()
	select {
	case err = <-frozen:
	case <-time.After(20 * time.Second):
		t.Fatal("the host does not stop")
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := states(stopped); n < 3 {
		t.Errorf("%d programs have stopped", n)
	}
	if err := host.Thaw(); err != nil {
		t.Fatal(err)
	}
	await("programs that are still stopped", 0, stopped)
	host.MustShell(t, "true")
}
