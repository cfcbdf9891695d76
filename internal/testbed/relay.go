package testbed

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// RelaySpec describes a slow line. The zero limits are none.
type RelaySpec struct {
	// Port is where the relay listens on its host; 0 takes a free one.
	Port uint16
	// Target is where it connects to: "NAME:PORT" or "IP:PORT".
	Target string
	// BytesPerSecond limits each direction, for all connections together.
	BytesPerSecond int
	// Delay is added to what goes through, each way, so a round trip takes twice
	// that. Connecting is not delayed.
	Delay time.Duration
}

// A Relay passes TCP connections on, slowly: kernels of test machines often
// lack the means to slow a network down. It runs in this process, with its
// sockets on a host of the bed.
type Relay struct {
	host     *Host
	spec     RelaySpec
	listener net.Listener
	to, from direction
	cancel   context.CancelFunc
	serving  sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// A direction is shared by all connections of a relay.
type direction struct {
	limit *rate.Limiter
	bytes atomic.Int64
}

const (
	// relayChunk is what is read at once, and the burst of the limit.
	relayChunk = 16 << 10
	// relayQueue is how many chunks are on the line at once: 4 MiB, enough for
	// 40 MB/s at a delay of 100 ms.
	relayQueue = 256
)

// Relay starts a relay on the host; it ends with the host, or by Close.
func (h *Host) Relay(spec RelaySpec) (*Relay, error) {
	if _, err := h.bed.resolve(spec.Target); err != nil {
		return nil, err
	}
	listener, err := h.Listen(spec.Port)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background()) // ends by Close
	r := &Relay{host: h, spec: spec, listener: listener, cancel: cancel, conns: map[net.Conn]struct{}{}}
	for _, d := range []*direction{&r.to, &r.from} {
		d.limit = rate.NewLimiter(rate.Inf, relayChunk)
		if spec.BytesPerSecond > 0 {
			d.limit.SetLimit(rate.Limit(spec.BytesPerSecond))
		}
	}
	r.serving.Go(func() { r.serve(ctx) })
	h.mu.Lock()
	defer h.mu.Unlock()
	h.relays = append(h.relays, r)
	return r, nil
}

// Port is where the relay listens.
func (r *Relay) Port() int { return r.listener.Addr().(*net.TCPAddr).Port }

// Bytes returns how many bytes went through so far, to the target and back.
func (r *Relay) Bytes() (to, from int64) { return r.to.bytes.Load(), r.from.bytes.Load() }

// Reset breaks every connection that goes through the relay now: both ends see
// a reset. The relay takes new ones.
func (r *Relay) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

// Close ends the relay and its connections, and returns when nothing of it
// runs. A second call does nothing.
func (r *Relay) Close() error {
	r.cancel()
	err := r.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	r.Reset()
	r.serving.Wait()
	return err
}

func (r *Relay) serve(ctx context.Context) {
	for {
		conn, err := r.listener.Accept()
		if err != nil {
			return // closed
		}
		r.serving.Go(func() { r.pass(ctx, conn) })
	}
}

func (r *Relay) pass(ctx context.Context, client net.Conn) {
	defer r.track(client)()
	target, err := r.host.Dial(ctx, r.spec.Target)
	if err != nil {
		client.(*net.TCPConn).SetLinger(0) // the client sees a reset, as it would without us
		return
	}
	defer r.track(target)()
	if ctx.Err() != nil {
		return // Close came before it could see the connections
	}
	var g errgroup.Group
	g.Go(func() error { return r.copy(ctx, &r.to, target, client) })
	g.Go(func() error { return r.copy(ctx, &r.from, client, target) })
	g.Wait() // its errors are how connections end
}

// track lets Reset see a connection until the returned function closes it.
func (r *Relay) track(c net.Conn) (untrack func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, c)
		c.Close()
	}
}

// A parcel is a chunk on the line.
type parcel struct {
	bytes []byte
	due   time.Time
}

// copy moves bytes one way until the end, which it passes on as a half-close. A
// connection that broke has no end to pass on: its other half is not to be told of one
// before it is reset.
func (r *Relay) copy(ctx context.Context, d *direction, to, from net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	line := make(chan parcel, relayQueue)
	var g errgroup.Group
	g.Go(func() error {
		defer close(line)
		err := r.load(ctx, line, from)
		if err != io.EOF {
			cancel()
		}
		return err
	})
	err := d.deliver(ctx, line, to)
	cancel()
	if err != nil {
		from.Close() // so that load ends too
	}
	return errors.Join(err, g.Wait())
}

// load puts what arrives onto the line.
func (r *Relay) load(ctx context.Context, line chan<- parcel, from io.Reader) error {
	for {
		buf := make([]byte, relayChunk)
		n, err := from.Read(buf)
		if n > 0 {
			select {
			case line <- parcel{buf[:n], time.Now().Add(r.spec.Delay)}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil {
			return err
		}
	}
}

// deliver writes what comes off the line, not before it is due and no faster
// than allowed.
func (d *direction) deliver(ctx context.Context, line <-chan parcel, to net.Conn) error {
	for p := range line {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(p.due)):
		}
		if err := d.limit.WaitN(ctx, len(p.bytes)); err != nil {
			return err
		}
		if _, err := to.Write(p.bytes); err != nil {
			return err
		}
		d.bytes.Add(int64(len(p.bytes)))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return to.(*net.TCPConn).CloseWrite()
}
