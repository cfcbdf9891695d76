package worker

import (
	"errors"
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
	"nixbastion/internal/nix/wire"
)

// framed lets use read the framed payload of a request, and skips what it leaves
// of it. If use fails before the end the client is told at once, so that it can
// stop, and its frames are read up to their terminator all the same.
func (q *request) framed(use func(payload io.Reader) error) error {
	frames := wire.NewFrameReader(q.r)
	q.log.setUploading(true)
	err := use(&payload{request: q, src: frames})
	if q.r.Err() != nil {
		return q.r.Err()
	}
	if err != nil && !frames.Done() {
		return q.failUpload(err, frames)
	}
	if _, drainErr := frames.Drain(); drainErr != nil {
		return drainErr
	}
	return err
}

// failUpload sends the error while it reads the rest of the frames: either alone
// could wait for ever for the other side.
func (q *request) failUpload(err error, frames *wire.FrameReader) error {
	q.report(err)
	q.answered = true
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		q.log.close()
		q.writeError(err)
		q.w.Flush()
	}()
	_, drainErr := frames.Drain()
	<-sent
	return errors.Join(err, drainErr)
}

// payload is an upload as the store reads it. When the client has sent it all,
// or has gone, the operation learns of it.
type payload struct {
	*request
	src   io.Reader
	ended bool
}

func (p *payload) Read(b []byte) (int, error) {
	n, err := p.src.Read(b)
	switch {
	case err == nil || p.ended:
	case p.r.Err() != nil:
		p.ended = true
		p.hangUp()
	case err == io.EOF:
		p.ended = true
		p.log.setUploading(false)
		p.watch()
	}
	return n, err
}

// bare lets use read a NAR that stands in the stream without a frame, and skips
// what it leaves of it. A NAR that is broken ends the session, as nobody knows
// where it would end.
func (q *request) bare(use func(payload io.Reader) error) error {
	src := nar.NewReader(q.r)
	q.log.setUploading(true)
	err := use(&payload{request: q, src: src})
	if q.r.Err() != nil {
		return q.r.Err()
	}
	if _, narErr := io.Copy(io.Discard, src); narErr != nil {
		q.r.Fail(narErr)
		return q.r.Err()
	}
	return err
}

// pulled lets use read an upload which the client sends piece by piece as it is
// asked to, and which has info.NarSize bytes. Nothing that was not asked for is
// on its way, so only the last piece may have a rest to skip.
func (q *request) pulled(info *nix.PathInfo, use func(payload io.Reader) error) error {
	p := &puller{request: q, left: info.NarSize}
	err := use(p)
	if skipErr := p.skipPiece(); skipErr != nil {
		return skipErr
	}
	return err
}

// pullSize is how much a client is asked for at once.
const pullSize = 64 << 10

type puller struct {
	*request
	left  uint64    // bytes of the upload not yet asked for and received
	piece io.Reader // the rest of the client's last answer
}

// Read never asks for more than the announced size: the client has nothing left
// then and would drop the connection.
func (p *puller) Read(b []byte) (int, error) {
	if p.piece == nil {
		if p.left == 0 {
			return 0, io.EOF
		}
		if err := p.ask(); err != nil {
			return 0, err
		}
	}
	n, err := p.piece.Read(b)
	p.left -= uint64(n)
	if err == io.EOF {
		p.piece, err = nil, nil
		if p.left == 0 {
			p.watch()
		}
	}
	if err != nil {
		p.hangUp()
	}
	return n, err
}

func (p *puller) ask() error {
	limit := min(p.left, pullSize)
	err := p.log.write(func(w *wire.Writer) {
		w.Uint64(stderrRead)
		w.Uint64(limit)
	})
	if err != nil {
		return err
	}
	p.piece = p.r.StringBody(limit)
	return p.r.Err()
}

// skipPiece reads what the store left of the client's last answer, which the
// client sends to its end.
func (p *puller) skipPiece() error {
	if p.piece == nil {
		return nil
	}
	_, err := io.Copy(io.Discard, p.piece)
	p.piece = nil
	return err
}
