package proxy

import (
	"fmt"
	"sync"
	"time"
)

// keepAliveRequest is OpenSSH's; every implementation answers requests it does
// not know with a refusal, which is as good a sign of life.
const keepAliveRequest = "keepalive@openssh.com"

// keepAlive closes a connection whose peer is gone. Any byte from the peer counts:
// an answer may be queued behind minutes of upload on a slow line. An idle
// connection costs a timer and no goroutine.
type keepAlive struct {
	conn  *frontConn
	asked sync.WaitGroup // questions that wait for their answer

	mu      sync.Mutex // guards what follows
	timer   *time.Timer
	stopped bool
	asking  bool  // only one global request can be outstanding
	seen    int64 // bytes received at the last tick
	silent  int   // ticks without a byte
}

func startKeepAlive(c *frontConn) *keepAlive {
	k := &keepAlive{conn: c}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = time.AfterFunc(c.front.limits.KeepAlive, k.tick)
	return k
}

// stop returns when nothing runs any more. The connection must be closed before:
// that is what ends a question without an answer.
func (k *keepAlive) stop() {
	k.mu.Lock()
	k.stopped = true
	k.timer.Stop()
	k.mu.Unlock()
	k.asked.Wait()
}

func (k *keepAlive) tick() {
	defer k.conn.front.recovered("keep-alive")
	limits := k.conn.front.limits
	silent, ask := k.look()
	if silent > limits.KeepAliveMisses {
		k.conn.lose(fmt.Sprintf("no sign of life for %s", time.Duration(silent)*limits.KeepAlive))
	}
	if ask {
		k.ask()
	}
}

// look counts and arms the next tick; ask is true when the caller has to ask now.
func (k *keepAlive) look() (silent int, ask bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped {
		return 0, false
	}
	if received := k.conn.received.Load(); received != k.seen || k.conn.intake.held.Load() {
		k.seen, k.silent = received, 0
	} else {
		k.silent++
	}
	ask = k.silent > 0 && !k.asking
	if ask {
		k.asking = true
		k.asked.Add(1)
	}
	k.timer.Reset(k.conn.front.limits.KeepAlive)
	return k.silent, ask
}

func (k *keepAlive) ask() {
	defer k.asked.Done()
	if peer := k.conn.peer(); peer != nil {
		peer.SendRequest(keepAliveRequest, true, nil) // its error means the connection is gone
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asking = false
}
