package wire

import (
	"io"
	"time"
)

// peek is one read of the source that runs while the owner of the Reader is
// busy with something else. Its fields are valid once done is closed.
type peek struct {
	done chan struct{}
	n    int
	err  error
}

// Watch waits in a goroutine for what the peer does next while the caller works
// on a request and reads nothing: if the stream ends or breaks, onEnd is called
// once. Bytes that come instead stay in the buffer, and the watch is over. With
// bytes in the buffer already there is nothing to watch: the peer did not wait
// for its answer.
//
// The next read through the Reader waits for the goroutine first, so its owner
// needs no other synchronisation. The goroutine ends with the read of the
// source: who stops reading must close the source.
func (r *Reader) Watch(onEnd func()) {
	if r.err != nil || r.peek != nil || r.r < r.w {
		return
	}
	if r.srcErr != nil {
		onEnd()
		return
	}
	r.settle()
	r.passed += int64(r.r)
	r.r, r.w = 0, 0
	p := &peek{done: make(chan struct{})}
	r.peek = p
	go p.run(r.src, r.buf, onEnd)
}

// Draining bounds how long a peer may ask for nothing, from when Begun is closed on.
// The zero value bounds nothing.
type Draining struct {
	Begun <-chan struct{}
	// Idle is asked once Begun is closed.
	Idle func() time.Duration
}

// MoreUntil is More that gives up when stop is closed, or when a peer asks for nothing
// for too long, and reports false then, too. A nil stop never is.
func (r *Reader) MoreUntil(stop <-chan struct{}, drain Draining) bool {
	if stop == nil && drain.Begun == nil {
		return r.More()
	}
	r.Watch(func() {})
	if r.peek != nil && !r.peek.await(stop, drain) {
		return false
	}
	return r.More()
}

// await reports whether something came, or the end.
func (p *peek) await(stop <-chan struct{}, drain Draining) bool {
	var late <-chan time.Time
	for {
		select {
		case <-p.done:
			return true
		case <-stop:
			return false
		case <-drain.Begun:
			drain.Begun = nil
			late = time.After(drain.Idle())
		case <-late:
			return false
		}
	}
}

func (p *peek) run(src io.Reader, buf []byte, onEnd func()) {
	defer close(p.done)
	p.n, p.err = readSome(src, buf)
	if p.n == 0 {
		onEnd()
	}
}

// join waits for a peek and takes over what it read.
func (r *Reader) join() {
	if r.peek == nil {
		return
	}
	<-r.peek.done
	r.w, r.srcErr = r.peek.n, r.peek.err
	r.peek = nil
}
