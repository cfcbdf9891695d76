package testbed

import (
	"errors"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// A netns is a network namespace that lives as long as this open file, or a
// process in it.
type netns struct{ file *os.File }

// newNetns makes a network namespace without any process in it.
func newNetns() (*netns, error) {
	var n netns
	err := onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return &n, err
}

// do runs f inside the namespace. Sockets that f opens and processes that it
// starts belong there; goroutines that it starts do not.
func (n *netns) do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

func (n *netns) close() error {
	if err := n.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// onOwnThread runs f on a thread that ends with it, so that nobody else ever
// runs on a thread that was moved to another namespace.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: this is what ends the thread
		done <- f()
	}()
	return <-done
}
