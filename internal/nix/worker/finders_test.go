package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// listing is a client of a daemon that answers a question for all paths with a
// list of n, or says so and sends fewer.
func listing(t *testing.T, claimed uint64, n int, limits Limits) *Client {
	t.Helper()
	var says bytes.Buffer
	handshake, _ := answersTo(t, dialect{version: Latest}, "QueryPathInfo")
	says.Write(handshake)
	w := wire.NewWriter(&says)
	w.Uint64(stderrLast)
	w.Uint64(claimed)
	for i := range n {
		w.StorePath(pathNamed(fmt.Sprintf("path%06d", i)))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(t.Context(), hostileDaemon{bytes.NewReader(says.Bytes())}, ClientOptions{Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Guards against a store of a million paths that can only be listed by who holds
// all their names at once.
func TestWalkHoldsNoPath(t *testing.T) {
	const n = 1000
	small := Limits{MessageBytes: 4 << 10}
	walked := 0
	if err := listing(t, n, n, small).WalkAllValidPaths(t.Context(), n, func(nix.StorePath) { walked++ }); err != nil || walked != n {
		t.Errorf("walked over %d of %d paths: %v", walked, n, err)
	}
	if _, err := listing(t, n, n, small).QueryAllValidPaths(t.Context()); err == nil {
		t.Error("the same list fits the message limit: the test shows nothing")
	}
}

// Guards against a daemon whose list is endless, or claims to be and is believed.
func TestWalkRefusesALongList(t *testing.T) {
	for _, claimed := range []uint64{101, 1 << 40, 1<<64 - 1} {
		c := listing(t, claimed, 101, Limits{})
		err := c.WalkAllValidPaths(context.Background(), 100, func(path nix.StorePath) { t.Fatalf("%#x: visits %s", claimed, path) })
		var broken *ConnError
		if !errors.As(err, &broken) || !broken.Corrupt || !strings.Contains(err.Error(), "a count of at most 100") {
			t.Errorf("%#x paths: %v", claimed, err)
		}
	}
}
