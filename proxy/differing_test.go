package proxy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against builds that stop because fleets in use for months hold paths that
// nobody can reproduce, against a difference that nobody hears of, and against one
// that is logged with every build.
func TestBuildersWithOtherBytesAreUsedAndNamedOnce(t *testing.T) {
	builders := []*labBuilder{newLabBuilder("b1"), newLabBuilder("b2"), newLabBuilder("b3")}
	l := newLab(t, builders...)
	for _, b := range builders {
		b.put(newLabFile(labPath("input"), "as "+b.name+" made it"))
	}
	alice := l.client("alice")
	input, same := newLabFile(labPath("input"), "ours"), newLabFile(labPath("same"), "x")
	if err := alice.upload(t.Context(), input, same); err != nil {
		t.Fatal(err)
	}
	for i, b := range builders {
		for _, other := range builders {
			l.proxy.router.SetUp(other.name, other == b, "kept out")
		}
		for round := range 2 {
			name := fmt.Sprintf("out-%d-%d", i, round)
			result, err := alice.build(t.Context(), nix.Discard, name, input.info.Path, same.info.Path)
			mustSucceed(t, result, err)
			if got := b.built(); !slices.Contains(got, name) {
				t.Errorf("%s built %q, not %s", b.name, got, name)
			}
		}
	}
	var named []string
	for _, r := range l.log.records(t, "builder holds an input with other content, which is used (builder_content: accept)") {
		if r["path"] != input.info.Path.String() || r["theirs"] == r["ours"] {
			t.Errorf("record %v", r)
		}
		named = append(named, fmt.Sprint(r["builder"]))
	}
	if !slices.Equal(named, []string{"b1", "b2", "b3"}) {
		t.Errorf("named are %q, want each builder once", named)
	}
	if said := l.run("alice", "status --json", nil); strings.Count(said.stdout, `"differing_inputs": 1`) != 3 {
		t.Errorf("status: %s%s", said.stdout, said.stderr)
	}
}

// Guards against memory that grows with what builders hold, and against a path that
// is compared with bytes that we have no more.
func TestComparedInputsAreBoundedAndOfTheirBytes(t *testing.T) {
	l := newLab(t)
	d := newDifferences(l.proxy.log)
	ours, held := map[nix.StorePath]*nix.PathInfo{}, []nix.StorePath{}
	for i := range maxCompareAtOnce + 10 {
		f := newLabFile(labPath(fmt.Sprintf("p%d", i)), "x")
		ours[f.info.Path], held = f.info, append(held, f.info.Path)
	}
	first := d.unseen("b1", held, ours)
	if len(first) != maxCompareAtOnce {
		t.Errorf("%d are asked for at once", len(first))
	}
	for _, path := range first {
		d.note("b1", ours[path], ours[path])
	}
	if rest := d.unseen("b1", held, ours); len(rest) != 10 {
		t.Errorf("%d are left", len(rest))
	}
	if n := len(d.unseen("b2", held, ours)); n != maxCompareAtOnce {
		t.Errorf("another builder: %d", n)
	}
	changed := newLabFile(first[0], "other bytes").info
	ours[changed.Path] = changed
	if again := d.unseen("b1", first, ours); !slices.Equal(again, first[:1]) {
		t.Errorf("after a change %v are asked for", again)
	}
	unknown := *changed
	unknown.NarHash = nix.Hash{} // builders before serve protocol 2.4 do not say
	if d.note("b1", changed, &unknown); d.of("b1") != 0 {
		t.Error("a builder that does not say what it holds counts as one with other bytes")
	}
	for i := range maxCompared + 100 {
		d.note("b1", &nix.PathInfo{Path: testPath(t, i)}, nil)
	}
	if n := d.compared.Len(); n != maxCompared {
		t.Errorf("%d are remembered", n)
	}
}

// Guards against a build that runs where other bytes are although its domain wants
// them to match, and against a reason that nobody is told.
func TestBuilderWithOtherBytesIsPassedOver(t *testing.T) {
	planted, clean := newLabBuilder("b1"), newLabBuilder("b2")
	planted.strict, clean.strict = true, true
	l := newLab(t, planted, clean)
	planted.put(newLabFile(labPath("input"), "planted"))
	alice := l.client("alice")
	input := newLabFile(labPath("input"), "ours")
	if err := alice.upload(t.Context(), input); err != nil {
		t.Fatal(err)
	}
	var log lines
	result, err := alice.build(t.Context(), &log, "hello", input.info.Path)
	mustSucceed(t, result, err)
	if got, err := alice.read(t.Context(), labPath("hello")); got != "built by b2" || err != nil {
		t.Errorf("output holds %q, %v", got, err)
	}
	want := "builder 'b1': holds " + input.info.Path.String() + " with other content"
	if !strings.Contains(log.String(), want) {
		t.Errorf("the client was told:\n%s", &log)
	}
	if n := len(l.log.records(t, "builder failed a build")); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

// Guards against what the sources of a build refer to and nobody compares, because
// the request does not name it.
func TestWhatInputsReferToIsComparedToo(t *testing.T) {
	b := newLabBuilder("b1")
	b.strict = true
	l := newLab(t, b)
	lib := newLabFile(labPath("lib"), "ours")
	app := newLabFile(labPath("app"), "x", lib.info.Path)
	b.put(newLabFile(lib.info.Path, "planted"))
	alice := l.client("alice")
	if err := alice.upload(t.Context(), lib, app); err != nil {
		t.Fatal(err)
	}
	result, err := alice.build(t.Context(), nix.Discard, "hello", app.info.Path)
	if err != nil || result.Status.Success() || !strings.Contains(result.ErrorMsg, lib.info.Path.String()+" with other content") {
		t.Errorf("result %+v, %v", result, err)
	}
}
