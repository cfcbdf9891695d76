package worker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"testing"
	"testing/synctest"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// everyDialect are all versions without features, and the newest with them.
func everyDialect() map[string]dialect {
	all := map[string]dialect{"1.38 with features": {version: Latest, features: allFeatures}}
	for v := Oldest; v <= Latest; v++ {
		all[v.String()] = dialect{version: v}
	}
	return all
}

// lazyStore reads a single byte of each upload and then has its answer.
type lazyStore struct {
	*memStore
	answer error
}

func (l lazyStore) AddToStore(_ context.Context, _ nix.Logger, req nix.AddToStoreRequest, dump io.Reader) (*nix.PathInfo, error) {
	io.ReadFull(dump, make([]byte, 1))
	return infoOf(req.Name, nil), l.answer
}

func (l lazyStore) AddMultipleToStore(_ context.Context, _ nix.Logger, src nix.PathSource, _ nix.AddOptions) error {
	if _, nar, err := src.Next(); err == nil {
		io.ReadFull(nar, make([]byte, 1))
	}
	return l.answer
}

// Guards against a version at which an operation is read or refused in another
// length than it has, or an upload not skipped to its end, so that the next one
// is misunderstood.
func TestNextOperationIsAnsweredAtEveryVersion(t *testing.T) {
	for name, d := range everyDialect() {
		t.Run(name, func(t *testing.T) {
			for ability, store := range map[string]func() nix.Store{
				"able": func() nix.Store { return storeWithPaths() },
				"core": func() nix.Store { return coreStore{storeWithPaths()} },
				"lazy": func() nix.Store { return lazyStore{storeWithPaths(), nil} },
				"full": func() nix.Store { return lazyStore{storeWithPaths(), nix.Refuse("disk is full")} },
			} {
				for op := range handlers {
					synctest.Test(t, func(t *testing.T) {
						heard, err := serveBytes(store(), ServeOptions{}, bytesOf(d, hello), bytesOf(d, requestOf(op)), bytesOf(d, requestOf(opQueryValidPaths)))
						if err != nil || !bytes.HasSuffix(heard, replyTail(d)) {
							t.Errorf("%s, %s: next operation is not answered: %v\n%q", op, ability, err, heard)
						}
					})
				}
			}
		})
	}
}

// operationsOfNix are the numbers that clients of some Nix since 2.3 may send,
// or sent to older daemons.
var operationsOfNix = []Op{
	1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 19, 20, 21, 22, 23, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35,
	36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
}

// Guards against a number that is answered though the form of its request is not
// known, and against one that is not known any more.
func TestEveryOtherNumberEndsTheSessionWithASentence(t *testing.T) {
	known := make(map[Op]bool)
	for _, op := range operationsOfNix {
		known[op] = true
		if handlers[op] == nil {
			t.Errorf("%s is not known", op)
		}
	}
	numbers := []Op{1000, 1001, 1 << 32, 1<<32 + 1, 1 << 63, math.MaxUint64}
	for op := range Op(128) {
		numbers = append(numbers, op)
	}
	for _, op := range numbers {
		if known[op] {
			continue
		}
		request := bytesOf(latest, func(c *conn) { c.w.Uint64(uint64(op)) })
		heard, err := serveAndHangUp(storeWithPaths(), bytesOf(latest, hello), request, bytesOf(latest, requestOf(opQueryValidPaths)))
		if err == nil || err.Error() != "invalid "+op.String() {
			t.Errorf("%d: %v", uint64(op), err)
			continue
		}
		if !bytes.HasSuffix(heard, errorOf(latest, err.Error())) {
			t.Errorf("%d: server says last %q", uint64(op), heard)
		}
	}
}

// errorOf is how a sentence reaches a client.
func errorOf(d dialect, sentence string) []byte {
	return bytesOf(d, func(c *conn) { c.writeRemoteError(&nix.RemoteError{Message: sentence}) })
}

// absurd is more than any length, count, size or time may be, in 64 bits or in
// those that some fields have.
var absurd = []uint64{1 << 63, math.MaxUint64}

// Guards against an absurd length that is waited for, or skipped and taken for
// one that is right: whatever integer of a request is replaced, either it is one
// that may be anything, and the next operation is answered, or the client reads
// a sentence about it and the session ends.
func TestAbsurdIntegersAreToldInASentence(t *testing.T) {
	for name, d := range everyDialect() {
		t.Run(name, func(t *testing.T) {
			greeting, next := bytesOf(d, hello), bytesOf(d, requestOf(opQueryValidPaths))
			for op := range handlers {
				refused := 0
				request := bytesOf(d, requestOf(op))
				for at := 8; at+8 <= len(request); at += 8 {
					for _, n := range absurd {
						if isText(request, at) {
							continue
						}
						says := bytes.Clone(request)
						putUint64(says[at:], n)
						heard, err := serveAndHangUp(storeWithPaths(), greeting, says, next)
						switch {
						case bytes.HasSuffix(heard, replyTail(d)):
						case wire.IsFormat(err) && hasSentence(d, heard, err):
							refused++
						default:
							t.Errorf("%s with %#x at byte %d: %v, heard %q", op, n, at, err, heard)
						}
					}
				}
				if refused == 0 && len(request) > 8 && op != opVerifyStore {
					t.Errorf("%s: nothing is refused", op)
				}
			}
		})
	}
}

// isText reports whether the eight bytes are not an integer of the protocol but
// part of a string: no number that the requests have is as large.
func isText(request []byte, at int) bool {
	for _, c := range request[at+4 : at+8] {
		if c != 0 && c != 0xff {
			return true
		}
	}
	return false
}

// hasSentence reports whether the client was told err, or something else about
// an upload that it was still sending.
func hasSentence(d dialect, heard []byte, err error) bool {
	return bytes.HasSuffix(heard, errorOf(d, err.Error())) ||
		bytes.Contains(heard, bytesOf(d, func(c *conn) { c.w.Uint64(stderrError) }))
}

// limited is a collection or string with the most that it may have.
var limited = map[string]struct {
	op    Op
	limit uint64
	// before writes what comes before the count or length.
	before func(*conn)
}{
	"name of content":     {opAddToStore, wire.MaxString, func(*conn) {}},
	"method":              {opAddToStore, wire.MaxString, func(c *conn) { c.w.String("x") }},
	"refs of content":     {opAddToStore, wire.MaxReferences, func(c *conn) { c.w.String("x"); c.w.String("fixed:sha256") }},
	"text":                {opAddTextToStore, wire.MaxText, func(c *conn) { c.w.String("x") }},
	"refs of text":        {opAddTextToStore, wire.MaxReferences, func(c *conn) { c.w.String("x"); c.w.String("y") }},
	"path":                {opQueryPathInfo, 1024, func(*conn) {}},
	"hash part":           {opQueryPathFromHashPart, wire.MaxString, func(*conn) {}},
	"root":                {opAddIndirectRoot, wire.MaxString, func(*conn) {}},
	"permanent root":      {opAddPermRoot, wire.MaxString, pathRequest},
	"paths":               {opQueryValidPaths, wire.DefaultPaths, func(*conn) {}},
	"substitutable":       {opQuerySubstitutablePaths, wire.DefaultPaths, func(*conn) {}},
	"substitutable infos": {opQuerySubstitutablePathInfos, wire.DefaultPaths, func(*conn) {}},
	"signatures":          {opAddSignatures, wire.MaxSigs, pathRequest},
	"targets":             {opBuildPaths, wire.DefaultPaths, func(*conn) {}},
	"target":              {opBuildPaths, wire.MaxDerivedPath, func(c *conn) { c.w.Uint64(1) }},
	"targets of results":  {opBuildPathsWithResults, wire.DefaultPaths, func(*conn) {}},
	"missing":             {opQueryMissing, wire.DefaultPaths, func(*conn) {}},
	"outputs":             {opBuildDerivation, wire.MaxOutputs, pathRequest},
	"output name":         {opBuildDerivation, wire.MaxString, func(c *conn) { pathRequest(c); c.w.Uint64(1) }},
	"sources":             {opBuildDerivation, wire.DefaultPaths, func(c *conn) { pathRequest(c); c.w.Uint64(0) }},
	"platform":            {opBuildDerivation, wire.MaxString, func(c *conn) { pathRequest(c); c.w.Uint64(0); c.w.Uint64(0) }},
	"arguments":           {opBuildDerivation, wire.MaxArguments, derivationUpTo(4)},
	"environment":         {opBuildDerivation, wire.MaxEnv, derivationUpTo(5)},
	"overrides":           {opSetOptions, maxOverrides, func(c *conn) { c.w.Write(make([]byte, 12*8)) }},
	"garbage":             {opCollectGarbage, wire.DefaultPaths, func(c *conn) { c.w.Uint64(3) }},
	"realisation":         {opRegisterDrvOutput, wire.MaxText, func(*conn) {}},
	"id of realisation":   {opQueryRealisation, wire.MaxString, func(*conn) {}},
	"log of":              {opAddBuildLog, wire.MaxString, func(*conn) {}},
	"NAR hash":            {opAddToStoreNar, wire.MaxString, func(c *conn) { pathRequest(c); c.w.String("") }},
	"references":          {opAddToStoreNar, wire.MaxReferences, infoUpTo(1)},
	"NAR size":            {opAddToStoreNar, wire.DefaultNarSize, infoUpTo(3)},
	"signatures of info":  {opAddToStoreNar, wire.MaxSigs, infoUpTo(5)},
	"content address":     {opAddToStoreNar, wire.MaxString, infoUpTo(6)},
	"paths of upload":     {opAddMultipleToStore, wire.DefaultPaths, func(c *conn) { c.w.Bool(false); c.w.Bool(false); c.w.Uint64(8) }},
}

// derivationUpTo writes a path and n empty parts of a derivation.
func derivationUpTo(n int) func(*conn) {
	return func(c *conn) { pathRequest(c); c.w.Write(make([]byte, n*8)) }
}

// infoUpTo writes a path, no deriver, a hash and n empty parts of a path info.
func infoUpTo(n int) func(*conn) {
	return func(c *conn) {
		pathRequest(c)
		c.w.String("")
		c.w.String(somePaths()[0].info.NarHash.Base16())
		c.w.Write(make([]byte, (n-1)*8))
	}
}

// Guards against a limit that is missing, lower than it says, or one too high,
// and against memory for what is only claimed.
func TestLimitsHoldExactly(t *testing.T) {
	ask := func(op Op, before func(*conn), n uint64) (heard []byte, err error) {
		request := bytesOf(latest, func(c *conn) {
			c.w.Uint64(uint64(op))
			before(c)
			c.w.Uint64(n)
		})
		grown := allocated(func() { heard, err = serveAndHangUp(storeWithPaths(), bytesOf(latest, hello), request) })
		if grown > 1<<20 {
			t.Errorf("%s with %d: allocated %d bytes", op, n, grown)
		}
		return heard, err
	}
	for name, l := range limited {
		for _, n := range []uint64{0, 1, l.limit} {
			// What follows is missing, or was written wrongly: only the number counts.
			if _, err := ask(l.op, l.before, n); wire.IsFormat(err) && bytes.Contains([]byte(err.Error()), []byte("of at most")) {
				t.Errorf("%s: %d is refused: %v", name, n, err)
			}
		}
		for _, n := range []uint64{l.limit + 1, math.MaxUint32, 1 << 32, 1 << 63, math.MaxUint64} {
			if n <= l.limit {
				continue
			}
			heard, err := ask(l.op, l.before, n)
			if l.op == opAddMultipleToStore && errors.Is(err, io.ErrUnexpectedEOF) && bytes.Contains(heard, []byte("of at most")) {
				continue // told at once, while the frames are still read
			}
			if !wire.IsFormat(err) || !bytes.Contains([]byte(err.Error()), []byte("of at most")) || !bytes.HasSuffix(heard, errorOf(latest, err.Error())) {
				t.Errorf("%s: with %d: %v, heard %q", name, n, err, heard)
			}
		}
	}
}

// Guards against a handshake in which a number costs memory, panics, or lets a
// peer in that did not finish it.
func TestAbsurdHandshakes(t *testing.T) {
	for name, d := range everyDialect() {
		greeting := bytesOf(d, hello)
		for at := 0; at+8 <= len(greeting); at += 8 {
			for _, n := range append([]uint64{maxFeatures + 1, maxFeatureName + 1, math.MaxUint32}, absurd...) {
				says := bytes.Clone(greeting)
				putUint64(says[at:], n)
				store := storeWithPaths()
				var err error
				if grown := allocated(func() { _, err = serveAndHangUp(store, says) }); grown > 1<<20 {
					t.Errorf("%s with %#x at byte %d: allocated %d bytes", name, n, at, grown)
				}
				obsolete := at == len(greeting)-8 // the reserved space may be anything
				if err == nil && !obsolete && !isText(greeting, at) {
					t.Errorf("%s with %#x at byte %d: accepted", name, n, at)
				}
			}
		}
	}
}

// Guards against 2.23 clients at each version that has an affinity, whatever
// number stands where their version does.
func TestAffinityMayBeAnyNumber(t *testing.T) {
	for name, d := range everyDialect() {
		for _, affinity := range []uint64{1, uint64(d.version), math.MaxUint64} {
			synctest.Test(t, func(t *testing.T) {
				greeting := bytesOf(d, func(c *conn) {
					c.w.Uint64(magicClient)
					c.w.Uint64(uint64(d.version))
					if d.version >= sinceFeatures {
						c.w.Strings(d.features)
					}
					c.w.Uint64(affinity)
					c.w.Uint64(0) // the cpu
					c.w.Uint64(0)
				})
				heard, err := serveBytes(storeWithPaths(), ServeOptions{}, greeting, bytesOf(d, requestOf(opQueryValidPaths)))
				if err != nil || !bytes.HasSuffix(heard, replyTail(d)) {
					t.Errorf("%s, affinity %#x: %v, heard %q", name, affinity, err, heard)
				}
			})
		}
	}
}

// Guards against more features in force than both sides named, or a session out
// of step because of names that nobody here knows.
func TestFeaturesOfClients(t *testing.T) {
	for name, features := range map[string][]string{
		"none": nil, "unknown": {"x", "", "add-to-store-scanning"}, "one": {FeatureDeleteReferrers}, "twice": {FeatureRealisationPaths, FeatureRealisationPaths},
		"all": append([]string{"disable-set-options"}, allFeatures...),
	} {
		synctest.Test(t, func(t *testing.T) {
			d := dialect{version: Latest}
			d.agreeFeatures(features, allFeatures) // what the client speaks now
			greeting := bytesOf(dialect{version: Latest, features: features}, hello)
			var says [][]byte
			says = append(says, greeting)
			for _, op := range []Op{opCollectGarbage, opQueryRealisation, opQueryValidPaths} {
				says = append(says, bytesOf(d, requestOf(op)))
			}
			heard, err := serveBytes(storeWithPaths(), ServeOptions{}, says...)
			if err != nil || !bytes.HasSuffix(heard, replyTail(d)) {
				t.Errorf("%s: %v, heard %q", name, err, heard)
			}
		})
	}
}
