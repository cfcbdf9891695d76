package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/policy"
)

// memTarget is one end of a connection to a target in memory.
type memTarget struct {
	*memConn
	mu     sync.Mutex
	broken error // what Read returns at its end instead of io.EOF
}

func (t *memTarget) CloseWrite() error {
	t.out.close()
	return nil
}

func (t *memTarget) Read(p []byte) (int, error) {
	n, err := t.memConn.Read(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == io.EOF && t.broken != nil {
		err = t.broken
	}
	return n, err
}

// breakDown is what a target's end does when its machine resets the connection.
func (t *memTarget) breakDown(err error) {
	t.mu.Lock()
	t.broken = err
	t.mu.Unlock()
	t.Close()
}

// names is a name service that may answer otherwise each time. What is dialled
// is noted.
type names struct {
	answers [][]netip.Addr // one after the other, the last one for ever
	err     error
	asked   []string
	dialled []netip.AddrPort
	dial    func(ctx context.Context, at netip.AddrPort) error
}

func (n *names) lookup(_ context.Context, network, host string) ([]netip.Addr, error) {
	n.asked = append(n.asked, network+" "+host)
	if n.err != nil || len(n.answers) == 0 {
		return nil, n.err
	}
	answer := n.answers[0]
	if len(n.answers) > 1 {
		n.answers = n.answers[1:]
	}
	return answer, nil
}

func (n *names) connect(ctx context.Context, access *policy.Access, host string, port uint32) error {
	b := bastion{
		lookup: n.lookup, machine: func() (machine, error) { return here, nil },
		dial: func(ctx context.Context, at netip.AddrPort) (JumpConn, error) {
			n.dialled = append(n.dialled, at)
			if n.dial != nil {
				if err := n.dial(ctx, at); err != nil {
					return nil, err
				}
			}
			return &memTarget{}, nil
		},
	}
	_, err := b.connect(ctx, yard, access, host, port)
	return err
}

func addrs(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// wantDialled expects attempts in this order.
func (n *names) wantDialled(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, at := range n.dialled {
		got = append(got, at.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("dialled %q, want %q", got, want)
	}
}

func wantNoWay(t *testing.T, what string, err error) {
	t.Helper()
	if no := (*JumpRefusal)(nil); !errors.As(err, &no) {
		t.Errorf("%s: %v, want it refused", what, err)
	}
}

// Guards against a name that means one address when it is checked and another when
// it is dialled.
func TestRebindingNameIsResolvedOnce(t *testing.T) {
	n := &names{answers: [][]netip.Addr{addrs("192.0.2.7"), addrs("127.0.0.1")}}
	if err := n.connect(t.Context(), accessTo(onHost("*.example.org", 22)), "rebind.example.org", 22); err != nil {
		t.Fatal(err)
	}
	n.wantDialled(t, "192.0.2.7:22")
	if want := []string{"ip rebind.example.org"}; !slices.Equal(n.asked, want) {
		t.Errorf("asked for %q, want %q", n.asked, want)
	}
	wantNoWay(t, "the second answer", n.connect(t.Context(), accessTo(onHost("*.example.org", 22)), "rebind.example.org", 22))
	n.wantDialled(t, "192.0.2.7:22")
}

// Guards against a listed name that leads somewhere else: all of its addresses are
// looked at, in whatever clothes.
func TestOneForbiddenAddressSpoilsTheName(t *testing.T) {
	var answers [][]netip.Addr
	for text := range forbiddenAddresses {
		if at := netip.MustParseAddrPort(text); at.Port() == 22 {
			answers = append(answers, []netip.Addr{netip.MustParseAddr("192.0.2.7"), at.Addr()})
		}
	}
	answers = append(answers, addrs("::ffff:127.0.0.1"), addrs("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "::ffff:169.254.169.254"))
	for _, answer := range answers {
		n := &names{answers: [][]netip.Addr{answer}}
		wantNoWay(t, answer[len(answer)-1].String(), n.connect(t.Context(), accessTo(onHost("*.example.org", 22)), "evil.example.org", 22))
		n.wantDialled(t)
	}
}

// Guards against questions to the name service that a client chooses: they carry
// data out, and their time tells what exists.
func TestNamesThatAreNotListedAreNotResolved(t *testing.T) {
	n := &names{answers: [][]netip.Addr{addrs("192.0.2.7")}}
	access := accessTo(onHost("*.example.org", 22), onNet("192.0.2.0/24", 22), onBuilder("builder1"))
	for _, host := range append([]string{"secret.evil.com", "a.b.example.org", "foreign", "local", "here"}, hostileHosts...) {
		wantNoWay(t, host, n.connect(t.Context(), access, host, 22))
	}
	for _, port := range []uint32{0, 65558, 65536, 1<<32 - 1} {
		wantNoWay(t, "port", n.connect(t.Context(), access, "git.example.org", port))
		wantNoWay(t, "port", n.connect(t.Context(), access, "builder1", port))
	}
	n.wantDialled(t)
	if len(n.asked) != 0 {
		t.Errorf("asked for %q", n.asked)
	}
}

// Guards against addresses that a client writes itself.
func TestForbiddenAddressesAreRefusedToo(t *testing.T) {
	n := &names{}
	everything := accessTo(onNet("0.0.0.0/0", 0), onNet("::/0", 0))
	for text := range forbiddenAddresses {
		at := netip.MustParseAddrPort(text)
		wantNoWay(t, text, n.connect(t.Context(), everything, at.Addr().String(), uint32(at.Port())))
	}
	for _, host := range []string{"::ffff:127.0.0.1", "::ffff:7f00:1", "0:0:0:0:0:ffff:a9fe:a9fe"} {
		wantNoWay(t, host, n.connect(t.Context(), everything, host, 22))
	}
	n.wantDialled(t)
	if err := n.connect(t.Context(), everything, "::ffff:192.0.2.7", 22); err != nil {
		t.Error(err)
	}
	n.wantDialled(t, "192.0.2.7:22")
	if len(n.asked) != 0 {
		t.Errorf("asked for %q", n.asked)
	}
}

// Guards against a builder that leads back to this machine because somebody else
// answers for its name; the admin can say that it is meant.
func TestBuildersAreCheckedUnlessTheirAddressIsWritten(t *testing.T) {
	n := &names{answers: [][]netip.Addr{addrs("192.0.2.20"), addrs("127.0.0.1")}}
	access := accessTo(onBuilder("builder1"), onBuilder("here"), onBuilder("Odd"))
	if err := n.connect(t.Context(), access, "builder1", 22); err != nil {
		t.Error(err)
	}
	wantNoWay(t, "a builder whose name leads to loopback", n.connect(t.Context(), access, "builder1", 22))
	for _, host := range []string{"here", "odd"} {
		if err := n.connect(t.Context(), access, host, 22); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	n.wantDialled(t, "192.0.2.20:22", "127.0.0.1:31022", "192.0.2.9:2222")
	// That it is written for the builder opens it under no other name.
	wantNoWay(t, "its address", n.connect(t.Context(), access, "127.0.0.1", 31022))
	named := accessTo(onBuilder("builder1"), onNet("127.0.0.1/32", 22))
	if err := n.connect(t.Context(), named, "builder1", 22); err != nil {
		t.Errorf("a builder on loopback that is listed: %v", err)
	}
}

// Guards against a name with many addresses, of which only the last answers or none.
func TestAddressesAreTriedInOrder(t *testing.T) {
	answer := addrs("2001:db8::7", "192.0.2.7", "192.0.2.8", "192.0.2.9", "192.0.2.10", "192.0.2.11")
	access := accessTo(onHost("*.example.org", 22))
	n := &names{answers: [][]netip.Addr{answer}, dial: func(_ context.Context, at netip.AddrPort) error {
		if at.Addr().Is6() {
			return syscall.ENETUNREACH
		}
		return nil
	}}
	if err := n.connect(t.Context(), access, "many.example.org", 22); err != nil {
		t.Error(err)
	}
	n.wantDialled(t, "[2001:db8::7]:22", "192.0.2.7:22")
	n = &names{answers: [][]netip.Addr{answer}, dial: func(context.Context, netip.AddrPort) error { return syscall.ECONNREFUSED }}
	if err := n.connect(t.Context(), access, "many.example.org", 22); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, want the last attempt's error", err)
	}
	if len(n.dialled) != maxAddresses {
		t.Errorf("%d addresses were dialled, want %d", len(n.dialled), maxAddresses)
	}
	n = &names{answers: [][]netip.Addr{nil}}
	if err := n.connect(t.Context(), access, "none.example.org", 22); !errors.Is(err, errNoAddress) {
		t.Errorf("a name without addresses: %v", err)
	}
}

// Guards against one address that swallows packets and leaves no time for the next.
func TestAddressesShareTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var took time.Duration
		n := &names{answers: [][]netip.Addr{addrs("2001:db8::7", "192.0.2.7")}, dial: func(ctx context.Context, at netip.AddrPort) error {
			if at.Addr().Is4() {
				took = time.Since(start)
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := n.connect(ctx, accessTo(onHost("*.example.org", 22)), "two.example.org", 22); err != nil || took != 5*time.Second {
			t.Errorf("%v after %s, want an answer after 5 s", err, took)
		}
	})
}

// Guards against a name service that does not answer.
func TestLookupHasATimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bastion{lookup: func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, &net.DNSError{Err: ctx.Err().Error(), IsTimeout: true}
		}}
		start := time.Now()
		_, err := b.connect(t.Context(), yard, accessTo(onHost("*.example.org", 22)), "slow.example.org", 22)
		if got := jumpFailure(err); got != "the name could not be resolved" || time.Since(start) != lookupPatience {
			t.Errorf("%q (%v) after %s", got, err, time.Since(start))
		}
	})
}

// Guards against a machine that does not know itself and lets everybody in.
func TestUnknownMachineIsNoBastion(t *testing.T) {
	broken := errors.New("netlink is gone")
	b := bastion{machine: func() (machine, error) { return machine{}, broken }}
	if _, err := b.connect(t.Context(), yard, accessTo(onNet("192.0.2.0/24", 22)), "192.0.2.7", 22); !errors.Is(err, broken) {
		t.Errorf("%v, want %v", err, broken)
	}
}

// Guards against an error that comes as a connection: nil in an interface is none.
func TestDialErrorIsNoConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := addrPort(l.Addr())
	l.Close()
	conn, err := dialTarget(t.Context(), at)
	if conn != nil || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v and %v", conn, err)
	}
}
