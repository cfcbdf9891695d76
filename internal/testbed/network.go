package testbed

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
)

// bridge is the switch of a bed. Names and addresses may be the same in every
// bed, since each has a network namespace of its own for it.
const bridge = "switch"

// network is the private net of a bed; it exists in namespaces only.
var network = netip.MustParsePrefix("10.83.0.0/16")

// hostAddr is the address of the n-th host, counted from 1.
func hostAddr(n int) netip.Addr {
	base := network.Addr().As4()
	base[2], base[3] = byte(n/250), byte(n%250+1)
	return netip.AddrFrom4(base)
}

func makeBridge(ctx context.Context, n *netns) error {
	return ip(ctx, n, "link add "+bridge+" type bridge", "link set "+bridge+" up")
}

// plugIn lays a cable from the switch to the host, where its end is eth0. Only
// boot calls it, before anybody else has the host.
func (h *Host) plugIn(ctx context.Context) error {
	err := ip(ctx, h.bed.net,
		fmt.Sprintf("link add %s type veth peer name eth0 address %s netns %d", h.cable, h.hardwareAddr(), h.pid),
		fmt.Sprintf("link set %s master %s up", h.cable, bridge))
	h.plugged = err == nil
	return err
}

// hardwareAddr stays the same over a restart, as a machine's does: its neighbours
// remember it for longer than they wait for a connection.
func (h *Host) hardwareAddr() net.HardwareAddr {
	const locallyAdministered = 0x02
	addr := h.addr.As4()
	return append(net.HardwareAddr{locallyAdministered, 0}, addr[:]...)
}

// unplug removes the cable of a dead host. Its namespace is still there, held
// by h.net, so the cable is too.
func (h *Host) unplug() error {
	if !h.plugged {
		return nil
	}
	h.plugged = false
	return ip(context.Background(), h.bed.net, "link del "+h.cable)
}

// ip runs commands of ip(8) inside a namespace.
func ip(ctx context.Context, n *netns, commands ...string) error {
	path, err := lookPath("ip")
	if err != nil {
		return err
	}
	return n.do(func() error {
		cmd := exec.CommandContext(ctx, path, "-batch", "-")
		cmd.Stdin = strings.NewReader(strings.Join(commands, "\n"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(commands, "; "), err, out)
		}
		return nil
	})
}

// Cut pulls the host's cable: packets get lost, connections hang and no peer
// is told. Restore plugs it in again.
func (h *Host) Cut() error { return h.setCable("down") }

// Restore undoes Cut.
func (h *Host) Restore() error { return h.setCable("up") }

func (h *Host) setCable(state string) error {
	// Without a context of the caller's, as it takes milliseconds and is often
	// what cleans up.
	return ip(context.Background(), h.bed.net, fmt.Sprintf("link set %s %s", h.cable, state))
}

// Dial connects from the host to address, which is "NAME:PORT" with the name
// of a host of this bed, or "IP:PORT".
func (h *Host) Dial(ctx context.Context, address string) (net.Conn, error) {
	target, err := h.bed.resolve(address)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	err = h.net.do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp4", target.String())
		return err
	})
	return conn, err
}

// Listen opens a listening socket on a port of the host, for a server that runs
// in this process; port 0 takes a free one. The caller closes it.
func (h *Host) Listen(port uint16) (net.Listener, error) {
	var l net.Listener
	err := h.net.do(func() (err error) {
		l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv4Unspecified(), port)))
		return err
	})
	return l, err
}

func (b *Bed) resolve(address string) (netip.AddrPort, error) {
	if target, err := netip.ParseAddrPort(address); err == nil {
		return target, nil
	}
	name, port, ok := strings.Cut(address, ":")
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("testbed: address %q has no port", address)
	}
	b.mu.Lock()
	h := b.hosts[name]
	b.mu.Unlock()
	if h == nil {
		return netip.AddrPort{}, fmt.Errorf("testbed: no host is called %q", name)
	}
	return netip.ParseAddrPort(h.addr.String() + ":" + port)
}
