package proxy

import (
	"io"
	"time"
)

// steadyWriter writes to a channel and closes the connection when the peer lets a
// write stand still. A channel of x/crypto/ssh has no deadline: a peer that stops
// reading would hold the writer, and what that holds, for ever.
//
// It is safe for concurrent use, unlike the channel itself.
type steadyWriter struct {
	w     io.Writer
	limit time.Duration
	stall func() // called once per stall, from another goroutine

	turn  chan struct{} // has a token while somebody writes
	timer *time.Timer   // of who has the turn; nil before the first write
}

func newSteadyWriter(w io.Writer, limit time.Duration, stall func()) *steadyWriter {
	return &steadyWriter{w: w, limit: limit, stall: stall, turn: make(chan struct{}, 1)}
}

// stepBytes is what counts as progress: one packet of SSH.
const stepBytes = 32 << 10

func (s *steadyWriter) Write(p []byte) (n int, err error) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	for err == nil && len(p) > 0 {
		var m int
		m, err = s.step(p[:min(len(p), stepBytes)])
		n, p = n+m, p[m:]
	}
	return n, err
}

func (s *steadyWriter) step(p []byte) (int, error) {
	if s.timer == nil {
		s.timer = time.AfterFunc(s.limit, s.stall)
	} else {
		s.timer.Reset(s.limit)
	}
	defer s.timer.Stop()
	return s.w.Write(p)
}
