package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
)

// Sockets come from three places: the service manager has them (socket activation),
// the process whose place this one takes had them, or they are made here.

const (
	// ownSocket is the name under which a process hands on what it listens on, unless
	// it has that from the service manager, whose name it keeps.
	ownSocket = "listen"
	// adminName is that of the admin's socket, metricsName that for metrics and health.
	adminName   = "admin"
	metricsName = "metrics"
)

// door is a socket on which clients are awaited.
type door struct {
	net.Listener
	name string
}

// fromManager reports whether the service manager made the socket.
func (d door) fromManager() bool { return d.name != ownSocket }

// inherited are the sockets that this process was started with.
type inherited struct {
	doors []door
	// These are nil for none.
	admin   *net.UnixListener
	metrics *net.TCPListener
}

// inheritSockets takes over what LISTEN_FDS names.
func inheritSockets() (in inherited, err error) {
	for _, file := range activation.Files(true) {
		l, err := net.FileListener(file)
		if err == nil {
			err = in.take(file.Name(), l)
		}
		file.Close()
		if err != nil {
			in.close()
			return inherited{}, fmt.Errorf("socket %s of the service manager: %w", file.Name(), err)
		}
	}
	return in, nil
}

func (in *inherited) take(name string, l net.Listener) error {
	switch l := l.(type) {
	case *net.TCPListener:
		if name == metricsName && in.metrics == nil {
			in.metrics = l
			return nil
		}
		in.doors = append(in.doors, door{l, name})
		return nil
	case *net.UnixListener:
		if name == adminName && in.admin == nil {
			in.admin = l
			return nil
		}
	}
	l.Close()
	return errors.New("it is no TCP socket that listens\nhint: ListenStream=22 in the socket unit")
}

func (in *inherited) close() {
	for _, d := range in.doors {
		d.Close()
	}
	if in.admin != nil {
		in.admin.Close()
	}
	if in.metrics != nil {
		in.metrics.Close()
	}
}

// listenAll returns where clients are awaited: on the sockets of the service manager
// alone, or else on all addresses, of which some may be open already.
func listenAll(addresses []string, open []door) (doors []door, err error) {
	if slices.ContainsFunc(open, door.fromManager) {
		return open, nil
	}
	defer func() {
		for _, d := range open { // which nobody wants any more, or all of them
			if err != nil || !slices.Contains(doors, d) {
				d.Close()
			}
		}
	}()
	for _, address := range addresses {
		if at := slices.IndexFunc(open, func(d door) bool { return !slices.Contains(doors, d) && listensOn(d, address) }); at >= 0 {
			doors = append(doors, open[at])
			continue
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			for _, d := range doors {
				d.Close()
			}
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		doors = append(doors, door{l, ownSocket})
	}
	return doors, nil
}

// listensOn reports whether a TCP socket is that of an address of the policy.
func listensOn(l net.Listener, address string) bool {
	want, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return false
	}
	have := l.Addr().(*net.TCPAddr)
	if want.Port != have.Port {
		return false
	}
	if want.IP == nil || want.IP.IsUnspecified() {
		return have.IP == nil || have.IP.IsUnspecified()
	}
	a, _ := netip.AddrFromSlice(want.IP)
	b, _ := netip.AddrFromSlice(have.IP)
	return a.Unmap() == b.Unmap()
}

func listeners(doors []door) []net.Listener {
	all := make([]net.Listener, len(doors))
	for i, d := range doors {
		all[i] = d.Listener
	}
	return all
}

func addressesOf(doors []door) []string {
	all := make([]string, len(doors))
	for i, d := range doors {
		all[i] = d.Addr().String()
	}
	return all
}

// handOn are copies of descriptors for another process, with their names.
type handOn struct {
	fds   []int
	names []string
}

// add copies the descriptor of a socket. It does not go through os.File, which would
// make the socket block for us too.
func (h *handOn) add(name string, socket syscall.Conn) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var copied int
	var copyErr error
	err = raw.Control(func(fd uintptr) {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		if copied, copyErr = syscall.Dup(int(fd)); copyErr == nil {
			syscall.CloseOnExec(copied)
		}
	})
	if err := errors.Join(err, copyErr); err != nil {
		return err
	}
	h.fds, h.names = append(h.fds, copied), append(h.names, name)
	return nil
}

func (h *handOn) close() {
	for _, fd := range h.fds {
		syscall.Close(fd)
	}
}

// environment says in the environment of the other process what it gets. It does not
// say to which process: that has no number yet.
func (h *handOn) environment() []string {
	own := slices.DeleteFunc(os.Environ(), func(line string) bool {
		name, _, _ := strings.Cut(line, "=")
		return slices.Contains([]string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", handOverVariable}, name)
	})
	return append(own, fmt.Sprintf("LISTEN_FDS=%d", len(h.fds)), "LISTEN_FDNAMES="+strings.Join(h.names, ":"))
}
