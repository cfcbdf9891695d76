package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
	"nixbastion/internal/nix/worker"
)

const (
	magicClient = 0x6e697863
	magicServer = 0x6478696f
	stderrLast  = 0x616c7473
)

// stream is a connection to a peer that has said all it has to say.
type stream struct {
	*bytes.Reader
	heard bytes.Buffer
}

func (s *stream) Write(p []byte) (int, error) { return s.heard.Write(p) }

func (s *stream) Close() error { return nil }

func says(write func(*wire.Writer)) *stream {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	write(w)
	w.Flush()
	return &stream{Reader: bytes.NewReader(b.Bytes())}
}

// checkServerGreeting compares the first that a server says. The version in it
// is one that nobody speaks any more, and must be refused as such.
func checkServerGreeting(f *file) error {
	_, err := worker.NewClient(context.Background(), &stream{Reader: bytes.NewReader(f.data)}, worker.ClientOptions{})
	var version *worker.VersionError
	if !errors.As(err, &version) {
		return fmt.Errorf("a client takes it as %w", err)
	}
	client := says(func(w *wire.Writer) { w.Uint64(magicClient) })
	worker.Serve(context.Background(), client, nil, worker.ServeOptions{}) // ends where the client ends
	want := bytes.Clone(f.data)
	copy(want[8:], wireBytes(func(w *wire.Writer) { w.Uint64(uint64(worker.Latest)) }))
	return sameBytes(client.heard.Bytes(), want)
}

func wireBytes(write func(*wire.Writer)) []byte {
	b, _ := io.ReadAll(says(write)) // of bytes in memory
	return b
}

// checkHandshakeInfo checks what a server says of itself, several times one
// behind the other: a version of Nix, and since 1.35 the trust flag.
func checkHandshakeInfo(f *file) error {
	minor, err := strconv.Atoi(f.stem()[len("client-handshake-info_1_"):])
	if err != nil {
		return err
	}
	version := worker.Version(1<<8 | minor)
	rest := worker.NewCodec(bytes.NewReader(f.data), nil, version)
	for at := 0; rest.R.More(); at = int(rest.R.Offset()) {
		name, trust := rest.R.String(1<<10), nix.TrustUnknown
		if minor >= 35 {
			trust = rest.ReadTrust()
		}
		if rest.R.Err() != nil {
			break
		}
		value := f.data[at:rest.R.Offset()]
		if err := clientReads(version, value, name, trust); err != nil {
			return err
		}
		if err := serverWrites(version, value, name, trust); err != nil {
			return err
		}
	}
	return rest.R.Err()
}

func clientReads(version worker.Version, value []byte, name string, trust nix.Trust) error {
	server := says(func(w *wire.Writer) {
		w.Uint64(magicServer)
		w.Uint64(uint64(version))
		w.Write(value)
		w.Uint64(stderrLast)
	})
	c, err := worker.NewClient(context.Background(), server, worker.ClientOptions{})
	if err != nil {
		return err
	}
	if c.DaemonVersion() != name || c.Trust() != trust {
		return fmt.Errorf("a client reads %q and %d, not %q and %d", c.DaemonVersion(), c.Trust(), name, trust)
	}
	return nil
}

func serverWrites(version worker.Version, value []byte, name string, trust nix.Trust) error {
	client := says(func(w *wire.Writer) {
		for _, n := range []uint64{magicClient, uint64(version), 0, 0} {
			w.Uint64(n)
		}
	})
	err := worker.Serve(context.Background(), client, nil, worker.ServeOptions{DaemonVersion: name, Trust: trust})
	if err != nil {
		return err
	}
	want := wireBytes(func(w *wire.Writer) {
		w.Uint64(magicServer)
		w.Uint64(uint64(worker.Latest))
		w.Write(value)
		w.Uint64(stderrLast)
	})
	return sameBytes(client.heard.Bytes(), want)
}
