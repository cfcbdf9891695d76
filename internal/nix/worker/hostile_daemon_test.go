package worker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// calls are operations of a client, as they go well with a store with paths.
var calls = map[string]func(*Client) error{
	"QueryValidPaths": func(c *Client) error {
		_, err := c.QueryValidPaths(context.Background(), []nix.StorePath{pathNamed("dep")}, true)
		return err
	},
	"QueryPathInfo": func(c *Client) error {
		_, err := c.QueryPathInfo(context.Background(), pathNamed("big"))
		return err
	},
	"QueryPathInfos": func(c *Client) error {
		_, err := c.QueryPathInfos(context.Background(), []nix.StorePath{pathNamed("dep"), pathNamed("absent"), pathNamed("dep")})
		return err
	},
	"NarFromPath": func(c *Client) error {
		r, err := c.NarFromPath(context.Background(), pathNamed("dep"))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		return errors.Join(err, r.Close())
	},
	"AddMultipleToStore": func(c *Client) error {
		return c.AddMultipleToStore(context.Background(), nix.Discard, sourceOf(somePaths()[0]), nix.AddOptions{})
	},
	"AddToStore": func(c *Client) error {
		_, err := c.AddToStore(context.Background(), nix.Discard, nix.AddToStoreRequest{Name: "text", Method: textMethod}, strings.NewReader("hello"))
		return err
	},
	"AddTempRoots": func(c *Client) error {
		return c.AddTempRoots(context.Background(), []nix.StorePath{pathNamed("dep"), pathNamed("big")})
	},
	"BuildDerivation": func(c *Client) error {
		_, err := c.BuildDerivation(context.Background(), nix.Discard, pathNamed("x.drv"), someDerivation(), nix.BuildNormal)
		return err
	},
	"BuildPathsWithResults": func(c *Client) error {
		targets := []nix.DerivedPath{{Path: pathNamed("x.drv"), Built: true}}
		_, err := c.BuildPathsWithResults(context.Background(), nix.Discard, targets, nix.BuildNormal)
		return err
	},
	"QueryMissing": func(c *Client) error {
		_, err := c.QueryMissing(context.Background(), nil)
		return err
	},
	"QueryDerivationOutputMap": func(c *Client) error {
		_, err := c.QueryDerivationOutputMap(context.Background(), pathNamed("dep"))
		return err
	},
	"QueryReferrers": func(c *Client) error {
		_, err := c.QueryReferrers(context.Background(), pathNamed("dep"))
		return err
	},
	"QueryPathFromHashPart": func(c *Client) error {
		_, err := c.QueryPathFromHashPart(context.Background(), pathNamed("dep").HashPart())
		return err
	},
	"WalkAllValidPaths": func(c *Client) error {
		return c.WalkAllValidPaths(context.Background(), 100, func(nix.StorePath) {})
	},
	"QueryRealisation": func(c *Client) error {
		_, err := c.QueryRealisation(context.Background(), someRealisation(&c.conn).ID)
		return err
	},
	"AddSignatures": func(c *Client) error {
		return c.AddSignatures(context.Background(), pathNamed("dep"), nil)
	},
	"refused": func(c *Client) error { // the server's answer is an error with traces
		_, err := c.QueryPathInfo(context.Background(), pathNamed("dep"))
		return err
	},
}

// refusing answers with an error that has everything.
type refusing struct{ nix.Store }

func (refusing) QueryPathInfo(context.Context, nix.StorePath) (*nix.PathInfo, error) {
	return nil, &nix.RemoteError{Message: "no", Level: 1, Traces: []string{"while asking", "while waiting"}, Status: 1}
}

// optionsOf are a client's for a dialect.
func optionsOf(d dialect) ClientOptions {
	return ClientOptions{Version: d.version, MinVersion: Oldest, Features: d.features}
}

// listener keeps what is read through it.
type listener struct {
	net.Conn
	heard bytes.Buffer
}

func (l *listener) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.heard.Write(p[:n])
	return n, err
}

// answersTo returns all that a server says in a session with one call.
func answersTo(t testing.TB, d dialect, name string) (handshake, all []byte) {
	t.Helper()
	store := storeWithPaths()
	store.realisations[someRealisation(&conn{dialect: d}).ID] = someRealisation(&conn{dialect: d})
	var served nix.Store = store
	if name == "refused" {
		served = refusing{store}
	}
	near, far := net.Pipe()
	ears := &listener{Conn: near}
	done := make(chan error, 1)
	go func() {
		defer far.Close()
		done <- Serve(context.Background(), far, served, ServeOptions{Features: d.features, DaemonVersion: "2.34.8", Trust: nix.Trusted})
	}()
	c, err := NewClient(context.Background(), ears, optionsOf(d))
	if err != nil {
		t.Fatal(err)
	}
	handshake = bytes.Clone(ears.heard.Bytes())
	calls[name](c)
	c.Close()
	<-done
	return handshake, ears.heard.Bytes()
}

// hostileDaemon says what it has to say at once and then ends the stream; it
// takes everything.
type hostileDaemon struct{ *bytes.Reader }

func (hostileDaemon) Write(p []byte) (int, error) { return len(p), nil }

func (hostileDaemon) Close() error { return nil }

// callAgainst has a session of one call with a daemon that says the given bytes.
func callAgainst(d dialect, name string, says []byte) error {
	c, err := NewClient(context.Background(), hostileDaemon{bytes.NewReader(says)}, optionsOf(d))
	if err != nil {
		return err
	}
	defer c.Close()
	return calls[name](c)
}

// Guards against a daemon that makes the proxy panic, wait for bytes that never
// come, or allocate what it only claims: each integer of each answer is replaced
// in turn. What no field may be is told as the daemon's fault, so that nobody
// goes on with the session.
func TestLyingDaemonCostsNothing(t *testing.T) {
	lies := []uint64{2, 255, 256, wire.MaxString + 1, wire.MaxText, 1<<20 + 1, math.MaxUint32, 1 << 32, 1 << 63, math.MaxUint64}
	for _, d := range []dialect{{version: Oldest}, {version: sinceBuiltOutputs}, {version: Latest}, {version: Latest, features: allFeatures}} {
		for name := range calls {
			handshake, says := answersTo(t, d, name)
			if len(says) == len(handshake) && d.version == Latest && name != "QueryRealisation" {
				t.Errorf("%s, %s: nothing is answered", d.version, name)
			}
			for at := 0; at+8 <= len(says); at += 8 {
				if isText(says, at) {
					continue
				}
				for _, lie := range lies {
					lying := bytes.Clone(says)
					putUint64(lying[at:], lie)
					var err error
					if grown := allocated(func() { err = callAgainst(d, name, lying) }); grown > 2<<20 {
						t.Errorf("%s, %s with %#x at byte %d of %d: allocated %d bytes", d.version, name, lie, at, len(says), grown)
					}
					var broken *ConnError
					if lie >= 1<<63 && errors.As(err, &broken) && !broken.Corrupt && !earlyReply(name) {
						t.Errorf("%s, %s with %#x at byte %d of %d: %v", d.version, name, lie, at, len(says), err)
					}
				}
			}
		}
	}
}

// earlyReply reports whether the daemon here, which answers before it is asked,
// confuses the operation: that ends the session anyway.
func earlyReply(name string) bool { return strings.HasPrefix(name, "Add") }

// Guards against an answer that ends early being taken for a whole one.
func TestAnswerCutAtEveryByteIsAnError(t *testing.T) {
	for _, d := range []dialect{{version: Oldest}, {version: Latest}, {version: Latest, features: allFeatures}} {
		for name := range calls {
			_, says := answersTo(t, d, name)
			if err := callAgainst(d, name, says); err != nil && !earlyReply(name) && name != "refused" &&
				!strings.Contains(err.Error(), "which has it since") {
				t.Errorf("%s, %s: whole answer: %v", d.version, name, err)
			}
			for n := range says {
				err := callAgainst(d, name, says[:n])
				if err == nil {
					t.Fatalf("%s, %s: cut at %d of %d is taken for whole", d.version, name, n, len(says))
				}
			}
		}
	}
}
