package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy/upstream"
)

// errNobody says that no proxy answers on the socket.
var errNobody = errors.New("no proxy answers")

// remotely has the running proxy carry a request out. Folders are read and
// written here: the proxy may have no right to them.
func (q *cacheRequest) remotely(ctx context.Context, socket string, d *desk) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return errNobody
	}
	if err != nil {
		return unanswered(socket, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, sent := q.body(d)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://admin/cache", body)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		body.Close()
		if sendErr := <-sent; sendErr != nil {
			return sendErr
		}
		return unanswered(socket, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		body.Close()
		<-sent // what was refused need not be sent
		return refused(answer)
	}
	err = d.take(answer.Body)
	body.Close()
	return errors.Join(err, <-sent)
}

// body is the request with what is imported behind it. sent gets the error of
// reading that, once nobody reads the body any more.
func (q *cacheRequest) body(d *desk) (body io.ReadCloser, sent <-chan error) {
	done := make(chan error, 1)
	var head bytes.Buffer
	if err := json.NewEncoder(&head).Encode(q); err != nil || d.source == nil {
		done <- err
		return io.NopCloser(&head), done
	}
	r, w := io.Pipe()
	go func() {
		_, err := w.Write(head.Bytes())
		if err == nil {
			err = pack(d, w)
		}
		w.CloseWithError(err)
		if errors.Is(err, io.ErrClosedPipe) {
			err = nil // the proxy wants no more, and says why
		}
		done <- err
	}()
	return r, done
}

func pack(d *desk, to io.Writer) error {
	out := cache.TarSink{Writer: tar.NewWriter(to)}
	progress, paths, size := seldom(d.progress), 0, int64(0)
	err := cache.Pack(d.source, out, func(info *nix.NarInfo) {
		paths, size = paths+1, size+int64(info.NarSize)
		progress(fmt.Sprintf("sent %s, %s", policy.CountOf(paths, "path"), upstream.Bytes(size)))
	})
	if err != nil {
		return err
	}
	return out.Close()
}

// take hands on what the proxy answers.
func (d *desk) take(answer io.Reader) error {
	files, w := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		var err error
		if d.sink != nil {
			err = cache.Unpack(files, d.sink)
		}
		if err == nil {
			_, err = io.Copy(io.Discard, files) // the padding of the stream
		}
		files.CloseWithError(err)
		unpacked <- err
	}()
	err := readFrames(answer, func(kind frameKind, p []byte) error {
		switch kind {
		case frameOut:
			_, err := d.out.Write(p)
			return err
		case frameProgress:
			d.progress(string(p))
		case frameFile:
			_, err := w.Write(p)
			return err
		}
		return nil
	})
	if err != nil {
		w.CloseWithError(err)
		<-unpacked // which tells the same
		return err
	}
	w.Close()
	return <-unpacked
}
