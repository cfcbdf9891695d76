package cache

import (
	"bytes"
	"fmt"
	"testing"

	"nixbastion/internal/nix"
)

func (o object) receiveFound(t testing.TB, c *Cache, g Grant) Outcome {
	t.Helper()
	outcome, err := c.ReceiveFound(t.Context(), o.info, bytes.NewReader(o.nar), g)
	if err != nil {
		t.Fatalf("receive %s: %v", o.info.Path.Name(), err)
	}
	return outcome
}

// Guards against a path that only a builder had being lost with what it refers to,
// or being answered as if that were here.
func TestFoundPathsMayReferToWhatIsElsewhere(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	lib := obj("lib", "lib")
	tool := obj("tool", "tool", lib.info.Path)
	vouched := Grant{Domain: "team", Provenance: DomainVouched}
	if _, err := c.Receive(t.Context(), tool.info, bytes.NewReader(tool.nar), vouched); err == nil {
		t.Error("an upload may refer to what is not here")
	}
	tool.mustBe(t, Added, tool.receiveFound(t, c, vouched))
	tool.holds(t, c, "team")
	absent(t, c, "team", lib.info.Path)
	absent(t, c, "other", tool.info.Path)
	wantReferrers(t, c, "team", lib, tool)
	closeCache(t, c)

	c = openCache(t, Options{Dir: dir})
	tool.holds(t, c, "team")
	if got, err := c.QueryProvenance("team", tool.info.Path); got != DomainVouched || err != nil {
		t.Errorf("vouched for by %v, %v", got, err)
	}
	lib.mustBe(t, Added, lib.receiveFound(t, c, vouched))
	wantReferrers(t, c, "team", lib, tool)
}

// Guards against an eviction that makes a closure less whole than it was, when what
// a path refers to came after the path.
func TestReferencesThatCameLaterAreKeptForWhatRefersToThem(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Size: 20 * unit, Now: ticks()})
	lib := obj("lib", "lib")
	tool := obj("tool", "tool", lib.info.Path, pathNamed("elsewhere"))
	tool.receiveFound(t, c, in("team"))
	lib.receiveFound(t, c, in("team"))
	flushed(t, c)
	pins := c.NewPins("alice")
	defer pins.Release()
	pins.Pin("team", []nix.StorePath{tool.info.Path})
	for round := range 10 {
		filler(t, c, fmt.Sprintf("more%d-", round), 17)
		roomy(t, c)
		tool.holds(t, c, "team") // and nobody asks for what it refers to
		if got := c.QueryValidPaths("team", []nix.StorePath{lib.info.Path}); len(got) == 0 {
			t.Fatal("what the path refers to has gone before it")
		}
	}
}

// Guards against found paths that take the space which is kept for uploads.
func TestFoundPathsLeaveTheReserveAlone(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Size: 20 * unit, Reserve: 19 * unit})
	big := obj("big", string(make([]byte, 3*unit)))
	if _, err := c.ReceiveFound(t.Context(), big.info, bytes.NewReader(big.nar), in("team")); err == nil {
		t.Error("it was taken")
	}
	big.receive(t, c, in("team"))
}
