package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"nixbastion/policy"
)

// JumpConn is a connection to a target.
type JumpConn interface {
	net.Conn
	// CloseWrite ends our side; the other goes on.
	CloseWrite() error
}

// bastion finds the way to a target: the policy, one resolution, a check of every
// address that came back, and a dial to one of these.
type bastion struct {
	lookup  func(ctx context.Context, network, host string) ([]netip.Addr, error)
	dial    func(ctx context.Context, addr netip.AddrPort) (JumpConn, error)
	machine func() (machine, error)
}

// jump connects to what a client asks for, as [FrontOptions.Jump].
func (p *Proxy) jump(ctx context.Context, who *Identity, host string, port uint32) (JumpConn, error) {
	b := bastion{
		lookup:  net.DefaultResolver.LookupNetIP,
		dial:    dialTarget,
		machine: func() (machine, error) { return ownMachine(p.front.ownDoors()) },
	}
	return b.connect(ctx, p.policy.Current(), who.Data.(*policy.Access), host, port)
}

// reachedConn is a connection to a target, with what the client asked for and where
// that led by the policy.
type reachedConn struct {
	JumpConn
	host string
	port uint32
	goal goal
}

// connect returns a [JumpRefusal] for all that is not allowed.
func (b *bastion) connect(ctx context.Context, pol *policy.Policy, access *policy.Access, host string, port uint32) (JumpConn, error) {
	g, err := goalOf(pol, access, host, port)
	if err != nil {
		return nil, err
	}
	addrs, err := b.resolve(ctx, g)
	if err != nil {
		return nil, err
	}
	conn, err := b.dialAny(ctx, addrs)
	if err != nil {
		return nil, err
	}
	return &reachedConn{conn, host, port, g}, nil
}

// stillLeads returns a [JumpRefusal] if a connection would not be made any more, or would
// lead elsewhere. The name of a host is not resolved again.
func (m machine) stillLeads(pol *policy.Policy, access *policy.Access, c *reachedConn) error {
	g, err := goalOf(pol, access, c.host, c.port)
	if err != nil {
		return err
	}
	if g.host != c.goal.host || g.addr != c.goal.addr || g.port != c.goal.port {
		return refuseJump("the name leads to another host or port now")
	}
	return m.check(addrPort(c.RemoteAddr()), g.listed)
}

const (
	// lookupPatience is how long a name may take to be resolved.
	lookupPatience = 5 * time.Second
	// maxAddresses is how many addresses of one name are dialled.
	maxAddresses = 4
)

// resolve asks once. One address that is not allowed spoils its name: whoever
// answers for it means no good.
func (b *bastion) resolve(ctx context.Context, g goal) ([]netip.AddrPort, error) {
	found := []netip.Addr{g.addr}
	if !g.addr.IsValid() {
		ctx, cancel := context.WithTimeout(ctx, lookupPatience)
		defer cancel()
		var err error
		if found, err = b.lookup(ctx, "ip", g.host); err != nil {
			return nil, fmt.Errorf("resolve: %w", err)
		}
	}
	self, err := b.machine()
	if err != nil {
		return nil, err
	}
	var addrs []netip.AddrPort
	for _, addr := range found {
		at := netip.AddrPortFrom(addr.Unmap(), g.port)
		if err := self.check(at, g.listed); err != nil {
			return nil, err
		}
		addrs = append(addrs, at)
	}
	return addrs[:min(len(addrs), maxAddresses)], nil
}

var errNoAddress = errors.New("the name has no address")

// dialAny tries one address after the other; each has its share of the time.
func (b *bastion) dialAny(ctx context.Context, addrs []netip.AddrPort) (JumpConn, error) {
	err := errNoAddress
	for i, addr := range addrs {
		var conn JumpConn
		if conn, err = b.dialOne(ctx, addr, len(addrs)-i); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

func (b *bastion) dialOne(ctx context.Context, addr netip.AddrPort, left int) (JumpConn, error) {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(left))
		defer cancel()
	}
	return b.dial(ctx, addr)
}

// dialTarget takes no name, so that nothing can be resolved a second time.
func dialTarget(ctx context.Context, addr netip.AddrPort) (JumpConn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}}
	conn, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, addr)
	if err != nil {
		return nil, err // not conn, which would be no nil as a JumpConn
	}
	return conn, nil
}

// jumpFailure is what a client may read of a dial that failed: nothing about our
// own network.
func jumpFailure(err error) string {
	var dns *net.DNSError
	var slow interface{ Timeout() bool }
	switch {
	case errors.Is(err, errNoAudit):
		return errNoAudit.Error()
	case errors.As(err, &dns) && dns.IsNotFound || errors.Is(err, errNoAddress):
		return "no such host"
	case errors.As(err, &dns):
		return "the name could not be resolved"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTDOWN), errors.Is(err, syscall.ENETDOWN):
		return "host unreachable"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &slow) && slow.Timeout():
		return "connection timed out"
	}
	return "could not connect"
}
