package testbed

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
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

	// Set by launch, and from then on.
	pid    int           // of its init, as this process sees it
	ended  chan struct{} // closed when init and all its processes are gone
	net    *netns
	cgroup cgroup
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
// a word to anybody. Its stores are gone. It returns when no process is left;
// a second call does nothing.
func (h *Host) Stop() error {
	if h.ended == nil {
		return nil
	}
	err := h.kill()
	<-h.ended
	return errors.Join(err, h.net.close(), h.cgroup.remove())
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
