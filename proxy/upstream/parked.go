package upstream

import "io"

// parked watches the output of a process of which nothing is expected. Whatever
// comes, a byte or the end, spoils the session: there is no other way to see
// what waits in an ssh channel.
//
// The watch is one read of one byte in a goroutine. It cannot be called off, so
// the next reader waits for it and takes what it got. Its methods are called by
// the owner of the process alone.
type parked struct {
	done chan struct{} // nil if there is no watch
	n    int
	err  error
	byte [1]byte
}

// watch calls spoiled once, from another goroutine, when something comes.
func (k *parked) watch(src io.Reader, spoiled func(), run func(func())) {
	if k.done != nil {
		return // still watching: the session was given out and came back unused
	}
	done := make(chan struct{})
	k.done = done
	run(func() {
		k.n, k.err = src.Read(k.byte[:])
		close(done)
		spoiled()
	})
}

// spoiled reports whether something came that nobody has read.
func (k *parked) spoiled() bool { return k.done != nil && isClosed(k.done) }

// read is src.Read after the watch.
func (k *parked) read(src io.Reader, b []byte) (int, error) {
	if k.done == nil || len(b) == 0 {
		return src.Read(b)
	}
	<-k.done
	k.done = nil
	return copy(b, k.byte[:k.n]), k.err
}
