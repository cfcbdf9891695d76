package proxy

import (
	"errors"
	"slices"
	"testing"
	"time"

	"nixbastion/internal/nix"
)

func (c *labClient) wantNamed(t *testing.T, hashPart string, want nix.StorePath) {
	t.Helper()
	got, err := c.QueryPathFromHashPart(t.Context(), hashPart)
	if got != want || want.IsZero() != errors.Is(err, nix.ErrNotFound) {
		t.Errorf("hash part %s: %v, %v", hashPart, got, err)
	}
}

// Guards against a hash part that only a builder can tell the path of and nobody
// does, that tells another domain something, or that is asked for without need; and
// against a client's text that reaches a builder and is no hash part.
func TestPathsOfBuildersAreFoundByTheirHashParts(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	file := newLabFile(labPath("found"), "text")
	hashPart := file.info.Path.HashPart()
	l.listed(map[*labBuilder][]labFile{b: {file}})
	l.client("eve").wantNamed(t, hashPart, nix.StorePath{})
	l.client("reader").wantNamed(t, labPath("absent").HashPart(), nix.StorePath{})
	if got := b.askedFor(); len(got) > 0 {
		t.Errorf("the builder was asked for %q", got)
	}
	b.named = func(text string) (nix.StorePath, error) {
		t.Errorf("the builder was asked for %q", text)
		return nix.StorePath{}, nix.ErrNotFound
	}
	for _, text := range []string{hashPart + "-found", hashPart + "-", hashPart[1:], "", hashPart + "/../x"} {
		l.client("reader").wantNamed(t, text, nix.StorePath{})
	}
	b.named = nil
	l.client("reader").wantNamed(t, hashPart, file.info.Path)
	l.client("eve").wantNamed(t, hashPart, nix.StorePath{})
	b.die()
	late := l.client("alice")
	late.wantNamed(t, hashPart, file.info.Path)
	late.wantRead(t, file.info.Path, "text")
	if got := b.askedFor(); !slices.Equal(got, []string{hashPart, "found"}) {
		t.Errorf("the builder was asked for %q", got)
	}
}

// Guards against a builder that names another path, one that has lost it, and one
// that says nothing: the client reads that there is none, soon, or has it from
// another builder.
func TestBuildersThatNameNothingAreNoError(t *testing.T) {
	file, only, other := newLabFile(labPath("found"), "text"), newLabFile(labPath("only"), "text"), newLabFile(labPath("other"), "text")
	for name, set := range map[string]func(*labBuilder){
		"another path": func(b *labBuilder) {
			b.named = func(string) (nix.StorePath, error) { return other.info.Path, nil }
		},
		"an error": func(b *labBuilder) {
			b.named = func(string) (nix.StorePath, error) { return nix.StorePath{}, nix.Refuse("no") }
		},
		"half a line": func(b *labBuilder) {
			b.named = func(string) (nix.StorePath, error) { b.cut(); return nix.StorePath{}, nix.ErrNotFound }
		},
		"nothing": func(b *labBuilder) { b.mute = true },
		"gone":    func(b *labBuilder) { b.drop(file.info.Path); b.drop(only.info.Path) },
	} {
		t.Run(name, func(t *testing.T) {
			bad, good := newLabBuilder("b1"), newLabBuilder("b2")
			l := newLab(t, bad, good)
			l.listed(map[*labBuilder][]labFile{bad: {file, only}, good: {file}})
			set(bad)
			began := time.Now()
			l.client("reader").wantNamed(t, only.info.Path.HashPart(), nix.StorePath{})
			if took := time.Since(began); took > askTimeout+time.Second {
				t.Errorf("the answer took %s", took)
			}
			l.client("reader").wantNamed(t, file.info.Path.HashPart(), file.info.Path)
		})
	}
}
