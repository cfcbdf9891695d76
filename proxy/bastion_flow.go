package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// flows are both directions of a jump. Each ends with its source, and the other
// goes on: who has sent everything still wants the answer.
type flows struct {
	up, down flow // from client to target, and back
	wg       sync.WaitGroup
	begin    time.Time
	last     atomic.Int64 // when a byte came from either side, in ns after begin
	stuck    chan string  // why it has to end now; one is enough
}

// flow is one direction.
type flow struct {
	from  io.Reader
	to    io.Writer
	shut  func() error // ends our side of to
	moved atomic.Int64 // bytes
	done  chan flowEnd
}

// flowEnd is how a direction ended.
type flowEnd struct {
	why string // "" at the end of its source
	now bool   // the other direction has no use any more
}

const closedByClient = "closed by the client"

// carry moves bytes until the jump is over, and returns why it is. The channel is
// gone then and nothing runs any more.
func (j *jump) carry() (why string) {
	j.begin = time.Now()
	j.start(&j.up, &input{j.conn, j.channel}, j.toTarget(), j.target.CloseWrite, j.upEnd)
	j.start(&j.down, j.target, j.toClient(), j.channel.CloseWrite, j.downEnd)
	gone := make(chan struct{})
	j.conn.sessions.Go(func() {
		defer j.conn.front.recovered("requests of a jump")
		defer close(gone)
		j.conn.drain(j.requests)
	})
	why = j.await(gone)
	j.target.Close()
	j.channel.Close()
	j.conn.awaitGone(gone)
	j.wg.Wait()
	return why
}

func (j *jump) start(f *flow, from io.Reader, to io.Writer, shut func() error, endOf func(readErr, writeErr error) flowEnd) {
	f.from, f.to, f.shut, f.done = from, to, shut, make(chan flowEnd, 1)
	j.wg.Go(func() {
		end := flowEnd{"internal error", true}
		defer func() { f.done <- end }()
		defer j.conn.front.recovered("bytes of a jump")
		end = endOf(f.run(&j.flows))
	})
}

// upEnd leaves the other direction alone when the target does not want any more:
// it may have answered before it closed.
func (j *jump) upEnd(_, writeErr error) flowEnd {
	switch {
	case writeErr == nil:
		return flowEnd{}
	case errors.Is(writeErr, os.ErrDeadlineExceeded):
		return flowEnd{fmt.Sprintf("target read nothing for %s", j.conn.front.limits.WriteStall), true}
	}
	return flowEnd{why: ofTarget(writeErr)}
}

func (j *jump) downEnd(readErr, writeErr error) flowEnd {
	switch {
	case writeErr != nil:
		return flowEnd{closedByClient, true}
	case readErr != nil:
		return flowEnd{ofTarget(readErr), true}
	}
	return flowEnd{}
}

// ofTarget leaves out the addresses, which the line has already.
func ofTarget(err error) string {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err
	}
	return "target: " + err.Error()
}

// await returns why it is time to end. What a client sent before it closed its
// channel still goes out, and what a target sent before it broke down comes in.
func (j *jump) await(gone <-chan struct{}) string {
	limit := j.conn.front.limits.JumpIdle
	idle := time.NewTimer(limit)
	defer idle.Stop()
	up, down, broken := j.up.done, j.down.done, ""
	for up != nil || down != nil {
		select {
		case end := <-up:
			if up = nil; end.now || gone == nil {
				return cmp.Or(end.why, closedByClient)
			}
			broken = end.why
		case end := <-down:
			if down = nil; end.now || broken != "" {
				return cmp.Or(end.why, broken)
			}
		case <-gone:
			if gone = nil; up == nil {
				return closedByClient
			}
		case why := <-j.stuck:
			return why
		case <-idle.C:
			left := limit - j.quiet()
			if left <= 0 {
				return fmt.Sprintf("idle for %s", limit)
			}
			idle.Reset(left)
		case <-j.conn.ctx.Done():
			return "connection ended"
		case <-j.conn.front.stopping:
			return "shutdown"
		}
	}
	return cmp.Or(broken, "both sides ended")
}

// quiet is for how long no byte came from either side.
func (f *flows) quiet() time.Duration { return time.Since(f.begin) - time.Duration(f.last.Load()) }

// smallRead is what a direction reads into while little comes, in bytes: a jump
// with nobody at the keyboard holds no block.
const smallRead = 4 << 10

// run moves bytes until the end of the source, which it passes on, or an error.
func (f *flow) run(all *flows) (readErr, writeErr error) {
	small := make([]byte, smallRead)
	for n := 0; readErr == nil && writeErr == nil; {
		if n < smallRead {
			n, readErr, writeErr = f.step(all, small)
			continue
		}
		block := readBlocks.Get().(*[]byte)
		n, readErr, writeErr = f.step(all, *block)
		readBlocks.Put(block)
	}
	if readErr == io.EOF && writeErr == nil {
		return nil, f.shut()
	}
	return readErr, writeErr
}

func (f *flow) step(all *flows, buf []byte) (n int, readErr, writeErr error) {
	n, readErr = f.from.Read(buf)
	if n > 0 {
		all.last.Store(int64(time.Since(all.begin)))
		_, writeErr = f.to.Write(buf[:n])
		f.moved.Add(int64(n))
	}
	return n, readErr, writeErr
}

// toClient ends the jump, not the connection, when the client reads nothing:
// other jumps and sessions on it do not suffer for a program that is paused.
func (j *jump) toClient() io.Writer {
	limit := j.conn.front.limits.WriteStall
	return newSteadyWriter(j.channel, limit, func() { j.end(stalled(limit)) })
}

// end ends the jump for a reason of ours. It waits for nothing.
func (j *jump) end(why string) {
	select {
	case j.stuck <- why:
	default:
	}
}

func (j *jump) toTarget() io.Writer { return &steadySocket{j.target, j.conn.front.limits.WriteStall} }

// steadySocket writes to a target and fails with [os.ErrDeadlineExceeded] when
// that lets a write stand still for limit, or twice that if it took a part before.
type steadySocket struct {
	conn  net.Conn
	limit time.Duration
}

func (s *steadySocket) Write(p []byte) (n int, err error) {
	for {
		s.conn.SetWriteDeadline(time.Now().Add(s.limit))
		m, err := s.conn.Write(p[n:])
		n += m
		if m == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
	}
}
