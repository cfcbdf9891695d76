package serve

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
)

// Guards against anything that real clients and servers say being read wrongly,
// dropped, or said in another way. Each recorded session is played through a
// server whose store is a client of the recorded server: what the server tells
// the client must be what the other server told it, and what our client asks must
// be what the recorded client asked, byte for byte. One thing differs by intent:
// of a build nothing is asked, while old clients ask for determinism.
func TestRecordedSessionsPassThroughUnchanged(t *testing.T) {
	recordings, err := filepath.Glob("testdata/sessions/*/*.c2s")
	if err != nil || len(recordings) < 4 {
		t.Fatalf("%d recordings: %v", len(recordings), err)
	}
	for _, file := range recordings {
		name := strings.TrimSuffix(file, ".c2s")
		t.Run(strings.TrimPrefix(name, "testdata/sessions/"), func(t *testing.T) {
			c2s, s2c := readFile(t, name+".c2s"), readFile(t, name+".s2c")
			synctest.Test(t, func(t *testing.T) { replay(t, c2s, s2c) })
		})
	}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func replay(t *testing.T, c2s, s2c []byte) {
	server := &recordedServer{says: s2c}
	c, err := NewClient(context.Background(), server, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	store := &relay{Client: c}
	client := &recordedClient{says: bytes.NewReader(c2s)}
	err = Serve(context.Background(), client, store, ServeOptions{
		Write: true, OnError: func(op string, err error) { t.Errorf("%s: %v", op, err) },
	})
	time.Sleep(2 * time.Hour) // so that a watch sees the end before the bubble ends
	check(t, "serve", err)
	if !c.Reusable() || len(server.says) > 0 {
		t.Errorf("client left %d bytes of the server unread", len(server.says))
	}
	compare(t, "server to client", client.heard.Bytes(), s2c)
	compare(t, "client to server", server.heard.Bytes(), withoutDeterminism(c2s))
	same(t, "builds", store.builds, 1)
}

// withoutDeterminism returns what a client says with nothing asked of its build:
// the options stand in front of the question for the first output.
func withoutDeterminism(c2s []byte) []byte {
	asked := numbers(0, 0, 0, 0, 1, 0, uint64(cmdQueryPathInfos))
	return bytes.Replace(c2s, asked, numbers(0, 0, 0, 0, 0, 0, uint64(cmdQueryPathInfos)), 1)
}

func numbers(ns ...uint64) (b []byte) {
	for _, n := range ns {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

func compare(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	n := 0
	for n < min(len(got), len(want)) && got[n] == want[n] {
		n++
	}
	from := max(0, n-64)
	t.Errorf("%s: %d bytes, want %d; from byte %d on:\ngot  %q\nwant %q", what, len(got), len(want), n,
		got[from:min(len(got), n+64)], want[from:min(len(want), n+64)])
}

// recordedServer says one byte at a time, so that nobody reads ahead.
type recordedServer struct {
	says  []byte
	heard bytes.Buffer
}

func (s *recordedServer) Read(p []byte) (int, error) {
	if len(s.says) == 0 {
		return 0, io.EOF
	}
	p[0] = s.says[0]
	s.says = s.says[1:]
	return 1, nil
}

func (s *recordedServer) Write(p []byte) (int, error) { return s.heard.Write(p) }

func (s *recordedServer) Close() error { return nil }

// relay asks the server for what the client asked, also where our client would
// ask another question first.
type relay struct {
	*Client
	builds int
}

func (r *relay) NarFromPath(ctx context.Context, path nix.StorePath) (io.ReadCloser, error) {
	k, err := r.begin(ctx, cmdDumpStorePath)
	if err != nil {
		return nil, err
	}
	err = r.exchange(cmdDumpStorePath, func() { r.w.StorePath(path) }, nil)
	return k.ReadNar(r.limits.NarSize), err
}

func (r *relay) BuildDerivation(ctx context.Context, log nix.Logger, path nix.StorePath, drv *nix.BasicDerivation, mode nix.BuildMode) (*nix.BuildResult, error) {
	r.builds++
	return r.Client.BuildDerivation(ctx, log, path, drv, mode)
}
