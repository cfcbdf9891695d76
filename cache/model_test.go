package cache

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"nixbastion/internal/nix"
)

// Guards against any order of uploads, arrivals, restarts and lost indexes after
// which the cache answers otherwise than a map of what each domain was given.
func TestCacheBehavesLikeAMapPerDomain(t *testing.T) {
	objects := modelObjects()
	rapid.Check(t, func(rt *rapid.T) {
		dir := newDir(t)
		m := &model{t: t, rt: rt, dir: dir, objects: objects, has: map[key]held{}}
		defer os.RemoveAll(dir)
		m.open()
		defer func() { m.c.Close() }()
		rt.Repeat(map[string]func(*rapid.T){
			"upload":     m.upload,
			"bad upload": m.badUpload,
			"build":      m.build,
			"flush":      func(*rapid.T) { flushed(t, m.c) },
			"reopen":     func(*rapid.T) { m.reopen(false) },
			"lose index": func(*rapid.T) { m.reopen(true) },
			"":           m.check,
		})
	})
}

// modelObjects are a few paths with two contents each, of which some refer to
// others.
func modelObjects() [][2]object {
	var all [][2]object
	for i, name := range names("p", 4) {
		var refs []nix.StorePath
		if i > 0 {
			refs = append(refs, all[i/2][0].info.Path)
		}
		all = append(all, [2]object{obj(name, "one", refs...), obj(name, strings.Repeat("two", 1000), refs...)})
	}
	source := sourceObj("source", "source")
	return append(all, [2]object{source, source})
}

var modelDomains = []string{"one", "two"}

// held is what the model knows of a path in a domain.
type held struct {
	object     int // which of its contents
	provenance Provenance
}

type model struct {
	t       *testing.T
	rt      *rapid.T
	dir     string
	c       *Cache
	objects [][2]object
	has     map[key]held
}

func (m *model) open() {
	var err error
	m.c, err = Open(m.t.Context(), Options{Dir: m.dir, HotRecords: 3, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		m.rt.Fatal(err)
	}
}

func (m *model) reopen(loseIndex bool) {
	if err := m.c.Close(); err != nil {
		m.rt.Fatal(err)
	}
	if loseIndex {
		if err := os.Remove(filepath.Join(m.dir, indexName)); err != nil {
			m.rt.Fatal(err)
		}
	}
	m.open()
}

// visible is the model of a look.
func (m *model) visible(domain string, p nix.StorePath) (held, bool) {
	h, ok := m.has[keyOf(domain, p)]
	if !ok {
		h, ok = m.has[keyOf(publicDomain, p)]
	}
	return h, ok
}

func drawGrant(rt *rapid.T) Grant {
	return Grant{
		Domain:     rapid.SampledFrom(modelDomains).Draw(rt, "domain"),
		Public:     rapid.Bool().Draw(rt, "public"),
		Provenance: Provenance(rapid.IntRange(0, int(Signed)).Draw(rt, "provenance")),
	}
}

// take is the model of verified bytes.
func (m *model) take(o object, content int, g Grant) Outcome {
	seen, valid := m.visible(g.Domain, o.info.Path)
	if valid && m.content(o, seen.object).info.NarHash != o.info.NarHash {
		return Differs
	}
	provenance := g.Provenance
	if !o.info.CA.IsZero() {
		provenance = ContentAddressed
	}
	to := []key{keyOf(g.Domain, o.info.Path)}
	if g.Public && provenance > Claimed && m.closed(o, publicDomain) {
		to = append(to, keyOf(publicDomain, o.info.Path))
	}
	for _, k := range to {
		old, ok := m.has[k]
		switch {
		case !ok:
			m.has[k] = held{content, provenance}
		case m.content(o, old.object).info.NarHash == o.info.NarHash:
			m.has[k] = held{old.object, max(old.provenance, provenance)}
		}
	}
	if valid {
		return AlreadyValid
	}
	return Added
}

func (m *model) content(o object, i int) object {
	for _, pair := range m.objects {
		if pair[0].info.Path == o.info.Path {
			return pair[i]
		}
	}
	return object{}
}

func (m *model) draw(rt *rapid.T) (object, int) {
	content := rapid.IntRange(0, 1).Draw(rt, "content")
	return m.objects[rapid.IntRange(0, len(m.objects)-1).Draw(rt, "path")][content], content
}

func (m *model) closed(o object, domain string) bool {
	for _, ref := range o.info.References {
		if _, ok := m.visible(domain, ref); !ok {
			return false
		}
	}
	return true
}

func (m *model) upload(rt *rapid.T) {
	o, content := m.draw(rt)
	g := drawGrant(rt)
	got, err := m.c.Receive(m.t.Context(), o.info, bytes.NewReader(o.nar), g)
	if !m.closed(o, g.Domain) {
		if err == nil {
			rt.Fatalf("took %s without its references", o.info.Path.Name())
		}
		return
	}
	if want := m.take(o, content, g); err != nil || got != want {
		rt.Fatalf("upload of %s: %v, %v, want %v", o.info.Path.Name(), got, err, want)
	}
}

func (m *model) badUpload(rt *rapid.T) {
	o, _ := m.draw(rt)
	bad := bytes.Clone(o.nar)
	bad[rapid.IntRange(0, len(bad)-1).Draw(rt, "at")] ^= 1
	if _, err := m.c.Receive(m.t.Context(), o.info, bytes.NewReader(bad), drawGrant(rt)); err == nil {
		rt.Fatal("took bad bytes")
	}
}

func (m *model) build(rt *rapid.T) {
	o, content := m.draw(rt)
	g := drawGrant(rt)
	if !m.closed(o, g.Domain) {
		return
	}
	_, valid := m.visible(g.Domain, o.info.Path)
	a, err := m.c.Announce(o.info, g)
	if err != nil || a.Needed() == valid {
		rt.Fatalf("announcement of %s: needed %v, valid %v, %v", o.info.Path.Name(), a != nil && a.Needed(), valid, err)
	}
	if rapid.Bool().Draw(rt, "lost") {
		a.Abort(errors.New("lost"))
		return
	}
	got, err := a.Fill(m.t.Context(), bytes.NewReader(o.nar))
	if want := m.take(o, content, g); err != nil || got != want {
		rt.Fatalf("arrival of %s: %v, %v, want %v", o.info.Path.Name(), got, err, want)
	}
}

func (m *model) check(rt *rapid.T) {
	for _, domain := range append(modelDomains, "three") {
		for _, pair := range m.objects {
			p := pair[0].info.Path
			want, valid := m.visible(domain, p)
			got, err := readNar(m.t.Context(), m.c, domain, p)
			provenance, provenanceErr := m.c.QueryProvenance(domain, p)
			switch {
			case valid != (err == nil) || valid != (provenanceErr == nil) || valid != (len(m.c.QueryValidPaths(domain, []nix.StorePath{p})) == 1):
				rt.Fatalf("%s in %s: valid %v, but %v", p.Name(), domain, valid, err)
			case !valid:
			case !bytes.Equal(got, pair[want.object].nar):
				rt.Fatalf("%s in %s has other bytes", p.Name(), domain)
			case provenance != want.provenance:
				rt.Fatalf("%s in %s: %v, want %v", p.Name(), domain, provenance, want.provenance)
			}
			m.checkReferrers(domain, p)
		}
		m.checkFound("all paths", domain, func(object) bool { return true }, m.c.QueryAllValidPaths)
	}
}

func (m *model) checkReferrers(domain string, p nix.StorePath) {
	refers := func(o object) bool { return slices.Contains(o.info.References, p) }
	m.checkFound("referrers of "+p.Name(), domain, refers, func(ctx context.Context, domain string) ([]nix.StorePath, error) {
		return m.c.QueryReferrers(ctx, domain, p)
	})
}

// checkFound compares what a question finds with what is visible and matches.
func (m *model) checkFound(what, domain string, match func(object) bool, ask func(context.Context, string) ([]nix.StorePath, error)) {
	var want []nix.StorePath
	for _, pair := range m.objects {
		if _, valid := m.visible(domain, pair[0].info.Path); valid && match(pair[0]) {
			want = append(want, pair[0].info.Path)
		}
	}
	if got, err := ask(m.t.Context(), domain); err != nil || !slices.Equal(got, nix.SortPaths(want)) {
		m.rt.Fatalf("%s in %s: got %v, %v, want %v", what, domain, got, err, want)
	}
}
