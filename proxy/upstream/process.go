package upstream

import (
	"context"
	"io"
	"time"
)

// process is what answers a session: a program on a builder, seen through the
// channel on which it runs, or what this machine's daemon forks for a connection.
// Reading and writing are its standard output and input, one reader and one
// writer at a time.
type process interface {
	// Close asks the process to end and returns at once; gone tells when it has.
	// Anybody may call it, several times.
	io.ReadWriteCloser

	// greeted says that the handshake is done.
	greeted()
	// watch calls spoiled once, from another goroutine, when the process says
	// something or ends before the next read.
	watch(spoiled func())
	// spoiled reports whether it did either.
	spoiled() bool
	// over reports whether the process has ended.
	over() bool
	// proven reports whether the way to the process works, and asks the builder
	// where that is in doubt. Silent reports whether it did not answer so far.
	proven(ctx context.Context) bool
	silent() bool
	// late, giveUp and received are what [Session.Late], [Session.Hung] and
	// [Session.Stale] ask for: received changes with every byte from the builder.
	late() time.Duration
	giveUp()
	received() int64

	// server is how what runs it calls itself.
	server() string
	// tap hands what the process says beside the protocol to w, from now on. Untap
	// ends that, once all was handed on that came before the last answer, the
	// process has ended, or ctx has.
	tap(w io.Writer)
	untap(ctx context.Context)
	// forget drops what it said so far, so that remark does not repeat it.
	forget()

	// gone is closed when nothing is left of the process here.
	gone() <-chan struct{}
	// endSeen reports, once it is gone, whether it was seen to end.
	endSeen() bool
	// remark is what it said beside the protocol and how it ended. It waits a
	// moment for both, and for the end of the connection if that is the cause.
	remark() remark
	// lost is why the connection under it ended, nil while it lives.
	lost() error
}
