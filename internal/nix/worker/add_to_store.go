package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// addToStore: a name, how to address the content, references, a flag, and the
// content in frames. The server finds the path.
func (q *request) addToStore() (func(), error) {
	if q.version < sinceContentMethod {
		return q.addToStoreOld()
	}
	req := nix.AddToStoreRequest{Name: q.r.String(wire.MaxString)}
	method := q.r.String(wire.MaxString)
	req.References = q.r.StorePaths(wire.MaxReferences)
	req.Repair = q.r.Bool()
	if q.r.Err() != nil {
		return nil, q.r.Err()
	}
	var info *nix.PathInfo
	err := q.framed(func(payload io.Reader) (err error) {
		if req.Method, err = nix.ParseContentAddressMethod(method); err != nil {
			return nix.Refuse("%v", err)
		}
		info, err = q.add(req, payload)
		return err
	})
	return func() { q.w.ValidPathInfo(info) }, err
}

// add asks the store, which never sees a name that no path can have.
func (q *request) add(req nix.AddToStoreRequest, dump io.Reader) (*nix.PathInfo, error) {
	if err := nix.CheckName(req.Name); err != nil {
		return nil, nix.Refuse("%q cannot be the name of a store path: %v", clip(req.Name), err)
	}
	return q.store.AddToStore(q.ctx, q.log, req, dump)
}

// addToStoreOld: before 1.25 the content is a NAR without a frame, also that of
// a flat file, and the reply is the path alone.
func (q *request) addToStoreOld() (func(), error) {
	name := q.r.String(wire.MaxString)
	fixed, recursive := q.r.Bool(), q.r.Bool()
	algo := q.r.String(wire.MaxString)
	if q.r.Err() != nil {
		return nil, q.r.Err()
	}
	var info *nix.PathInfo
	err := q.bare(func(payload io.Reader) (err error) {
		req := nix.AddToStoreRequest{Name: name, DumpIsNAR: true}
		if req.Method, err = oldMethod(fixed, recursive, algo); err != nil {
			return nix.Refuse("%v", err)
		}
		info, err = q.add(req, payload)
		return err
	})
	return func() { q.w.StorePath(info.Path) }, err
}

// oldMethod: what is not fixed is recursive by sha256, whatever the rest says.
func oldMethod(fixed, recursive bool, algo string) (nix.ContentAddressMethod, error) {
	if !fixed {
		return nix.ContentAddressMethod{Method: nix.NAR, Algo: nix.SHA256}, nil
	}
	m := nix.ContentAddressMethod{Method: nix.Flat}
	if recursive {
		m.Method = nix.NAR
	}
	var err error
	m.Algo, err = nix.ParseHashAlgo(algo)
	return m, err
}

var textMethod = nix.ContentAddressMethod{Method: nix.Text, Algo: nix.SHA256}

// addTextToStore is how clients before 1.25 add texts.
func (q *request) addTextToStore() (func(), error) {
	req := nix.AddToStoreRequest{Name: q.r.String(wire.MaxString), Method: textMethod}
	text := q.r.String(wire.MaxText)
	req.References = q.r.StorePaths(wire.MaxReferences)
	if err := q.received(); err != nil {
		return nil, err
	}
	info, err := q.add(req, strings.NewReader(text))
	return func() { q.w.StorePath(info.Path) }, err
}

// AddToStore implements [nix.Store]. Daemons before 1.25 take a flat file as a
// NAR only.
func (c *Client) AddToStore(ctx context.Context, log nix.Logger, req nix.AddToStoreRequest, dump io.Reader) (*nix.PathInfo, error) {
	switch {
	case c.version < sinceContentMethod && req.Method == textMethod && !req.DumpIsNAR:
		return c.addText(ctx, log, req, dump)
	case c.version < sinceContentMethod:
		return c.addOld(ctx, log, req, dump)
	case req.DumpIsNAR && req.Method.Method != nix.NAR && req.Method.Method != nix.Git:
		return nil, errors.New("AddToStore: daemon takes flat files as they are, not as a NAR")
	}
	var info *nix.PathInfo
	err := c.feed(ctx, opAddToStore, log,
		func() {
			c.w.String(req.Name)
			c.w.String(req.Method.String())
			c.w.StorePaths(req.References)
			c.w.Bool(req.Repair)
		},
		func(up *feeder) error {
			_, err := up.ReadFrom(dump)
			return err
		},
		func() { info = c.readValidPathInfo() })
	return info, err
}

// addText holds the text in memory, as the operation has it in one string.
func (c *Client) addText(ctx context.Context, log nix.Logger, req nix.AddToStoreRequest, dump io.Reader) (*nix.PathInfo, error) {
	text, err := io.ReadAll(io.LimitReader(dump, wire.MaxText+1))
	if err != nil {
		return nil, fmt.Errorf("read text of %s: %w", req.Name, err)
	}
	if len(text) > wire.MaxText {
		return nil, fmt.Errorf("text of %s has more than %d bytes", req.Name, wire.MaxText)
	}
	var path nix.StorePath
	err = c.do(ctx, opAddTextToStore, log,
		func() {
			c.w.String(req.Name)
			c.w.String(string(text))
			c.w.StorePaths(req.References)
		},
		func() { path = c.r.StorePath() })
	if err != nil {
		return nil, err
	}
	return c.QueryPathInfo(ctx, path)
}

func (c *Client) addOld(ctx context.Context, log nix.Logger, req nix.AddToStoreRequest, dump io.Reader) (*nix.PathInfo, error) {
	recursive := req.Method.Method == nix.NAR
	if !recursive && !(req.Method.Method == nix.Flat && req.DumpIsNAR) || len(req.References) > 0 {
		return nil, fmt.Errorf("AddToStore: daemon of protocol %s does not take %s in this form", c.version, req.Method)
	}
	k, err := c.begin(ctx, opAddToStore)
	if err != nil {
		return nil, err
	}
	c.w.Uint64(uint64(opAddToStore))
	c.w.String(req.Name)
	c.w.Bool(true)
	c.w.Bool(recursive)
	c.w.String(req.Method.Algo.String())
	path, err := c.sendBare(k, log, dump)
	if err != nil {
		return nil, err
	}
	return c.QueryPathInfo(ctx, path)
}

// sendBare sends content that ends by itself and reads the path it got.
func (c *Client) sendBare(k *wire.Call, log nix.Logger, dump io.Reader) (nix.StorePath, error) {
	if _, err := io.Copy(c.w, dump); err != nil {
		if c.w.Err() == nil {
			return nix.StorePath{}, k.Abandon(fmt.Errorf("read content: %w", err))
		}
		return nix.StorePath{}, k.End(err)
	}
	if err := c.w.Flush(); err != nil {
		return nix.StorePath{}, k.End(err)
	}
	if err := c.awaitReply(reply{log: log}); err != nil {
		return nix.StorePath{}, k.End(err)
	}
	path := c.r.StorePath()
	return path, k.End(c.r.Err())
}
