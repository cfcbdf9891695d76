package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nixbastion/internal/nix"
)

// buildsOf are the builds that the admin is told of.
func (l *lab) buildsOf(options ...string) (b buildsAnswer) {
	l.Helper()
	if err := json.Unmarshal([]byte(l.admin(append([]string{"builds", "--json"}, options...)...)), &b); err != nil {
		l.Fatal(err)
	}
	return b
}

// underWay is the one build of a name that is under way, once there is one that ok
// accepts.
func (l *lab) underWay(name string, ok func(r buildRecord) bool) (r buildRecord) {
	l.Helper()
	eventually(l, name+" is under way", func() bool {
		all := l.buildsOf().UnderWay
		i := slices.IndexFunc(all, func(r *buildRecord) bool { return r.Name == name && ok(*r) })
		if i >= 0 {
			r = *all[i]
		}
		return i >= 0
	})
	return r
}

func isRunning(r buildRecord) bool { return r.Phase == "build" }

// ended is the latest build of a name that has ended and is kept.
func (l *lab) ended(name string) (r buildRecord) {
	l.Helper()
	eventually(l, name+" has ended", func() bool {
		all := l.buildsOf().Ended
		i := slices.IndexFunc(all, func(r *buildRecord) bool { return r.Name == name && r.LogBytes > 0 })
		if i >= 0 {
			r = *all[i]
		}
		return i >= 0
	})
	return r
}

// Guards against builds that nobody can see: while they wait, while they run for
// several clients, and when they have ended, also after a restart.
func TestEveryBuildIsSeen(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	b.build = held(release)
	l := newLab(t, b)
	alice := l.begin("alice", "shared")
	r := l.underWay("shared", isRunning)
	bob := l.begin("bob", "shared")
	r = l.underWay("shared", func(r buildRecord) bool { return r.Clients == 2 })
	if r.State != "running" || r.Builder != "b1" || r.Began == nil || r.Result != "" || !slices.Equal(r.Principals, []string{"alice", "bob"}) || !recordName.MatchString(r.ID+".json") {
		t.Errorf("the running build is %+v", r)
	}
	waits := l.begin("bob", "next")
	w := l.underWay("next", func(r buildRecord) bool { return r.State == "waiting" })
	var q queueAnswer
	eventually(t, "it is in the queue", func() bool {
		if err := json.Unmarshal([]byte(l.admin("queue", "--json")), &q); err != nil {
			t.Fatal(err)
		}
		return q.QueueLength == 1
	})
	if got := q.Queue[0]; got.Build != w.ID || got.Principal != "bob" || got.Position != 1 || got.ExpectedBuilder != "b1" || !strings.Contains(got.Reason, "b1 1/1 busy") {
		t.Errorf("the queue has %+v, want build %s", got, w.ID)
	}
	if text := l.admin("queue"); !strings.Contains(text, w.ID+"  next  x86_64-linux  bob") || !strings.Contains(text, "on b1 ") {
		t.Errorf("the queue as text:\n%s", text)
	}
	close(release)
	for _, end := range []chan error{alice, bob, waits} {
		if err := <-end; err != nil {
			t.Error(err)
		}
	}
	done := l.ended("shared")
	if l.ended("next"); done.ID != r.ID || done.Result != "built" || done.Status != nix.StatusBuilt.String() || done.Builder != "b1" || done.Clients != 0 || len(done.Attempts) != 0 || len(done.Principals) != 2 {
		t.Errorf("it ended as %+v", done)
	}
	again, err := openLedger(l.proxy.builds.ledger.files.dir, nobody, l.proxy.policy, newInflight(), l.proxy.log)
	if err != nil {
		t.Fatal(err)
	}
	_, ended := again.all(&asker{})
	if !slices.ContainsFunc(ended, func(e *buildRecord) bool {
		return e.ID == r.ID && e.LogBytes == done.LogBytes && e.Ended.Equal(*done.Ended)
	}) || len(ended) != 2 {
		t.Errorf("after a restart there is %+v", ended)
	}
}

// Guards against a history without what went wrong before it went well.
func TestAttemptsThatFailedAreTold(t *testing.T) {
	bad, good := newLabBuilder("b1"), newLabBuilder("b2")
	bad.build = func(context.Context, *labBuilder, nix.Logger, *nix.BasicDerivation) (*nix.BuildResult, error) {
		return nix.Failure(nix.StatusMiscFailure, "error: writing to file: No space left on device"), nil
	}
	l := newLab(t, bad, good)
	l.proxy.router.SetUp("b2", false, "not yet")
	end := l.begin("alice", "hello")
	eventually(t, "b1 has failed", func() bool {
		return len(l.buildsOf().UnderWay) == 1 && len(l.buildsOf().UnderWay[0].Attempts) == 1 || len(l.buildsOf().Ended) == 1
	})
	l.proxy.router.SetUp("b2", true, "")
	<-end
	r := l.ended("hello")
	if len(r.Attempts) == 0 || r.Attempts[0].Builder != "b1" || !strings.Contains(r.Attempts[0].Reason, "No space left") {
		t.Errorf("the attempts are %+v", r)
	}
	if b := l.buildsOf("--builder", "b1"); b.EndedCount != 1 {
		t.Errorf("of b1 there is %+v", b)
	}
}

// Guards against a kill that ends the build of one client alone, that is tried again
// elsewhere, that leaves the build running, or that does not say who did it.
func TestKilledBuildEndsForAllItsClients(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	release := make(chan struct{})
	b1.build, b2.build = held(release), held(release)
	l := newLab(t, b1, b2)
	alice := l.begin("alice", "shared")
	l.underWay("shared", isRunning)
	bob := l.begin("bob", "shared")
	r := l.underWay("shared", func(r buildRecord) bool { return r.Clients == 2 })
	if got, want := l.change("kill", r.ID, "blocks the release"), fmt.Sprintf("build %s (shared) is killed, which ran on '%s'; 2 clients were told\n", r.ID, r.Builder); got != want {
		t.Errorf("the admin reads %q, want %q", got, want)
	}
	sentence := fmt.Sprintf("build of '%s' was killed by root: blocks the release", r.Derivation)
	for _, end := range []chan error{alice, bob} {
		if err := <-end; err == nil || err.Error() != sentence {
			t.Errorf("a client reads %v, want %q", err, sentence)
		}
	}
	eventually(t, "the build has ended there", func() bool { return b1.endedBuilds()+b2.endedBuilds() == 1 })
	if n := len(b1.built()) + len(b2.built()); n != 1 {
		t.Errorf("it was tried %d times", n)
	}
	if got := l.ended("shared"); got.Result != "killed" || got.Error != sentence || !got.failed() || len(got.Attempts) != 0 {
		t.Errorf("it ended as %+v", got)
	}
	if text := l.admin("log", r.ID); !strings.HasSuffix(text, sentence+"\n") {
		t.Errorf("the log ends with %q", text)
	}
	if _, err := l.proxy.ChangeAdmin(t.Context(), "root", []string{"kill", r.ID}); err == nil || !strings.Contains(err.Error(), "has ended already") {
		t.Errorf("killed once more: %v", err)
	}
	again := l.begin("alice", "shared")
	l.underWay("shared", isRunning)
	close(release)
	if err := <-again; err != nil {
		t.Errorf("asked for once more: %v", err)
	}
}

// Guards against a build that cannot be ended before it runs.
func TestQueuedBuildIsKilled(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	b.build = held(release)
	l := newLab(t, b)
	first := l.begin("alice", "first")
	l.underWay("first", isRunning)
	queued := l.begin("bob", "queued")
	r := l.underWay("queued", func(r buildRecord) bool { return r.State == "waiting" })
	if got := l.change("kill", r.Derivation); got != "build "+r.ID+" (queued) is killed, which waited; 1 client was told\n" {
		t.Errorf("the admin reads %q", got)
	}
	if err := <-queued; err == nil || !strings.HasSuffix(err.Error(), "was killed by root") {
		t.Errorf("the client reads %v", err)
	}
	if n := len(l.proxy.router.Status().Queue); n != 0 {
		t.Errorf("%d builds wait", n)
	}
	close(release)
	if err := <-first; err != nil || !slices.Equal(b.built(), []string{"first"}) {
		t.Errorf("the other build: %v; built %q", err, b.built())
	}
}

// Guards against a reason that writes on clients' terminals.
func TestKillTakesAReasonForPeople(t *testing.T) {
	l := newLab(t)
	for _, reason := range []string{"a\x1b[2J", "a\nb\x07", "\xff", strings.Repeat("x", maxKillReason+1)} {
		if _, err := l.proxy.ChangeAdmin(t.Context(), "root", []string{"kill", "x", reason}); err == nil || !strings.Contains(err.Error(), "the reason is for people") {
			t.Errorf("%q: %v", reason, err)
		}
	}
}

// nasty says lines that want to do something to a terminal.
func nasty(log nix.Logger) {
	log.Log(nix.LogMessage{Kind: nix.LogStartActivity, ID: 1, Type: nix.ActivityBuild, Text: "building",
		Fields: []nix.LogField{nix.TextField("x"), nix.TextField(""), nix.IntField(1), nix.IntField(1)}})
	for _, line := range []string{"\x1b[31mred\x1b[0m", "\x1b]0;title\acc\r", "bell\a\u009b2J", "\u202eback", "\xff\xfe", "tab\tkept"} {
		log.Log(nix.LogMessage{Kind: nix.LogResult, ID: 1, Type: nix.ResultBuildLogLine, Fields: []nix.LogField{nix.TextField(line)}})
	}
	log.Log(nix.LogMessage{Kind: nix.LogStopActivity, ID: 1})
}

// Guards against a failure of which nobody can read the reason, since the client who
// saw it has left, and against what a build prints that does something to the
// terminal of the admin.
func TestLogOfAFailedBuildIsThereWhenItsClientHasLeft(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = func(_ context.Context, _ *labBuilder, log nix.Logger, _ *nix.BasicDerivation) (*nix.BuildResult, error) {
		nasty(log)
		return nix.Failure(nix.StatusPermanentFailure, "builder for 'x' \x1b[31mfailed\x1b[0m with exit code 1"), nil
	}
	l := newLab(t, b)
	c := l.client("alice")
	if result, err := c.build(t.Context(), nix.Discard, "hello"); err != nil || result.Status.Success() {
		t.Fatalf("build: %+v, %v", result, err)
	}
	c.hangUp()
	r := l.ended("hello")
	if r.Result != "failed" || r.Status != nix.StatusPermanentFailure.String() || r.Error != "builder for 'x' failed with exit code 1" {
		t.Errorf("it ended as %+v", r)
	}
	text := l.admin("log", "hello")
	for _, line := range []string{"red", "cc", "bell?", "?back", "?", "tab\tkept"} {
		if !slices.Contains(strings.Split(text, "\n"), line) {
			t.Errorf("no line %q in %q", line, text)
		}
	}
	if strings.ContainsAny(text, "\x1b\a\r\u009b\u202e") || !regexp.MustCompile(`\nnixbastion: failed on b1 after \S+: builder for 'x' failed with exit code 1\n$`).MatchString(text) {
		t.Errorf("the log is %q", text)
	}
	var objects []logObject
	for dec := json.NewDecoder(strings.NewReader(l.admin("log", r.ID, "--json"))); dec.More(); {
		var o logObject
		if err := dec.Decode(&o); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	if last := objects[len(objects)-1]; last.Build == nil || last.Build.ID != r.ID || len(objects) != strings.Count(text, "\n")+1 {
		t.Errorf("as JSON: %+v", objects)
	}
}

// Guards against an admin who waits for the end before he sees anything, and against
// a look that does not come to an end.
func TestLogOfARunningBuildIsFollowed(t *testing.T) {
	b := newLabBuilder("b1")
	step := make(chan string)
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		for line := range step {
			nix.Line(log, line)
		}
		return makeOutputs(ctx, b, log, drv)
	}
	l := newLab(t, b)
	end := l.begin("alice", "hello")
	r := l.underWay("hello", isRunning)
	step <- "first line"
	eventually(t, "a look has the first line, and ends", func() bool { return strings.HasSuffix(l.admin("log", r.ID), "first line\n") })
	from, to := io.Pipe()
	var following sync.WaitGroup
	following.Go(func() {
		to.CloseWithError(l.proxy.AskAdmin(t.Context(), to, []string{"log", r.ID, "--follow"}, Look{}))
	})
	var text strings.Builder
	read := func(want string) {
		t.Helper()
		piece := make([]byte, 4096)
		for !strings.Contains(text.String(), want) {
			n, err := from.Read(piece)
			text.Write(piece[:n])
			if err != nil {
				t.Fatalf("%v after %q", err, &text)
			}
		}
	}
	read("first line\n")
	step <- "second line"
	read("second line\n")
	step <- "last line"
	close(step) // nobody reads the follower's pipe now
	if err := <-end; err != nil {
		t.Error(err)
	}
	l.ended("hello")
	read("nixbastion: built on b1")
	go io.Copy(&text, from)
	following.Wait()
}

// Guards against a follower that stays when whoever wanted it has left.
func TestFollowedLogEndsWithItsReader(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	b.build = held(release)
	l := newLab(t, b)
	end := l.begin("alice", "hello")
	r := l.underWay("hello", isRunning)
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if err := l.proxy.AskAdmin(ctx, io.Discard, []string{"log", r.ID, "--follow"}, Look{}); err != nil {
		t.Error(err)
	}
	ctx, stop := context.WithCancelCause(t.Context())
	stop(ErrStops)
	if err := l.proxy.AskAdmin(ctx, io.Discard, []string{"log", r.ID, "--follow"}, Look{}); err != ErrStops {
		t.Errorf("when the proxy stops: %v", err)
	}
	close(release)
	<-end
}

// Guards against a disk that fills with logs, and against memory that grows with each
// build.
func TestKeptBuildsAreBounded(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		nix.Line(log, strings.Repeat("x", 1000))
		return makeOutputs(ctx, b, log, drv)
	}
	l := newLabOf(t, labPolicy{extra: "limits: {build_history: 3, build_logs: 3000B}\n"}, b)
	for i := range 6 {
		if err := <-l.begin("alice", fmt.Sprint("number-", i)); err != nil {
			t.Fatal(err)
		}
		l.ended(fmt.Sprint("number-", i))
	}
	ended := l.buildsOf("--limit", "0").Ended
	if len(ended) != 3 || ended[0].Name != "number-5" || ended[2].Name != "number-3" || ended[1].LogBytes == 0 || ended[2].LogBytes != 0 {
		t.Errorf("kept are %+v", ended)
	}
	files, err := os.ReadDir(l.proxy.builds.ledger.files.dir)
	if err != nil || len(files) != 5 {
		t.Errorf("the files are %v, %v", files, err)
	}
	if _, err := l.proxy.answer(t.Context(), &asker{}, "log", "number-3"); err == nil || !strings.Contains(err.Error(), "limits.build_logs") {
		t.Errorf("the log that is gone: %v", err)
	}
	if text := l.admin("log", "number-5"); !strings.Contains(text, strings.Repeat("x", 1000)) {
		t.Errorf("the log that is kept: %q", text)
	}
}

func nobody() bool { return false }

// Guards against what a crash, an admin's editor or another process leaves there.
func TestKeptBuildsAreReadWithCare(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	if err := <-l.begin("alice", "hello"); err != nil {
		t.Fatal(err)
	}
	r := l.ended("hello")
	files := l.proxy.builds.ledger.files
	whole, err := os.ReadFile(files.path(r.ID, ".json"))
	if err != nil {
		t.Fatal(err)
	}
	l.proxy.builds.ledger.looking, l.proxy.builds.ledger.others = true, func() bool { return true }
	for name, text := range map[string]string{
		"aaaaaa.json": "{", "bbbbbb.json": string(whole), "cccccc.json": `{"id": "cccccc"}`, "../x.json": "{}",
		"aaaaaa.log": "of nobody", "dddddd.log": "left", "eeeeee.json.tmp": "left", "ffffff.json": strings.ReplaceAll(string(whole), r.ID, "ffffff"),
	} {
		if err := os.WriteFile(filepath.Join(files.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if b := l.buildsOf(); b.EndedCount != 2 { // the one of another process came meanwhile
		t.Errorf("there is %+v", b)
	}
	again, err := openLedger(files.dir, nobody, l.proxy.policy, newInflight(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, ended := again.all(&asker{}); len(ended) != 2 {
		t.Errorf("after a restart there is %+v", ended)
	}
	for _, name := range []string{"aaaaaa.json", "aaaaaa.log", "bbbbbb.json", "cccccc.json", "dddddd.log", "eeeeee.json.tmp"} {
		if _, err := os.Stat(filepath.Join(files.dir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

// Guards against an upgrade that takes away what the old process is about to write, and
// against builds that end there and are never seen, or looked for for ever.
func TestTheProcessBeforeKeepsItsBuilds(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	write := func(names ...string) {
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("text"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("aaaaaa.log.tmp", "bbbbbb.log")
	there := true
	next, err := openLedger(dir, func() bool { return there }, l.proxy.policy, newInflight(), l.proxy.log)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"aaaaaa.log.tmp", "bbbbbb.log"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("of the old process: %v", err)
		}
	}
	end := func(id string) {
		now := time.Now()
		r := &buildRecord{ID: id, Name: "old", Asked: now, Ended: &now, Result: "built"}
		if err := next.files.create(id, ".json", func(w io.Writer) error { return json.NewEncoder(w).Encode(r) }); err != nil {
			t.Fatal(err)
		}
	}
	known := func() int {
		_, ended := next.all(&asker{})
		return len(ended)
	}
	end("bbbbbb")
	if n := known(); n != 1 {
		t.Errorf("%d builds are known while the old process runs", n)
	}
	end("cccccc")
	there = false
	if n := known(); n != 2 {
		t.Errorf("%d builds are known when it has ended", n)
	}
	end("dddddd")
	if n := known(); n != 2 {
		t.Errorf("files of nobody are looked for: %d builds", n)
	}
}

// Guards against an answer that changes while it is written, since records are shared.
func TestRecordsInAnAnswerStayAsTheyAre(t *testing.T) {
	l := newLab(t).proxy.builds.ledger
	now := time.Now()
	l.ended = []*buildRecord{{ID: "aaaaaa", Ended: &now, LogBytes: 10}}
	_, before := l.all(&asker{})
	l.policy.Current().Limits.BuildLogs = 0
	if _, after := l.all(&asker{}); before[0].LogBytes != 10 || after[0].LogBytes != 0 {
		t.Errorf("the answer has %d bytes now, the next one %d", before[0].LogBytes, after[0].LogBytes)
	}
}

// Guards against a word that ends another build than was meant.
func TestBuildsAreNamedWithoutDoubt(t *testing.T) {
	l := &ledger{open: map[string]*ledgerEntry{}}
	live := newLab(t).proxy
	l.policy, l.inflight, l.files.dir = live.policy, newInflight(), t.TempDir()
	ago := func(d time.Duration) *time.Time { at := time.Now().Add(-d); return &at }
	record := func(id, hash, name, domain string, age time.Duration) *buildRecord {
		return &buildRecord{ID: id, Name: name, Derivation: nix.StoreDir + "/" + hash + "-" + name + ".drv", Domain: domain,
			Principals: []string{"alice"}, Asked: *ago(age + 1), Ended: ago(age), Result: "failed"}
	}
	l.ended = []*buildRecord{
		record("aaaaa1", "0abc", "one", "default", 4*time.Hour),
		record("aaaaa2", "0abc", "one", "default", 3*time.Hour),
		record("bbbbbb", "1abc", "two", "default", 2*time.Hour),
		record("cccccc", "2abc", "one", "other", time.Hour),
	}
	for text, want := range map[string]string{
		"aaaaa1": "aaaaa1", "aaaaa2": "aaaaa2", "0abc": "aaaaa2", "0": "aaaaa2", "two": "bbbbbb", "two.drv": "bbbbbb",
		"1abc-two.drv": "bbbbbb", nix.StoreDir + "/1abc-two.drv": "bbbbbb", "b": "bbbbbb", "aaaaa": "aaaaa2",
	} {
		if r, err := l.find(&asker{}, text, false); err != nil || r.ID != want {
			t.Errorf("%s means %s, %v; want %s", text, r.ID, err, want)
		}
	}
	if _, err := l.find(&asker{}, "one", false); err == nil || !strings.Contains(err.Error(), `"one" may be any of 2 builds:`) ||
		!strings.Contains(err.Error(), "\n  cccccc  one, failed for alice\n  aaaaa2  one, failed for alice") {
		t.Errorf("a name that two have: %v", err)
	}
	for _, text := range []string{"", "x", "abc", "on", "/nix/store/"} {
		if r, err := l.find(&asker{}, text, false); err == nil {
			t.Errorf("%q means %+v", text, r)
		}
	}
	if _, err := l.find(&asker{}, "two", true); err == nil || !strings.Contains(err.Error(), "has ended already") {
		t.Errorf("to be killed: %v", err)
	}
}
