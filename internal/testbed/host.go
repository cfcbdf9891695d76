package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// A Host is a machine of a bed. Its methods may be called from several
// goroutines.
type Host struct {
	bed   *Bed
	spec  HostSpec // with defaults
	addr  netip.Addr
	cable string // name of its cable's end at the switch
	dir   string

	// Set by launch, and from then on until Restart.
	pid    int           // of its init, as this process sees it
	ended  chan struct{} // closed when init and all its processes are gone
	net    *netns
	cgroup cgroup

	mu      sync.Mutex // guards what follows, and keeps Stop and Restart apart
	plugged bool
	relays  []*Relay
}

// Name is the host name.
func (h *Host) Name() string { return h.spec.Name }

// Addr is the host's address, which only hosts of this bed can reach; see Dial.
func (h *Host) Addr() netip.Addr { return h.addr }

// Nix is the version that was asked for.
func (h *Host) Nix() string { return h.spec.Nix }

// Kind is what the host was started as.
func (h *Host) Kind() Kind { return h.spec.Kind }

// Stop kills the host as a power cut would: all its processes at once, without
// a word to anybody, and what is not OnDisk is gone. It returns when no process
// is left; a second call does nothing. Listeners of Listen are the caller's to
// close.
func (h *Host) Stop() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stop()
}

func (h *Host) stop() error {
	if h.ended == nil {
		return nil
	}
	err := h.kill()
	<-h.ended
	for _, r := range h.relays {
		err = errors.Join(err, r.Close())
	}
	h.relays = nil
	return errors.Join(err, h.unplug(), h.net.close(), h.cgroup.remove())
}

// Restart brings the host back after Stop (which it calls if need be) with its
// name, address, host key and specification. Only what is OnDisk is still there.
// No other method of the host may run meanwhile.
func (h *Host) Restart(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.stop()
	if err == nil {
		err = h.bootAgain(ctx)
	}
	if err != nil {
		return fmt.Errorf("restart host %s: %w", h.spec.Name, err)
	}
	return nil
}

func (h *Host) bootAgain(ctx context.Context) error {
	if err := h.boot(ctx); err != nil {
		return errors.Join(err, h.stop())
	}
	return nil
}

// kill kills process 1, which makes the kernel kill the others and wait for
// them. A host that has ended is left alone: its number may be another's now.
func (h *Host) kill() error {
	select {
	case <-h.ended:
		return nil
	default:
	}
	if err := syscall.Kill(h.pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// Ended is closed when no process of the host is left.
func (h *Host) Ended() <-chan struct{} { return h.ended }

func (h *Host) logFile(name string) string { return filepath.Join(h.dir, name+".log") }

// Log returns what one of the host's own programs wrote so far: "sshd",
// "nix-daemon" or "init".
func (h *Host) Log(program string) (string, error) {
	text, err := os.ReadFile(h.logFile(program))
	return string(text), err
}
