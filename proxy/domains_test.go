package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

// secret is what one domain has and another one asks for: an output, with the source
// and the .drv file that it is made from and what refers to it.
type secret struct {
	source, out, user labFile
	plan              planned
}

// newSecret makes one whose paths follow from a word.
func newSecret(p *planner, word string) *secret {
	s := &secret{source: sourceFile("source", word)}
	s.plan = p.plan("plan", []nix.StorePath{s.source.info.Path}, func(d *nix.Derivation) {
		d.Args = []string{word}
		d.Outputs[0].Path = labPath("out-" + word)
	})
	s.out = newLabFile(s.plan.out, word, s.source.info.Path)
	s.out.info.Deriver = s.plan.path
	s.user = newLabFile(labPath("user-"+word), word, s.out.info.Path)
	return s
}

func (s *secret) files() []labFile { return []labFile{s.source, s.plan.file, s.out, s.user} }

func (s *secret) paths() []nix.StorePath {
	var all []nix.StorePath
	for _, f := range s.files() {
		all = append(all, f.info.Path)
	}
	return all
}

// unnamed replaces what differs between two secrets whatever the answer is.
func (s *secret) unnamed(text string) string {
	for i, path := range s.paths() {
		text = strings.ReplaceAll(text, path.String(), fmt.Sprintf("PATH%d", i))
		text = strings.ReplaceAll(text, path.HashPart(), fmt.Sprintf("HASH%d", i))
	}
	return mine.ReplaceAllString(text, "MINE")
}

// mine is what a client adds itself; what it refers to is in its path.
var mine = regexp.MustCompile(`/nix/store/[0-9a-z]{32}-mine`)

// questions are all that a client can ask about paths, each in a session of its own.
// What a client brings itself comes after: see uploads.
func (s *secret) questions() map[string]func(context.Context, *labClient) (any, error) {
	type client = *labClient
	type ask = func(context.Context, client) (any, error)
	all := map[string]ask{
		"valid paths":                   func(ctx context.Context, c client) (any, error) { return c.QueryValidPaths(ctx, s.paths(), false) },
		"valid paths, with substitutes": func(ctx context.Context, c client) (any, error) { return c.QueryValidPaths(ctx, s.paths(), true) },
		"all paths":                     func(ctx context.Context, c client) (any, error) { return c.QueryAllValidPaths(ctx) },
		"roots":                         func(ctx context.Context, c client) (any, error) { return nil, c.AddTempRoots(ctx, s.paths()) },
		"output map":                    func(ctx context.Context, c client) (any, error) { return c.QueryDerivationOutputMap(ctx, s.plan.path) },
		"path infos":                    func(ctx context.Context, c client) (any, error) { return c.QueryPathInfos(ctx, s.paths()) },
		"missing paths":                 func(ctx context.Context, c client) (any, error) { return c.QueryMissing(ctx, s.targets()) },
		"build paths": func(ctx context.Context, c client) (any, error) {
			results, err := c.BuildPathsWithResults(ctx, nix.Discard, s.targets()[:2], nix.BuildNormal)
			return texts(results), err
		},
		"build the derivation's path": func(ctx context.Context, c client) (any, error) {
			results, err := c.BuildPathsWithResults(ctx, nix.Discard, s.targets()[2:], nix.BuildNormal)
			return texts(results), err
		},
		"build from the source": func(ctx context.Context, c client) (any, error) {
			return c.build(ctx, nix.Discard, "other", s.source.info.Path)
		},
		"build from the output": func(ctx context.Context, c client) (any, error) {
			return c.build(ctx, nix.Discard, "other", s.out.info.Path)
		},
		"check the output": func(ctx context.Context, c client) (any, error) {
			return c.BuildDerivation(ctx, nix.Discard, s.plan.path, s.plan.request(), nix.BuildCheck)
		},
		"sign the output": func(ctx context.Context, c client) (any, error) {
			return nil, c.AddSignatures(ctx, s.out.info.Path, []string{labKey.Sign(s.out.info.Fingerprint()).String()})
		},
		"upload what refers to the source": func(ctx context.Context, c client) (any, error) {
			return nil, c.upload(ctx, newLabFile(labPath("mine"), "x", s.source.info.Path))
		},
		"upload half of the output": func(ctx context.Context, c client) (any, error) {
			half := s.out
			half.nar = append(slices.Clone(half.nar[:len(half.nar)-8]), make([]byte, 8)...)
			return nil, c.upload(ctx, half)
		},
		"add text that refers to the source": func(ctx context.Context, c client) (any, error) {
			method, err := nix.ParseContentAddressMethod("text:sha256")
			if err != nil {
				return nil, err
			}
			return c.AddToStore(ctx, nix.Discard, nix.AddToStoreRequest{Name: "mine", Method: method,
				References: []nix.StorePath{s.source.info.Path}}, strings.NewReader("x"))
		},
	}
	for i, path := range s.paths() {
		on := func(what string, f ask) { all[fmt.Sprintf("%s of %d", what, i)] = f }
		on("info", func(ctx context.Context, c client) (any, error) { return c.QueryPathInfo(ctx, path) })
		on("referrers", func(ctx context.Context, c client) (any, error) { return c.QueryReferrers(ctx, path) })
		on("derivers", func(ctx context.Context, c client) (any, error) { return c.QueryValidDerivers(ctx, path) })
		on("hash part", func(ctx context.Context, c client) (any, error) { return c.QueryPathFromHashPart(ctx, path.HashPart()) })
		on("NAR", func(ctx context.Context, c client) (any, error) {
			r, err := c.NarFromPath(ctx, path)
			if err != nil {
				return nil, err
			}
			defer r.Close()
			return io.ReadAll(r)
		})
	}
	return all
}

func (s *secret) targets() []nix.DerivedPath {
	return []nix.DerivedPath{{Path: s.out.info.Path}, {Path: s.source.info.Path}, {Path: s.plan.path, Built: true}}
}

func texts(results []nix.KeyedBuildResult) []string {
	var all []string
	for _, r := range results {
		all = append(all, fmt.Sprintf("%s %s %v", r.Result.Status, r.Result.ErrorMsg, r.Result.Outputs))
	}
	return all
}

// answered is what a client reads, whatever it asked.
func answered(v any, err error) string {
	if r, ok := v.(*nix.BuildResult); ok && r != nil {
		v = fmt.Sprintf("%s %s %v", r.Status, r.ErrorMsg, r.Outputs)
	}
	if info, ok := v.(*nix.PathInfo); ok && info != nil {
		v = *info
	}
	return fmt.Sprintf("%v | %v", v, err)
}

// Guards against a domain that learns by any question what another one has: all
// answers are those about paths that never were. Sources and .drv files count as
// much as outputs do.
func TestQuestionsTellNothingOfOtherDomains(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	b2.domain = "other"
	l, p := newLab(t, b1, b2), newPlanner(t)
	there, nowhere := newSecret(p, "there"), newSecret(p, "nowhere")
	alice := l.client("alice")
	if err := alice.upload(t.Context(), there.files()...); err != nil {
		t.Fatal(err)
	}
	if valid, err := alice.QueryValidPaths(t.Context(), there.paths(), false); err != nil || len(valid) != 4 {
		t.Fatalf("the paths are not there: %v, %v", valid, err)
	}
	for name, ask := range there.questions() {
		got := there.unnamed(answered(ask(t.Context(), l.client("eve"))))
		want := nowhere.unnamed(answered(nowhere.questions()[name](t.Context(), l.client("eve"))))
		if got != want {
			t.Errorf("%s: the answer is\n%s\nand for paths that never were\n%s", name, got, want)
		}
		if own := there.unnamed(answered(ask(t.Context(), l.client("bob")))); own == want && !slices.Contains(sameForAll, name) {
			t.Errorf("%s: the domain itself is answered alike, so this shows nothing: %s", name, own)
		}
	}
	for _, question := range []string{"why %s", "why --json %s", "status", "status --json"} {
		ask := func(s *secret) string {
			q := question
			if strings.Contains(q, "%s") {
				q = fmt.Sprintf(q, s.plan.path)
			}
			return s.unnamed(fmt.Sprint(l.run("eve", q, nil)))
		}
		if got, want := ask(there), ask(nowhere); got != want {
			t.Errorf("%s: %s\nwant %s", question, got, want)
		}
	}
	ssh := l.must("eve", "nix-store --serve --write", nil)
	if valid, err := ssh.QueryValidPaths(t.Context(), there.paths(), false); err != nil || len(valid) != 0 {
		t.Errorf("over ssh://: %v, %v", valid, err)
	}
	if infos, err := ssh.QueryPathInfos(t.Context(), there.paths()); err != nil || slices.ContainsFunc(infos, func(i *nix.PathInfo) bool { return i != nil }) {
		t.Errorf("over ssh://: %v, %v", infos, err)
	}
	all, err := l.client("eve").QueryAllValidPaths(t.Context())
	if err != nil || slices.ContainsFunc(all, func(path nix.StorePath) bool { return slices.Contains(there.paths(), path) }) {
		t.Errorf("eve lists %v, %v", all, err)
	}
}

// sameForAll are questions whose answers are alike for everybody.
var sameForAll = []string{
	"roots", "upload half of the output", "referrers of 1", "referrers of 3", "derivers of 0", "derivers of 1", "derivers of 3",
}

// Guards against possession that is taken from another domain, or that cuts an
// upload short: who brings all bytes has the path, with what it knows of it and
// nothing else, and the bytes are there once.
func TestUploadOfWhatAnotherDomainHasIsOnesOwn(t *testing.T) {
	l, p := newLab(t), newPlanner(t)
	s := newSecret(p, "both")
	if err := l.client("alice").upload(t.Context(), s.files()...); err != nil {
		t.Fatal(err)
	}
	if err := l.proxy.cache.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := l.proxy.cache.Stats()
	eve := l.client("eve")
	out := s.out
	out.info = out.info.Clone()
	out.info.Deriver, out.info.References = nix.StorePath{}, nil
	if err := eve.upload(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	info, err := eve.QueryPathInfo(t.Context(), out.info.Path)
	if err != nil || !info.Deriver.IsZero() || len(info.References) != 0 {
		t.Errorf("eve reads of the other's path: %+v, %v", info, err)
	}
	if refs, err := eve.QueryReferrers(t.Context(), out.info.Path); err != nil || len(refs) != 0 {
		t.Errorf("eve reads what refers to it: %v, %v", refs, err)
	}
	if theirs, err := l.client("alice").QueryPathInfo(t.Context(), out.info.Path); err != nil || theirs.Deriver != s.plan.path {
		t.Errorf("the first domain's record has changed: %+v, %v", theirs, err)
	}
	if err := l.proxy.cache.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := l.proxy.cache.Stats(); after.Bytes != before.Bytes {
		t.Errorf("equal bytes are stored twice: %+v, before %+v", after, before)
	}
}

// Guards against a build that another domain attends, or whose output it gets.
func TestBuildsOfOtherDomainsAreNotAttended(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	b2.domain = "other"
	release := make(chan struct{})
	b1.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		nix.Line(log, "secret line")
		<-release
		return makeOutputs(ctx, b, log, drv)
	}
	l := newLab(t, b1, b2)
	alice, eve := l.client("alice"), l.client("eve")
	source := sourceFile("source", "x")
	for _, c := range []*labClient{alice, eve} {
		if err := c.upload(t.Context(), source); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		result, err := alice.build(t.Context(), nix.Discard, "hello", source.info.Path)
		if err == nil && !result.Status.Success() {
			err = errors.New(result.ErrorMsg)
		}
		done <- err
	}()
	eventually(t, "the build runs", func() bool { return len(b1.built()) == 1 })
	var log lines
	result, err := eve.build(t.Context(), &log, "hello", source.info.Path)
	mustSucceed(t, result, err)
	if strings.Contains(log.String(), "secret line") || strings.Contains(log.String(), "somebody else") {
		t.Errorf("eve was told:\n%s", &log)
	}
	if got, err := eve.read(t.Context(), labPath("hello")); got != "built by b2" || err != nil {
		t.Errorf("eve's output holds %q, %v", got, err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, err := alice.read(t.Context(), labPath("hello")); got != "built by b1" || err != nil {
		t.Errorf("alice's output holds %q, %v", got, err)
	}
	eve = l.client("eve")
	result, err = eve.build(t.Context(), nix.Discard, "hello", source.info.Path)
	mustSucceed(t, result, err)
	if got, err := eve.read(t.Context(), labPath("hello")); got != "built by b2" || err != nil {
		t.Errorf("eve's output holds %q, %v afterwards", got, err)
	}
}
