package worker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// requests writes a whole request of every operation, number first, with
// everything in it that can be in it.
var requests = map[Op]func(*conn){
	opIsValidPath:                pathRequest,
	opHasSubstitutes:             pathRequest,
	opQueryPathHash:              pathRequest,
	opQueryReferences:            pathRequest,
	opQueryReferrers:             pathRequest,
	opEnsurePath:                 pathRequest,
	opAddTempRoot:                pathRequest,
	opQueryDeriver:               pathRequest,
	opQuerySubstitutablePathInfo: pathRequest,
	opQueryDerivationOutputs:     pathRequest,
	opQueryPathInfo:              pathRequest,
	opQueryDerivationOutputNames: pathRequest,
	opQueryValidDerivers:         pathRequest,
	opNarFromPath:                pathRequest,
	opQueryDerivationOutputMap:   pathRequest,
	opSyncWithGC:                 func(*conn) {},
	opFindRoots:                  func(*conn) {},
	opQueryAllValidPaths:         func(*conn) {},
	opImportPaths:                func(*conn) {},
	opOptimiseStore:              func(*conn) {},
	opAddIndirectRoot:            func(c *conn) { c.w.String("/root/result") },
	opQueryPathFromHashPart:      func(c *conn) { c.w.String(somePaths()[0].info.Path.HashPart()) },
	opExportPath:                 func(c *conn) { pathRequest(c); c.w.Uint64(0) },
	opVerifyStore:                func(c *conn) { c.w.Bool(true); c.w.Bool(false) },
	opAddPermRoot:                func(c *conn) { pathRequest(c); c.w.String("/root/result") },
	opAddSignatures: func(c *conn) {
		pathRequest(c)
		c.w.StringSet([]string{"a-1:" + strings.Repeat("A", 86) + "=="})
	},
	opAddTextToStore: func(c *conn) {
		c.w.String("text")
		c.w.String("hello")
		c.w.StorePaths([]nix.StorePath{pathNamed("dep")})
	},
	opAddToStore: func(c *conn) {
		c.w.String("tree")
		if c.version < sinceContentMethod {
			c.w.Bool(true)
			c.w.Bool(true)
			c.w.String("sha256")
			c.w.Write(narOf("tree"))
			return
		}
		c.w.String("fixed:r:sha256")
		c.w.StorePaths([]nix.StorePath{pathNamed("dep")})
		c.w.Bool(false)
		inFrames(c, narOf("tree"))
	},
	opAddToStoreNar: func(c *conn) {
		dep := somePaths()[0]
		c.w.ValidPathInfo(dep.info)
		c.w.Bool(false)
		c.w.Bool(true)
		if c.version >= sinceFramedNar {
			inFrames(c, dep.nar)
		} else {
			c.w.String(string(dep.nar)) // the answer to the one question for it
		}
	},
	opAddMultipleToStore: func(c *conn) {
		c.w.Bool(false)
		c.w.Bool(true)
		inFrames(c, uploadOf(c, somePaths()[0], memPath{infoOf("b", narOf("b")), narOf("b")}))
	},
	opAddBuildLog: func(c *conn) {
		c.w.String(pathNamed("x.drv").Base())
		inFrames(c, []byte("the log"))
	},
	opBuildPaths:            targetsRequest,
	opBuildPathsWithResults: targetsRequest,
	opBuildDerivation: func(c *conn) {
		c.w.StorePath(pathNamed("x.drv"))
		drv := someDerivation()
		drv.Env[2].Value = "short"
		c.w.Derivation(drv)
		c.w.Uint64(uint64(nix.BuildCheck))
	},
	opSetOptions: func(c *conn) { c.writeOptions(nix.ClientOptions{Overrides: map[string]string{"a": "b"}}) },
	opCollectGarbage: func(c *conn) {
		c.w.Uint64(3)
		if c.has(FeatureDeleteReferrers) {
			c.w.Uint64(0)
		}
		c.w.StorePaths([]nix.StorePath{pathNamed("dep")})
		if c.has(FeatureDeleteReferrers) {
			c.w.Bool(true)
		}
		for _, n := range []uint64{0, math.MaxUint64, 0, 0, 0} {
			c.w.Uint64(n)
		}
	},
	opQuerySubstitutablePathInfos: func(c *conn) {
		c.w.Uint64(1)
		c.w.StorePath(pathNamed("dep"))
		if c.version >= sinceOutputMap {
			c.w.String("")
		}
	},
	opQueryValidPaths: func(c *conn) {
		c.w.StorePaths([]nix.StorePath{pathNamed("dep"), pathNamed("absent")})
		if c.version >= sinceSubstituteFlag {
			c.w.Bool(true)
		}
	},
	opQuerySubstitutablePaths: func(c *conn) { c.w.StorePaths([]nix.StorePath{pathNamed("dep")}) },
	opQueryMissing:            func(c *conn) { c.writeDerivedPaths([]nix.DerivedPath{{Path: pathNamed("x.drv"), Built: true}}) },
	opRegisterDrvOutput:       func(c *conn) { c.writeRealisation(someRealisation(c)) },
	opQueryRealisation:        func(c *conn) { c.writeDrvOutput(someRealisation(c).ID) },
}

func pathRequest(c *conn) { c.w.StorePath(pathNamed("dep")) }

func targetsRequest(c *conn) {
	c.writeTargets([]nix.DerivedPath{{Path: pathNamed("x.drv"), Built: true, Outputs: []string{"out"}}}, nix.BuildNormal)
}

func someRealisation(c *conn) nix.Realisation {
	id := nix.DrvOutput{DrvHash: "sha256:" + strings.Repeat("cd", 32), Output: "out"}
	if c.has(FeatureRealisationPaths) {
		id = nix.DrvOutput{DrvPath: pathNamed("x.drv"), Output: "out"}
	}
	return nix.Realisation{ID: id, OutPath: pathNamed("out"), Sigs: []string{"k:c2ln"}}
}

func inFrames(c *conn, payload []byte) {
	f := wire.NewFrameWriter(c.w)
	f.Write(payload)
	f.Close()
}

func uploadOf(c *conn, paths ...memPath) []byte {
	var b bytes.Buffer
	inner := conn{w: wire.NewWriter(&b), dialect: c.dialect}
	inner.w.Uint64(uint64(len(paths)))
	for _, p := range paths {
		inner.w.ValidPathInfo(p.info)
		inner.w.Write(p.nar)
	}
	inner.w.Flush()
	return b.Bytes()
}

// serverDialects are those in which requests differ.
func serverDialects() map[string]dialect {
	return map[string]dialect{
		"1.21":               {version: Oldest},
		"1.24":               {version: sinceFramedNar + 1},
		"1.28":               {version: sinceBuiltOutputs},
		"1.38":               {version: Latest},
		"1.38 with features": {version: Latest, features: allFeatures},
	}
}

// bytesOf returns what write writes.
func bytesOf(d dialect, write func(*conn)) []byte {
	var b bytes.Buffer
	c := &conn{w: wire.NewWriter(&b), dialect: d}
	write(c)
	c.w.Flush()
	return b.Bytes()
}

func hello(c *conn) {
	c.w.Uint64(magicClient)
	c.w.Uint64(uint64(c.version))
	if c.version >= sinceFeatures {
		c.w.Strings(c.features)
	}
	c.w.Uint64(0)
	c.w.Uint64(0)
}

func requestOf(op Op) func(*conn) {
	return func(c *conn) {
		c.w.Uint64(uint64(op))
		requests[op](c)
	}
}

// serveBytes runs a server on what a client says that waits with hanging up until
// nothing moves any more. It must be called inside a bubble of synctest.
func serveBytes(store nix.Store, opts ServeOptions, says ...[]byte) (heard []byte, err error) {
	client := newRecordedClient(bytes.Join(says, nil))
	opts.Features = allFeatures
	err = Serve(context.Background(), client, store, opts)
	time.Sleep(2 * time.Hour) // so that a watch sees the end before the bubble ends
	return client.heard.Bytes(), err
}

// serveAndHangUp runs a server on what a client says that hangs up behind it.
func serveAndHangUp(store nix.Store, says ...[]byte) (heard []byte, err error) {
	var answer bytes.Buffer
	rw := struct {
		io.Reader
		io.Writer
	}{bytes.NewReader(bytes.Join(says, nil)), &answer}
	err = Serve(context.Background(), rw, store, ServeOptions{Features: allFeatures})
	return answer.Bytes(), err
}

// storeWithPaths holds what the requests ask for.
func storeWithPaths() *memStore {
	store := newMemStore()
	for _, p := range somePaths() {
		store.put(p.info, p.nar)
	}
	store.outputs[pathNamed("dep")] = map[string]nix.StorePath{"out": pathNamed("out"), "float": {}}
	return store
}

// replyTail is what a server says last if the session survived: the answer to
// QueryValidPaths of the paths that the store holds.
func replyTail(d dialect) []byte {
	return bytesOf(d, func(c *conn) {
		c.w.Uint64(stderrLast)
		c.w.StorePaths([]nix.StorePath{pathNamed("dep")})
	})
}

// Guards against an operation that leaves part of its request unread, or is
// answered in the wrong form: then the next one is misunderstood. Stores with
// every ability and with none are asked.
func TestSessionIsUsableAfterEveryOperation(t *testing.T) {
	if len(requests) != len(handlers) || len(opNames) != len(handlers) {
		t.Fatalf("%d requests and %d names for %d operations", len(requests), len(opNames), len(handlers))
	}
	for name, d := range serverDialects() {
		for op := range handlers {
			for ability, store := range map[string]nix.Store{"able": storeWithPaths(), "core": coreStore{storeWithPaths()}} {
				t.Run(name+"/"+op.String()+"/"+ability, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						heard, err := serveBytes(store, ServeOptions{}, bytesOf(d, hello), bytesOf(d, requestOf(op)), bytesOf(d, requestOf(opQueryValidPaths)))
						if err != nil {
							t.Errorf("serve: %v", err)
						}
						if !bytes.HasSuffix(heard, replyTail(d)) {
							t.Errorf("next operation is not answered:\n%q", heard)
						}
					})
				})
			}
		}
	}
}

// Guards against a request that ends early being carried out, taken for a clean
// end, or answered with success.
func TestRequestCutAtEveryByteIsAHangUp(t *testing.T) {
	last := bytesOf(dialect{}, func(c *conn) { c.w.Uint64(stderrLast) })
	for name, d := range serverDialects() {
		t.Run(name, func(t *testing.T) {
			for op := range handlers {
				greeting, request := bytesOf(d, hello), bytesOf(d, requestOf(op))
				for n := 1; n < len(request); n++ {
					heard, err := serveAndHangUp(storeWithPaths(), greeting, request[:n])
					if !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Fatalf("%s cut at %d of %d: %v", op, n, len(request), err)
					}
					if bytes.Count(heard, last) > 1 { // the handshake has one
						t.Fatalf("%s cut at %d of %d is answered with success", op, n, len(request))
					}
				}
			}
		})
	}
}

var lies = []uint64{0, 1, 255, 256, wire.MaxString, wire.MaxString + 1, 1 << 20, 1<<20 + 1, math.MaxUint32, 1 << 32, 1 << 63, math.MaxUint64}

// Guards against a length, count, size or frame that lies making the server
// panic, wait or allocate. Every integer of every request is replaced in turn.
func TestLyingIntegersCostTheServerNothing(t *testing.T) {
	for name, d := range serverDialects() {
		t.Run(name, func(t *testing.T) {
			for op := range handlers {
				greeting, request := bytesOf(d, hello), bytesOf(d, requestOf(op))
				for at := 8; at+8 <= len(request); at += 8 {
					for _, lie := range lies {
						says := bytes.Clone(request)
						putUint64(says[at:], lie)
						store := storeWithPaths()
						grown := allocated(func() { serveAndHangUp(store, greeting, says) })
						if grown > 1<<20 {
							t.Fatalf("%s with %d at byte %d: allocated %d bytes", op, lie, at, grown)
						}
					}
				}
			}
		})
	}
}

func putUint64(b []byte, n uint64) {
	for i := range 8 {
		b[i] = byte(n >> (8 * i))
	}
}

// allocated returns how many bytes f allocates, kept or not.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
