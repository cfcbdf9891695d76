package e2e

import (
	"context"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"nixbastion/internal/testbed"
)

// screen is what a command writes to a terminal.
type screen struct {
	ended chan error

	mu   sync.Mutex // guards what follows
	text []byte
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.text)
}

// startOnTerminal runs a script on a host with a terminal for its output, beside the
// test.
func startOnTerminal(t *testing.T, host *testbed.Host, script string) *screen {
	t.Helper()
	master, slave := openTerminal(t)
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	cmd := host.Command(ctx, "bash", "-c", script)
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	s := &screen{ended: make(chan error, 1)}
	var running sync.WaitGroup
	running.Go(func() {
		s.ended <- host.Run(cmd)
		slave.Close()
	})
	running.Go(func() { s.read(master) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return s
}

// read collects until nobody has the terminal open any more.
func (s *screen) read(master *os.File) {
	defer master.Close()
	buf := make([]byte, 4096)
	for {
		n, err := master.Read(buf)
		s.mu.Lock()
		s.text = append(s.text, buf[:n]...)
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}
