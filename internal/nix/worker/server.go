package worker

import (
	"context"
	"fmt"
	"io"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// ErrHangUp says that a client went away while an operation ran for it.
var ErrHangUp = wire.ErrHangUp

// Draining ends sessions in which nothing is asked for, once it has begun.
type Draining = wire.Draining

// ServeOptions say how a server presents itself.
type ServeOptions struct {
	// DaemonVersion is the version of Nix that clients are told, for people
	// only. Empty becomes "unknown": no client expects an empty one.
	DaemonVersion string
	// Trust is what the client is told of its standing. Clients from 2.16 on
	// build in another way where it is NotTrusted.
	Trust nix.Trust
	// Features are offered to clients of 1.38. None by default.
	Features []string
	// Refuse, if not empty, is a sentence with which the client is refused in
	// the handshake. This is the only moment at which a build hook turns to
	// another machine by itself.
	Refuse string
	// Stopping ends the session between two operations once it is closed. May be
	// nil.
	Stopping <-chan struct{}
	// Draining ends a session in which nothing is asked for. May be zero.
	Draining Draining
	// Limits bound what a client may send.
	Limits Limits
	// OnHandshake is called once with the version that was agreed on. May be nil.
	OnHandshake func(Version)
	// OnOp is called with the name of each operation before its request is read
	// further. May be nil.
	OnOp func(op string)
	// OnDone is called when an operation is over: how long it took, and the error that it
	// was answered with or that ended the session, which ErrHangUp is part of if the
	// client has gone. May be nil.
	OnDone func(op string, took time.Duration, err error)
	// OnIdle is called before each wait for a request. May be nil.
	OnIdle func()
	// OnError is called with errors of which the client reads only a general
	// sentence, or not all. May be nil.
	OnError func(op string, err error)
}

// Serve answers one client from the store: the handshake, then operations until
// the client ends the stream between two of them, which is nil, as is the end
// by Stopping. A client that leaves inside one is ErrHangUp. Whatever else is returned has been told to the
// client where the protocol allows; the exceptions are a wrong magic number and
// a [VersionError], which belong on the standard error of the ssh session.
//
// The context of an operation ends with ctx, and when the client's stream ends.
// ctx does not interrupt the wait for a request: who wants that closes rw. The
// caller closes rw in any case once Serve has returned, as a goroutine may still
// wait for its next byte.
func Serve(ctx context.Context, rw io.ReadWriter, store nix.Store, opts ServeOptions) error {
	s := newSession(rw, store, opts)
	if err := s.handshake(); err != nil {
		return err
	}
	if opts.OnHandshake != nil {
		opts.OnHandshake(s.version)
	}
	for s.awaitRequest() {
		if err := s.serveOp(ctx); err != nil {
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
	if opts.DaemonVersion == "" {
		opts.DaemonVersion = "unknown"
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

// request is one operation on its way through the server.
type request struct {
	*session
	ctx    context.Context
	cancel context.CancelCauseFunc
	op     Op
	log    *logStream
	// answered says that the reply, or the error of an upload, was sent already.
	answered bool
	// aborted is what went wrong where only closing tells it.
	aborted error
}

// A handler reads the whole request, asks the store and returns what writes the
// fields of the reply; nil if there are none. It calls received between reading
// and asking. An error of the reader ends the session, any other is told to the
// client, who may go on.
type handler func(*request) (fields func(), err error)

// serveOp serves one operation. An error ends the session.
func (s *session) serveOp(ctx context.Context) error {
	s.readMessage()
	op := Op(s.r.Uint64())
	if s.r.Err() != nil {
		return s.r.Err()
	}
	handle, known := handlers[op]
	if !known {
		return s.refuseUnknown(op)
	}
	if s.opts.OnOp != nil {
		s.opts.OnOp(op.String())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	q := &request{session: s, ctx: ctx, cancel: cancel, op: op, log: newLogStream(&s.conn)}
	began := time.Now()
	fields, err := handle(q)
	q.log.close()
	end := q.answer(fields, err)
	if end != nil {
		err = end
	}
	if s.opts.OnDone != nil {
		s.opts.OnDone(op.String(), time.Since(began), err)
	}
	return end
}

// refuseUnknown ends the session, since the length of the request is not known.
func (s *session) refuseUnknown(op Op) error {
	err := fmt.Errorf("invalid operation %d", uint64(op))
	s.writeRemoteError(&nix.RemoteError{Message: err.Error()})
	s.w.Flush()
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

// answer ends the operation.
func (q *request) answer(fields func(), err error) error {
	if q.r.Err() != nil {
		return q.fail(q.r.Err())
	}
	hungUp := !q.answered && context.Cause(q.ctx) == ErrHangUp // asked before the client has its reply and may leave
	switch {
	case q.answered:
	case err != nil:
		q.report(err)
		q.writeError(err)
	default:
		q.w.Uint64(stderrLast)
		if fields != nil {
			fields()
		}
	}
	if err := q.w.Flush(); err != nil {
		return fmt.Errorf("answer %s: %w", q.op, err)
	}
	if q.aborted != nil {
		return q.aborted
	}
	if hungUp {
		return fmt.Errorf("%s: %w", q.op, ErrHangUp)
	}
	return nil
}

// fail ends a session whose stream broke or makes no sense. Bytes that make no
// sense are explained to whoever sent them.
func (q *request) fail(err error) error {
	if !wire.IsFormat(err) {
		return fmt.Errorf("%s: %w: %w", q.op, ErrHangUp, err)
	}
	err = fmt.Errorf("read %s: %w", q.op, err)
	if !q.answered {
		q.writeRemoteError(&nix.RemoteError{Message: err.Error()})
	}
	q.w.Flush()
	return err
}

// report tells the owner of the server what the client is not told.
func (q *request) report(err error) {
	if _, more := wire.ForUser(err); !more || q.opts.OnError == nil || q.ctx.Err() != nil {
		return
	}
	q.opts.OnError(q.op.String(), err)
}

// handlers has every operation of which the form of the request is known.
var handlers = map[Op]handler{
	opIsValidPath:                 (*request).isValidPath,
	opHasSubstitutes:              (*request).hasSubstitutes,
	opQueryPathHash:               (*request).queryPathHash,
	opQueryReferences:             (*request).queryReferences,
	opQueryReferrers:              (*request).queryReferrers,
	opAddToStore:                  (*request).addToStore,
	opAddTextToStore:              (*request).addTextToStore,
	opBuildPaths:                  (*request).buildPaths,
	opEnsurePath:                  (*request).ensurePath,
	opAddTempRoot:                 (*request).addTempRoot,
	opAddIndirectRoot:             (*request).addIndirectRoot,
	opSyncWithGC:                  (*request).syncWithGC,
	opFindRoots:                   (*request).findRoots,
	opExportPath:                  (*request).exportPath,
	opQueryDeriver:                (*request).queryDeriver,
	opSetOptions:                  (*request).setOptions,
	opCollectGarbage:              (*request).collectGarbage,
	opQuerySubstitutablePathInfo:  (*request).querySubstitutablePathInfo,
	opQueryDerivationOutputs:      (*request).queryDerivationOutputs,
	opQueryAllValidPaths:          (*request).queryAllValidPaths,
	opQueryPathInfo:               (*request).queryPathInfo,
	opImportPaths:                 (*request).importPaths,
	opQueryDerivationOutputNames:  (*request).queryDerivationOutputNames,
	opQueryPathFromHashPart:       (*request).queryPathFromHashPart,
	opQuerySubstitutablePathInfos: (*request).querySubstitutablePathInfos,
	opQueryValidPaths:             (*request).queryValidPaths,
	opQuerySubstitutablePaths:     (*request).querySubstitutablePaths,
	opQueryValidDerivers:          (*request).queryValidDerivers,
	opOptimiseStore:               (*request).optimiseStore,
	opVerifyStore:                 (*request).verifyStore,
	opBuildDerivation:             (*request).buildDerivation,
	opAddSignatures:               (*request).addSignatures,
	opNarFromPath:                 (*request).narFromPath,
	opAddToStoreNar:               (*request).addToStoreNar,
	opQueryMissing:                (*request).queryMissing,
	opQueryDerivationOutputMap:    (*request).queryDerivationOutputMap,
	opRegisterDrvOutput:           (*request).registerDrvOutput,
	opQueryRealisation:            (*request).queryRealisation,
	opAddMultipleToStore:          (*request).addMultipleToStore,
	opAddBuildLog:                 (*request).addBuildLog,
	opBuildPathsWithResults:       (*request).buildPathsWithResults,
	opAddPermRoot:                 (*request).addPermRoot,
}

// done is the reply of operations that return the number 1 instead of nothing.
func (q *request) done() { q.w.Uint64(1) }

// doneIf returns that reply, or the error.
func (q *request) doneIf(err error) (func(), error) { return q.done, err }

// unsupported is the answer to operations that the store does not have.
func (q *request) unsupported() error {
	return nix.Refuse("%s is not supported through this proxy", q.op)
}
