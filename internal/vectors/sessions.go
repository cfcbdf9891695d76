package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
	"nixbastion/internal/nix/wire"
	"nixbastion/internal/nix/worker"
)

// checkSession reads a recorded session from both sides, request by request, to
// the last byte of either.
func checkSession(f *file) error {
	answers, err := f.other(".s2c")
	if err != nil {
		return err
	}
	s, err := openSession(f.data, answers)
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	for n := 1; s.client.R.More(); n++ {
		if err := s.operation(); err != nil {
			return fmt.Errorf("operation %d: %w", n, err)
		}
	}
	if s.server.R.More() {
		return fmt.Errorf("%d bytes of the server are left over", len(answers)-int(s.server.R.Offset()))
	}
	return s.client.R.Err()
}

// session has a codec that reads what each side said.
type session struct {
	client, server *worker.Codec
}

func openSession(requests, answers []byte) (*session, error) {
	first := wire.NewReader(bytes.NewReader(requests))
	first.Uint64()
	version := worker.Version(first.Uint64()) // both ends of a recording are of one release
	s := &session{
		client: worker.NewCodec(bytes.NewReader(requests), nil, version),
		server: worker.NewCodec(bytes.NewReader(answers), nil, version),
	}
	s.client.R.Expect("the client's magic", magicClient)
	s.client.R.Expect("the client's version", uint64(version))
	s.server.R.Expect("the server's magic", magicServer)
	s.server.R.Expect("the server's version", uint64(version))
	if version >= 1<<8|38 {
		s.client.ReadFeatures()
		s.server.ReadFeatures()
	}
	s.client.R.Expect("no affinity", 0)
	s.client.R.Expect("no reserved space", 0)
	s.server.R.String(someLength) // Nix's version
	if version >= 1<<8|35 {
		s.server.ReadTrust()
	}
	return s, errors.Join(s.client.R.Err(), s.server.ReadReply(nix.Discard))
}

// exchange reads a request from the client's bytes and the fields of its reply
// from the server's. With op 39 and others that recordings lack, the error names
// the number.
type exchange struct {
	request func(*worker.Codec) error
	reply   func(*worker.Codec) error
}

// of makes a function that only reads return the reader's error.
func of(read ...func(*worker.Codec)) func(*worker.Codec) error {
	return func(c *worker.Codec) error {
		for _, f := range read {
			f(c)
		}
		return c.R.Err()
	}
}

func aPath(c *worker.Codec)     { c.R.StorePath() }
func aNumber(c *worker.Codec)   { c.R.Uint64() }
func aString(c *worker.Codec)   { c.R.String(someLength) }
func somePaths(c *worker.Codec) { c.R.StorePaths(someElements) }

func targets(c *worker.Codec) { wire.List(c.R, someElements, c.ReadDerivedPath) }

func aMode(c *worker.Codec) { c.ReadBuildMode() }

func aDerivation(c *worker.Codec) { c.ReadDerivation() }

var exchanges = map[uint64]exchange{
	1:  {of(aPath), of(aNumber)},
	7:  {framed(aString, aString, somePaths, aNumber), of(func(c *worker.Codec) { c.ReadValidPathInfo() })},
	9:  {of(targets, aMode), of(aNumber)},
	10: {of(aPath), of(aNumber)},
	11: {of(aPath), of(aNumber)},
	26: {of(aPath), of(func(c *worker.Codec) {
		if c.R.Bool() {
			c.ReadPathInfo()
		}
	})},
	31: {of(somePaths, aNumber), of(somePaths)},
	36: {of(aPath, aDerivation, aMode), of(func(c *worker.Codec) { c.ReadBuildResult() })},
	38: {of(aPath), anArchive},
	40: {of(targets), of(func(c *worker.Codec) { c.ReadMissing() })},
	41: {of(aPath), of(func(c *worker.Codec) { c.ReadOutputMap() })},
	44: {upload, of()},
	46: {of(targets, aMode), of(func(c *worker.Codec) { wire.List(c.R, someElements, c.ReadKeyedBuildResult) })},
}

func (s *session) operation() error {
	op := s.client.R.Uint64()
	x, known := exchanges[op]
	if !known {
		return fmt.Errorf("number %d is in no recording that this knows", op)
	}
	if err := x.request(s.client); err != nil {
		return fmt.Errorf("request %d: %w", op, err)
	}
	var remote *nix.RemoteError
	if err := s.server.ReadReply(nix.Discard); errors.As(err, &remote) {
		return nil
	} else if err != nil {
		return fmt.Errorf("log of %d: %w", op, err)
	}
	if err := x.reply(s.server); err != nil {
		return fmt.Errorf("reply to %d: %w", op, err)
	}
	return nil
}

func anArchive(c *worker.Codec) error {
	_, err := readArchive(c.R)
	return err
}

// archive is what follows from the bytes of one.
type archive struct {
	hash nix.Hash
	size uint64
}

func (a archive) check(info *nix.PathInfo) error {
	if a.size != info.NarSize || a.hash != info.NarHash {
		return fmt.Errorf("%s has not the announced size and hash", info.Path)
	}
	return nil
}

func readArchive(r io.Reader) (archive, error) {
	hash := nix.SHA256.New()
	n, err := io.Copy(hash, nar.NewReader(r))
	return archive{hash: nix.SumHash(nix.SHA256, hash), size: uint64(n)}, err
}

func framed(read ...func(*worker.Codec)) func(*worker.Codec) error {
	return func(c *worker.Codec) error {
		if err := of(read...)(c); err != nil {
			return err
		}
		_, err := wire.NewFrameReader(c.R).Drain()
		return err
	}
}

// upload is two flags and frames that hold a count, and as many path infos, each
// with an archive of the size and hash that it names.
func upload(c *worker.Codec) error {
	aNumber(c)
	aNumber(c)
	frames := wire.NewFrameReader(c.R)
	inner := worker.NewCodec(frames, nil, worker.Latest)
	for range inner.R.Count(someElements) {
		info := inner.ReadValidPathInfo()
		if inner.R.Err() != nil {
			return inner.R.Err()
		}
		got, err := readArchive(inner.R)
		if err != nil {
			return err
		}
		if err := got.check(info); err != nil {
			return err
		}
	}
	if inner.R.More() {
		return errors.New("bytes are left over in the frames")
	}
	return inner.R.Err()
}
