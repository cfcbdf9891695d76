package serve

import (
	"context"
	"fmt"
	"io"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// Draining ends sessions in which nothing is asked for, once it has begun.
type Draining = wire.Draining

// ServeOptions say what a server lets its client do.
type ServeOptions struct {
	// Write says that the command had --write and that the client may write.
	// Without it the commands that import and build are refused, and wishes to
	// lock or substitute ignored.
	Write bool
	// Refuse, if not empty, is a sentence with which the client is refused
	// instead of a handshake: Serve returns it. This is the only moment at which
	// a build hook turns to another machine by itself.
	Refuse string
	// Stopping ends the session between two commands once it is closed. May be
	// nil.
	Stopping <-chan struct{}
	// Draining ends a session in which nothing is asked for. May be zero.
	Draining Draining
	// Stderr takes the logs of commands as text; it is the standard error of the
	// program that the client believes to talk to. A client that does not read
	// it delays its own commands and nobody else's. Nil drops them.
	Stderr io.Writer
	// SpoolDir is the folder in which ImportPaths keeps one NAR at a time, of at
	// most 4 GiB, until its name has arrived behind it. Empty refuses ImportPaths.
	SpoolDir string
	// Limits bound what a client may send.
	Limits Limits
	// OnHandshake is called once with the version that was agreed on. May be nil.
	OnHandshake func(Version)
	// OnOp is called with the name of each command before its request is read
	// further. May be nil.
	OnOp func(op string)
	// OnDone is called when a command is over that was not forbidden: how long it took,
	// and the error that ended the session, which ErrHangUp is part of if the client has
	// gone. May be nil.
	OnDone func(op string, took time.Duration, err error)
	// OnIdle is called before each wait for a request. May be nil.
	OnIdle func()
	// OnError is called with errors of which the client reads only a general
	// sentence, or not all. May be nil.
	OnError func(op string, err error)

	version Version // announced; zero means Announced, others are for tests
}

// Serve answers one client from the store: the handshake, then commands until
// the client ends the stream between two of them, which is nil, as is the end by
// Stopping. A client that leaves inside one is [ErrHangUp].
//
// The text of any other error is for the user, and nobody has told it yet: the
// caller writes it to the same standard error as one line, says exit status 1
// and closes.
//
// The context of a command ends with ctx, and when the client's stream ends.
// ctx does not interrupt the wait for a request: who wants that closes rw. The
// caller closes rw and what is behind Stderr in any case once Serve has
// returned, as goroutines may still wait for the client's next byte, or for it
// to read.
func Serve(ctx context.Context, rw io.ReadWriter, store nix.Store, opts ServeOptions) error {
	s := newSession(rw, store, opts)
	if err := s.handshake(); err != nil {
		return err
	}
	if opts.OnHandshake != nil {
		opts.OnHandshake(s.version)
	}
	for s.awaitRequest() {
		if err := s.serveCommand(ctx); err != nil {
			return err
		}
	}
	return s.r.Err()
}

// session is one client being served.
type session struct {
	conn
	store nix.Store
	opts  ServeOptions
}

func newSession(rw io.ReadWriter, store nix.Store, opts ServeOptions) *session {
	if opts.Stderr == nil {
		opts.Stderr = io.Discard
	}
	if opts.version == 0 {
		opts.version = Announced
	}
	s := &session{store: store, opts: opts}
	s.r, s.w = wire.NewReader(rw), wire.NewWriter(rw)
	s.limits = opts.Limits.WithDefaults()
	s.readMessage()
	return s
}

// awaitRequest reports whether another request comes.
func (s *session) awaitRequest() bool {
	if s.opts.OnIdle != nil {
		s.opts.OnIdle()
	}
	return s.r.MoreUntil(s.opts.Stopping, s.opts.Draining)
}

// request is one command on its way through the server.
type request struct {
	*session
	ctx    context.Context
	cancel context.CancelCauseFunc
	cmd    Command
	log    *logStream
}

// A handler reads the whole request, asks the store and returns what writes the
// reply. It calls received between reading and asking. An error of either ends
// the session.
type handler struct {
	serve func(*request) (reply func() error, err error)
	// forbidden is the refusal of a client that may not write; "" if the command
	// writes nothing.
	forbidden string
}

const (
	noImport = "importing paths is not allowed"
	noBuild  = "building paths is not allowed"
)

var handlers = map[Command]handler{
	cmdQueryValidPaths: {(*request).queryValidPaths, ""},
	cmdQueryPathInfos:  {(*request).queryPathInfos, ""},
	cmdDumpStorePath:   {(*request).dumpStorePath, ""},
	cmdImportPaths:     {(*request).importPaths, noImport},
	cmdExportPaths:     {(*request).exportPaths, ""},
	cmdBuildPaths:      {(*request).buildPaths, noBuild},
	cmdQueryClosure:    {(*request).queryClosure, ""},
	cmdBuildDerivation: {(*request).buildDerivation, noBuild},
	cmdAddToStoreNar:   {(*request).addToStoreNar, noImport},
}

// serveCommand serves one command. An error ends the session.
func (s *session) serveCommand(ctx context.Context) error {
	s.readMessage()
	cmd := Command(s.r.Uint64())
	if s.r.Err() != nil {
		return s.r.Err()
	}
	handle, known := handlers[cmd]
	if !known {
		return closing(nix.Refuse("unknown serve command %d", uint64(cmd)))
	}
	if s.opts.OnOp != nil {
		s.opts.OnOp(cmd.String())
	}
	if handle.forbidden != "" && !s.opts.Write {
		return closing(nix.Refuse("%s", handle.forbidden))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	q := &request{session: s, ctx: ctx, cancel: cancel, cmd: cmd, log: newLogStream(ctx, s.opts.Stderr)}
	began := time.Now()
	reply, err := handle.serve(q)
	err = q.answer(reply, err)
	if s.opts.OnDone != nil {
		s.opts.OnDone(cmd.String(), time.Since(began), err)
	}
	return err
}

// received is called when the request was read: it returns what is wrong with
// it, and from now on notices a client that leaves.
func (q *request) received() error {
	if err := q.r.Err(); err != nil {
		return err
	}
	q.watch()
	return nil
}

func (q *request) watch() { q.r.Watch(q.hangUp) }

func (q *request) hangUp() { q.cancel(ErrHangUp) }

// lastWords is how long the log of a command that ends the session may take to
// reach the client: one that does not read it may be sending an upload, so that
// nobody would notice that it has left.
const lastWords = 10 * time.Second

// answer ends the command: first all of its log, then the reply.
func (q *request) answer(reply func() error, err error) error {
	if q.r.Err() != nil {
		q.log.close(q.ctx)
		return q.fail(q.r.Err())
	}
	if err != nil {
		return q.refuse(err)
	}
	q.log.close(q.ctx)
	hungUp := context.Cause(q.ctx) == ErrHangUp // asked before the client has its reply and may leave
	if err := reply(); err != nil {
		return q.refuse(err)
	}
	if err := q.w.Flush(); err != nil {
		return fmt.Errorf("answer %s: %w: %w", q.cmd, ErrHangUp, err)
	}
	if hungUp {
		return fmt.Errorf("%s: %w", q.cmd, ErrHangUp)
	}
	return nil
}

// refuse ends the session over an error that the protocol has no field for.
func (q *request) refuse(err error) error {
	ctx, cancel := context.WithTimeout(q.ctx, lastWords)
	defer cancel()
	q.log.close(ctx)
	if context.Cause(q.ctx) == ErrHangUp || q.w.Err() != nil {
		return fmt.Errorf("%s: %w: %w", q.cmd, ErrHangUp, err)
	}
	q.report(err)
	q.w.Flush()
	return closing(err)
}

// fail ends a session whose stream broke or makes no sense. Bytes that make no
// sense are explained to whoever sent them.
func (q *request) fail(err error) error {
	if !wire.IsFormat(err) {
		return fmt.Errorf("%s: %w: %w", q.cmd, ErrHangUp, err)
	}
	return &closingError{text: fmt.Sprintf("read %s: %v", q.cmd, err), err: err}
}

// report tells the owner of the server what the client is not told.
func (q *request) report(err error) {
	if _, more := wire.ForUser(err); !more || q.opts.OnError == nil || q.ctx.Err() != nil {
		return
	}
	q.opts.OnError(q.cmd.String(), err)
}

// done is the reply of commands that return the number 1.
func (q *request) done() error {
	q.w.Uint64(1)
	return nil
}
