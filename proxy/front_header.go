package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/pires/go-proxyproto"
)

// A load balancer says in a PROXY header (v1 or v2) whose connection it hands on. It
// is believed from listed networks alone, and must be there then: who could choose
// whether to send one could say where he comes from.

// headerTimeout is for a header, which balancers send with the first packet.
const headerTimeout = 5 * time.Second

// headerBuffer is read at once, in bytes. What comes behind a header is kept.
const headerBuffer = 512

var errUnlistedHeader = errors.New("PROXY header from an address that is not listed in ssh.proxy_protocol")

// learnSource replaces the address of a balancer by that of its client. Meanwhile the
// connection waits among those who log in, under the balancer's address.
func (c *frontConn) learnSource() error {
	if !inNetworks(c.front.balancers(), c.remote.Addr()) {
		return nil
	}
	if !c.takePlace() {
		return errNoPlace
	}
	defer c.front.room.leave(c.waiter)
	timer := time.AfterFunc(headerTimeout, func() { c.abort(fmt.Sprintf("no PROXY header within %s", headerTimeout)) })
	defer timer.Stop()
	in := bufio.NewReaderSize(c, headerBuffer)
	header, err := proxyproto.Read(in)
	if err != nil {
		return fmt.Errorf("read PROXY header: %w", err)
	}
	rest, _ := in.Peek(in.Buffered()) // never waits
	c.replay = bytes.Clone(rest)
	if header.Command.IsLocal() { // the balancer itself, to see whether we live
		c.balancer = true
		return nil
	}
	from, _, ok := header.TCPAddrs()
	if !ok {
		return errors.New("read PROXY header: no TCP addresses in it")
	}
	c.remote = addrPort(from)
	return nil
}

// RemoteAddr is where the client is, behind a balancer too.
func (c *frontConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// isHeader recognises what begins like a PROXY header.
func isHeader(raw []byte) bool {
	return slices.ContainsFunc([][]byte{proxyproto.SIGV1, proxyproto.SIGV2}, func(sig []byte) bool {
		n := min(len(raw), len(sig))
		return n > 1 && bytes.Equal(raw[:n], sig[:n])
	})
}
