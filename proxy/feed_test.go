package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// bigFile is a file that is large enough to be fed ahead.
func bigFile(name string, refs ...nix.StorePath) labFile {
	return newLabFile(labPath(name), strings.Repeat(name+" ", (2*feedFrom+feedFrom/2)/(len(name)+1)), refs...)
}

// gatedUpload is an upload of which a part is there and the rest comes when the test
// says so.
type gatedUpload struct {
	rest chan struct{}
	done chan error
}

// uploadHalf begins to upload a file and stops in the middle.
func (c *labClient) uploadHalf(ctx context.Context, f labFile) *gatedUpload {
	u := &gatedUpload{rest: make(chan struct{}), done: make(chan error, 1)}
	half := len(f.nar) / 2
	nar := io.MultiReader(bytes.NewReader(f.nar[:half]), gate(u.rest), bytes.NewReader(f.nar[half:]))
	sent := false
	go func() {
		u.done <- c.AddMultipleToStore(ctx, nix.Discard, nix.PathSource{Count: 1, Next: func() (*nix.PathInfo, io.Reader, error) {
			if sent {
				return nil, nil, io.EOF
			}
			sent = true
			return f.info, nar, nil
		}}, nix.AddOptions{DontCheckSigs: true})
	}()
	return u
}

// gate is empty and ends when it is opened.
type gate chan struct{}

func (g gate) Read([]byte) (int, error) {
	<-g
	return 0, io.EOF
}

func (u *gatedUpload) finish() error {
	close(u.rest)
	return <-u.done
}

// scheduling gives the lab's policy more settings.
func (l *lab) scheduling(settings string) {
	l.Helper()
	text, err := os.ReadFile(l.file)
	if err == nil {
		err = os.WriteFile(l.file, bytes.Replace(text, []byte("\nscheduling: {"), []byte("\nscheduling: {"+settings+", "), 1), 0o600)
	}
	if err == nil {
		_, err = l.proxy.Reload("test")
	}
	if err != nil {
		l.Fatal(err)
	}
}

// Guards against a build that waits for its inputs twice: once until they are here,
// and again until they are on the builder; and against bytes that travel twice.
func TestUploadIsFedAheadAndSentOnce(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	alice := l.client("alice")
	lib := newLabFile(labPath("lib"), "small")
	if err := alice.upload(t.Context(), lib); err != nil {
		t.Fatal(err)
	}
	input := bigFile("input", lib.info.Path)
	upload := alice.uploadHalf(t.Context(), input)
	eventually(t, "half of the upload is on the builder before it is here", func() bool { return b.came(input.info.Path) >= len(input.nar)/4 })
	if _, there := b.file(input.info.Path); there {
		t.Error("the builder holds half an upload")
	}
	if got := b.rooted(); !slices.Contains(got, "input") || !slices.Contains(got, "lib") {
		t.Errorf("the builder keeps %q from its garbage collector", got)
	}
	if err := upload.finish(); err != nil {
		t.Fatal(err)
	}
	result, err := alice.build(t.Context(), nix.Discard, "hello", input.info.Path)
	mustSucceed(t, result, err)
	if got := b.sent(); !slices.Equal(got, []string{"lib", "input"}) {
		t.Errorf("the builder was sent %q", got)
	}
	if f, _ := b.file(input.info.Path); !bytes.Equal(f.nar, input.nar) {
		t.Error("the builder holds other bytes")
	}
	if n := len(l.log.records(t, "fed ahead")); n != 1 {
		t.Errorf("%d lines say so", n)
	}
}

// Guards against a build that sends what a feed is still sending.
func TestBuildWaitsForWhatIsFedAlready(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	b.onFed = func(nix.StorePath) { <-release }
	l := newLab(t, b)
	alice := l.client("alice")
	input := bigFile("input")
	if err := alice.upload(t.Context(), input); err != nil { // which never waits for the builder
		t.Fatal(err)
	}
	eventually(t, "the feed has begun", func() bool { return b.uploads() == 1 })
	var log lines
	done := make(chan error, 1)
	go func() {
		result, err := alice.build(t.Context(), &log, "hello", input.info.Path)
		if err == nil && !result.Status.Success() {
			err = errors.New(result.ErrorMsg)
		}
		done <- err
	}()
	eventually(t, "the client is told", func() bool {
		return strings.Contains(log.String(), "waiting for 1 paths (10 MiB) that are on their way to 'b1' already")
	})
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := b.sent(); !slices.Equal(got, []string{"input"}) {
		t.Errorf("the builder was sent %q", got)
	}
}

// Guards against bytes on a builder that nobody has verified.
func TestWrongUploadLeavesNothingOnTheBuilder(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	good := bigFile("input")
	wrong := labFile{info: good.info, nar: bytes.Clone(good.nar)}
	wrong.nar[len(wrong.nar)-100] ^= 1
	alice := l.client("alice")
	upload := alice.uploadHalf(t.Context(), wrong)
	eventually(t, "the feed has begun", func() bool { return b.came(good.info.Path) > 0 })
	if err := upload.finish(); err == nil {
		t.Error("the wrong bytes were taken")
	}
	eventually(t, "the feed has ended", func() bool { return len(l.log.records(t, "feed ahead ended")) == 1 })
	if got := b.sent(); len(got) > 0 || b.uploads() > 0 {
		t.Errorf("the builder was sent %q, and %d more are on their way", got, b.uploads())
	}
	if n := b.came(good.info.Path); n > len(good.nar)-8 {
		t.Errorf("%d of %d bytes came", n, len(good.nar))
	}
	if err := alice.upload(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	result, err := alice.build(t.Context(), nix.Discard, "hello", good.info.Path)
	mustSucceed(t, result, err)
	if got := b.sent(); !slices.Equal(got, []string{"input"}) {
		t.Errorf("the builder was sent %q", got)
	}
}

// Guards against a session on the builder that waits for ever for a client that has
// gone, and holds the lock of the path.
func TestFeedEndsWithItsClient(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	input := bigFile("input")
	alice := l.client("alice")
	upload := alice.uploadHalf(t.Context(), input)
	eventually(t, "the feed has begun", func() bool { return b.came(input.info.Path) > 0 })
	alice.hangUp()
	defer upload.finish()
	eventually(t, "the builder's session has ended", func() bool { return b.uploads() == 0 })
	eventually(t, "the feed has ended", func() bool { return len(l.log.records(t, "feed ahead ended")) == 1 })
	if _, there := b.file(input.info.Path); there {
		t.Error("the builder holds half an upload")
	}
	bob := l.client("bob")
	if err := bob.upload(t.Context(), input); err != nil {
		t.Fatal(err)
	}
	result, err := bob.build(t.Context(), nix.Discard, "hello", input.info.Path)
	mustSucceed(t, result, err)
	eventually(t, "places are given back", func() bool {
		l.proxy.builds.feeds.mu.Lock()
		defer l.proxy.builds.feeds.mu.Unlock()
		return len(l.proxy.builds.feeds.loads) == 0
	})
}

// Guards against a wrong guess that a build has to wait for, or that goes on.
func TestFeedEndsWhenAnotherBuilderIsChosen(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	release := make(chan struct{})
	b1.onFed = func(nix.StorePath) { <-release }
	l := newLab(t, b1, b2)
	alice := l.client("alice")
	l.proxy.router.SetUp("b2", false, "kept out")
	result, err := alice.build(t.Context(), nix.Discard, "first")
	mustSucceed(t, result, err)
	l.proxy.router.SetUp("b2", true, "")
	input := bigFile("input")
	if err := alice.upload(t.Context(), input); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the builder of the last build is fed", func() bool { return b1.uploads() == 1 })
	l.proxy.router.SetUp("b1", false, "kept out")
	result, err = alice.build(t.Context(), nix.Discard, "hello", input.info.Path)
	mustSucceed(t, result, err)
	if got := b2.sent(); !slices.Equal(got, []string{"input"}) {
		t.Errorf("b2 was sent %q", got)
	}
	close(release)
	eventually(t, "the feed has ended", func() bool { return b1.uploads() == 0 })
	if got := b1.sent(); len(got) > 0 {
		t.Errorf("b1 was sent %q", got)
	}
	eventually(t, "it is said why", func() bool {
		records := l.log.records(t, "feed ahead ended")
		return len(records) == 1 && records[0]["reason"] == errFeedWrong.Error()
	})
}

// Guards against a build with all of its inputs here that waits for the slow upload
// of somebody else.
func TestWhoHasAllOfAPathDoesNotWaitForAnUpload(t *testing.T) {
	b := newLabBuilder("b1")
	b.maxJobs = 2
	l := newLab(t, b)
	input := bigFile("input")
	slow := l.client("alice").uploadHalf(t.Context(), input)
	eventually(t, "the feed has begun", func() bool { return b.came(input.info.Path) > 0 })
	bob := l.client("bob")
	if err := bob.upload(t.Context(), input); err != nil {
		t.Fatal(err)
	}
	result, err := bob.build(t.Context(), nix.Discard, "hello", input.info.Path)
	mustSucceed(t, result, err)
	if err := slow.finish(); err != nil {
		t.Error(err)
	}
	if got := b.sent(); !slices.Equal(got, []string{"input"}) {
		t.Errorf("the builder was sent %q", got)
	}
}

// Guards against two builds that send one path to one builder at the same time.
func TestTwoBuildsSendAnInputOnce(t *testing.T) {
	b := newLabBuilder("b1")
	b.maxJobs = 2
	release := make(chan struct{})
	b.onFed = func(nix.StorePath) { <-release }
	l := newLab(t, b)
	l.scheduling("feed_ahead: false")
	alice, bob := l.client("alice"), l.client("bob")
	input, own := bigFile("input"), newLabFile(labPath("own"), "x")
	if err := alice.upload(t.Context(), input, own); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	build := func(c *labClient, log nix.Logger, name string, inputs ...nix.StorePath) {
		result, err := c.build(t.Context(), log, name, inputs...)
		if err == nil && !result.Status.Success() {
			err = errors.New(result.ErrorMsg)
		}
		done <- err
	}
	go build(alice, nix.Discard, "one", input.info.Path)
	eventually(t, "the first sends it", func() bool { return b.uploads() == 1 })
	var log lines
	go build(bob, &log, "two", input.info.Path, own.info.Path)
	eventually(t, "the second sends the other one", func() bool { return b.uploads() == 2 })
	close(release)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	sent := b.sent()
	slices.Sort(sent)
	if !slices.Equal(sent, []string{"input", "own"}) {
		t.Errorf("the builder was sent %q", sent)
	}
	if !strings.Contains(log.String(), "waiting for 1 paths") {
		t.Errorf("the second was told:\n%s", &log)
	}
}

// Guards against bytes that go where the policy, or prudence, does not want them
// before a build does.
func TestNotEverythingIsFedAhead(t *testing.T) {
	for name, c := range map[string]struct {
		builder func(*labBuilder)
		lab     func(*lab)
	}{
		"off":            {lab: func(l *lab) { l.scheduling("feed_ahead: false") }},
		"over the limit": {lab: func(l *lab) { l.scheduling("feed_ahead_limit: 4MiB") }},
		"an old builder": {builder: func(b *labBuilder) { b.nix = "2.33.1" }},
		"must match":     {builder: func(b *labBuilder) { b.strict = true }},
		"shared": {lab: func(l *lab) {
			builders := l.proxy.policy.Current().Builders
			builders[0].Domains = append(builders[0].Domains, "other")
		}},
		"down":    {lab: func(l *lab) { l.proxy.router.SetUp("b1", false, "kept out") }},
		"drained": {lab: func(l *lab) { l.proxy.router.Drain("b1", "") }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newLabBuilder("b1")
			if c.builder != nil {
				c.builder(b)
			}
			l := newLab(t, b)
			if c.lab != nil {
				c.lab(l)
			}
			alice := l.client("alice")
			input := bigFile("input")
			if err := alice.upload(t.Context(), input); err != nil {
				t.Fatal(err)
			}
			alice.hangUp() // with which a feed would end
			<-alice.served
			alice.served <- nil
			l.proxy.builds.fetches.Wait()
			if n := b.came(input.info.Path); n > 0 {
				t.Errorf("%d bytes came", n)
			}
			if records := l.log.records(t, "fed ahead"); len(records) > 0 {
				t.Errorf("%v", records)
			}
		})
	}
}

// Guards against guesses that are made again and again and are always wrong.
func TestGuessesLearn(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	l := newLab(t, b1, b2)
	f := l.proxy.builds.feeds
	here, there := feedClient{"alice", netip.MustParseAddr("192.0.2.1")}, feedClient{"alice", netip.MustParseAddr("192.0.2.2")}
	want := func(what string, client feedClient, want string) {
		t.Helper()
		if got, _ := f.guess("default", client); got.Name != want {
			t.Errorf("%s: guessed %q, want %q", what, got.Name, want)
		}
	}
	want("of two", here, "")
	l.proxy.router.SetUp("b2", false, "kept out")
	want("of the only one", here, "b1")
	l.proxy.router.SetUp("b2", true, "")
	f.ran(here, "b2", false)
	want("after a build", here, "b2")
	want("another machine", there, "")
	f.ran(here, "b1", true)
	want("after a wrong guess", here, "")
	f.ran(here, "b2", false)
	want("after another one elsewhere", here, "")
	f.ran(here, "b2", false)
	want("after two on one builder", here, "b2")
	l.proxy.router.SetUp("b2", false, "kept out")
	want("when it is down", here, "b1")
	f.copied(here)
	want("after uploads without a build", here, "")
	f.ran(here, "b1", false)
	want("after the next build", here, "b1")
	if _, ok := f.guess("other", here); ok {
		t.Error("a domain without builders has a guess")
	}
}

// Guards against a builder whose line is filled with bytes that nobody has asked for.
func TestFeedsOfABuilderAreBounded(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	f := l.proxy.builds.feeds
	limit := f.policy.Current().Scheduling.FeedAheadLimit
	for range maxFeedLines {
		if !f.reserve("b1", 1, limit/maxFeedLines) {
			t.Fatal("no place")
		}
	}
	if f.reserve("b1", 1, 0) || f.reserve("b1", 0, 1) || f.reserve("b1", 0, 1<<62) {
		t.Error("more than the bounds")
	}
	if !f.reserve("b2", 1, limit) {
		t.Error("another builder has no place")
	}
	for range maxFeedLines {
		f.giveBack("b1", 1, limit/maxFeedLines)
	}
	f.giveBack("b2", 1, limit)
	if len(f.loads) != 0 {
		t.Errorf("left are %v", f.loads)
	}
}

// Guards against other bytes on a builder that must have ours: only what follows from
// its content goes there ahead.
func TestWhatMustMatchIsSafeByItsContent(t *testing.T) {
	claimed := newLabFile(labPath("x"), "x").info
	addressed := claimed.Clone()
	addressed.CA = nix.ContentAddress{Method: nix.NAR, Hash: claimed.NarHash}
	strict, open := &policy.Builder{Content: policy.ContentMatch}, &policy.Builder{Content: policy.ContentAccept}
	for _, c := range []struct {
		b    *policy.Builder
		info *nix.PathInfo
		want bool
	}{{strict, claimed, false}, {strict, addressed, true}, {open, claimed, true}} {
		if safe(c.b, c.info) != c.want {
			t.Errorf("%+v on %v: %v", c.info.CA, c.b.Content, !c.want)
		}
	}
}

// Guards against a client that fills a builder with what it only brings to be kept.
func TestWhoOnlyCopiesIsNotFedAgain(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	for i, want := range []int{1, 1} {
		input := bigFile([]string{"first", "second"}[i])
		alice := l.client("alice")
		if err := alice.upload(t.Context(), input); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			eventually(t, "it is fed", func() bool { return len(b.sent()) == 1 })
		}
		alice.hangUp()
		<-alice.served
		alice.served <- nil
		l.proxy.builds.fetches.Wait()
		if got := b.sent(); len(got) != want {
			t.Errorf("upload %d: the builder was sent %q", i, got)
		}
	}
	alice := l.client("alice")
	result, err := alice.build(t.Context(), nix.Discard, "hello")
	mustSucceed(t, result, err)
	third := bigFile("third")
	if err := alice.upload(t.Context(), third); err != nil {
		t.Fatal(err)
	}
	eventually(t, "who builds is fed again", func() bool { return slices.Contains(b.sent(), "third") })
}
