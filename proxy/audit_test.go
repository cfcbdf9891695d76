package proxy

import (
	"context"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/audit"
	"nixbastion/internal/nix"
)

// auditBook is an Auditor in memory.
type auditBook struct {
	mu     sync.Mutex // guards what follows
	events []audit.Event
	fault  error
	// commit, if set, is called with each event that is committed, and may wait.
	commit func(audit.Event) error
}

func (l *auditBook) Record(e audit.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

func (l *auditBook) Commit(e audit.Event) error {
	l.mu.Lock()
	commit, fault := l.commit, l.fault
	l.mu.Unlock()
	if commit != nil {
		if err := commit(e); err != nil {
			return err
		}
	}
	l.Record(e)
	return fault
}

func (l *auditBook) Fault() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault
}

func (l *auditBook) Trouble() *audit.Fault {
	if err := l.Fault(); err != nil {
		return &audit.Fault{Since: time.Now().Add(-time.Minute), Err: err}
	}
	return nil
}

func (l *auditBook) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = err
}

func (l *auditBook) onCommit(f func(audit.Event) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commit = f
}

func (l *auditBook) of(kind audit.Kind) (found []audit.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// one is the only event of a kind.
func (l *auditBook) one(t testing.TB, kind audit.Kind) audit.Event {
	t.Helper()
	eventually(t, "an event "+string(kind), func() bool { return len(l.of(kind)) > 0 })
	found := l.of(kind)
	if len(found) != 1 {
		t.Fatalf("%d events %s: %+v", len(found), kind, found)
	}
	return found[0]
}

// audited has the events of a lab in which nobody has done anything yet kept.
func (l *lab) audited() *auditBook {
	book := &auditBook{}
	p := l.proxy
	p.audit, p.builds.audit, p.signing.audit, p.front.audit = book, book, book, book
	return book
}

// Guards against a record that does not say what was brought and built, where, by
// whom, from what.
func TestUploadsAndBuildsAreKept(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	book := l.audited()
	alice := l.client("alice")
	input := newLabFile(labPath("input"), "source")
	if err := alice.upload(t.Context(), input); err != nil {
		t.Fatal(err)
	}
	up := book.one(t, audit.Upload)
	if want := (audit.Event{Kind: audit.Upload, Principal: "alice", Domain: "default", Path: input.info.Path.String(),
		Size: input.info.NarSize, NarHash: input.info.NarHash.String(), Result: "added"}); !reflect.DeepEqual(up, want) {
		t.Errorf("upload: %+v", up)
	}
	result, err := alice.build(t.Context(), nix.Discard, "hello", input.info.Path)
	mustSucceed(t, result, err)
	built := book.one(t, audit.Build)
	out := newLabFile(labPath("hello"), "built by b1").info
	if built.Seconds <= 0 {
		t.Errorf("seconds: %v", built.Seconds)
	}
	built.Seconds = 0
	if want := (audit.Event{Kind: audit.Build, Principal: "alice", Domain: "default", Drv: labPath("hello.drv").String(), System: "x86_64-linux",
		Builder: "b1", Attempts: 1, Inputs: 1, InputBytes: input.info.NarSize, Result: "Built",
		Outputs: []audit.Output{{Name: "out", Path: out.Path.String(), NarHash: out.NarHash.String(), Size: out.NarSize}}}); !reflect.DeepEqual(built, want) {
		t.Errorf("build: %+v", built)
	}
	// What is here already is built nowhere, and asked for by somebody all the same.
	result, err = l.client("bob").build(t.Context(), nix.Discard, "hello", input.info.Path)
	mustSucceed(t, result, err)
	if known := book.of(audit.Build)[1]; known.Result != "AlreadyValid" || known.Principal != "bob" || known.Builder != "" || known.Outputs[0].NarHash != out.NarHash.String() {
		t.Errorf("known: %+v", known)
	}
}

// Guards against somebody who brings again what was here, and is kept as the one who
// has brought it.
func TestWhatWasHereIsNotAddedAgain(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	book := l.audited()
	for _, method := range []nix.ContentAddressMethod{{Method: nix.Text, Algo: nix.SHA256}, {Method: nix.Flat, Algo: nix.SHA1}} {
		for _, who := range []string{"alice", "bob"} {
			if _, err := l.client(who).AddToStore(t.Context(), nix.Discard, nix.AddToStoreRequest{Name: "text", Method: method}, strings.NewReader("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	var got []string
	for _, e := range book.of(audit.Upload) {
		got = append(got, e.Principal+" "+e.Result)
	}
	if want := []string{"alice added", "bob already valid", "alice added", "bob already valid"}; !slices.Equal(got, want) {
		t.Errorf("uploads %q, want %q", got, want)
	}
}

// Guards against a client who learns from a build that another one asked for, and of
// whom there is no trace since he left before its end, or it had no result.
func TestWhoAttendedABuildInVainIsKept(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	b.build = held(release)
	l := newLab(t, b)
	book := l.audited()
	alice := l.begin("alice", "shared")
	l.underWay("shared", isRunning)
	bob := l.client("bob")
	go bob.build(t.Context(), nix.Discard, "shared")
	l.underWay("shared", func(r buildRecord) bool { return r.Clients == 2 })
	bob.hangUp()
	e := book.one(t, audit.Build)
	if !e.Shared || e.Principal != "bob" || e.Result != canceled || e.Drv != labPath("shared.drv").String() || e.Reason == "" {
		t.Errorf("who left: %+v", e)
	}
	close(release)
	if err := <-alice; err != nil {
		t.Error(err)
	}
}

// Guards against a result that somebody has before it is kept: the one who asked, one
// who waits for the same build, and one for whom the outputs are here.
func TestNobodyHasAResultBeforeItIsKept(t *testing.T) {
	b := newLabBuilder("b1")
	started, release := make(chan struct{}), make(chan struct{})
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		close(started)
		<-release
		return makeOutputs(ctx, b, log, drv)
	}
	l := newLab(t, b)
	book := l.audited()
	asked, keep := make(chan audit.Event), make(chan struct{})
	book.onCommit(func(e audit.Event) error { asked <- e; <-keep; return nil })
	replies := make(chan string, 3)
	ask := func(principal string) {
		result, err := l.client(principal).build(t.Context(), nix.Discard, "hello")
		if err != nil || !result.Status.Success() {
			t.Errorf("%s: %+v, %v", principal, result, err)
		}
		replies <- principal
	}
	go ask("alice")
	<-started
	go ask("bob")
	eventually(t, "both wait", func() bool { return l.proxy.builds.waitersOfAll() == 2 })
	close(release)
	noReply := func() {
		t.Helper()
		select {
		case who := <-replies:
			t.Fatalf("%s has the result before it is kept", who)
		default:
		}
	}
	if e := <-asked; e.Principal != "alice" || e.Shared {
		t.Errorf("first: %+v", e)
	}
	noReply()
	keep <- struct{}{}
	if who := <-replies; who != "alice" {
		t.Errorf("%s has the first result", who)
	}
	if e := <-asked; e.Principal != "bob" || !e.Shared || e.Builder != "b1" || len(e.Outputs) != 1 {
		t.Errorf("second: %+v", e)
	}
	noReply()
	keep <- struct{}{}
	<-replies
	go ask("alice")
	<-asked
	noReply()
	keep <- struct{}{}
	<-replies
}

// waitersOfAll counts those who wait for builds.
func (b *builds) waitersOfAll() (n int) {
	b.inflight.mu.Lock()
	defer b.inflight.mu.Unlock()
	for _, running := range b.inflight.running {
		n += running.waiters
	}
	return n
}

// Guards against builds that leave no trace: those that fail, that no builder can do,
// that were tried in vain, and that nobody waited for.
func TestEveryEndOfABuildIsKept(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	var broken sync.Once
	building := make(chan struct{}, 1)
	work := func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		switch drv.Env[0].Value {
		case "fails":
			return nix.Failure(nix.StatusPermanentFailure, "builder failed with\nexit code 1"), nil
		case "moves":
			first := false
			broken.Do(func() { first = true })
			if first {
				b.cut()
				<-ctx.Done()
			}
		case "endless":
			building <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return makeOutputs(ctx, b, log, drv)
	}
	b1.build, b2.build = work, work
	l := newLab(t, b1, b2)
	book := l.audited()
	alice := l.client("alice")
	last := func() audit.Event { all := book.of(audit.Build); return all[len(all)-1] }
	if _, err := alice.build(t.Context(), nix.Discard, "fails"); err != nil {
		t.Fatal(err)
	}
	if e := last(); e.Result != "PermanentFailure" || !strings.Contains(e.Reason, "exit code 1") || e.Builder == "" || e.Attempts != 1 || len(e.Outputs) != 0 {
		t.Errorf("fails: %+v", e)
	}
	result, err := alice.build(t.Context(), nix.Discard, "moves")
	mustSucceed(t, result, err)
	if e := last(); e.Result != "Built" || e.Attempts != 2 {
		t.Errorf("moves: %+v", e)
	}
	path, drv := labDrv("elsewhere")
	drv.Platform = "riscv64-linux"
	if result, err := alice.BuildDerivation(t.Context(), nix.Discard, path, drv, nix.BuildNormal); err != nil || result.Status.Success() {
		t.Fatalf("%+v, %v", result, err)
	}
	if e := last(); e.Result != "MiscFailure" || e.System != "riscv64-linux" || e.Builder != "" || e.Attempts != 0 {
		t.Errorf("elsewhere: %+v", e)
	}
	gone := l.client("bob")
	go gone.build(t.Context(), nix.Discard, "endless")
	<-building
	gone.hangUp()
	eventually(t, "the end of a build that nobody waits for", func() bool { return last().Result == canceled })
	if e := last(); e.Principal != "bob" || e.Builder == "" || e.Reason != errNobodyWaits.Error() {
		t.Errorf("endless: %+v", e)
	}
}

// Guards against builds and uploads that could not be proven later, and against a
// proxy that answers nothing any more.
func TestWithoutRoomForEventsNothingIsBuilt(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	book := l.audited()
	alice := l.client("alice")
	result, err := alice.build(t.Context(), nix.Discard, "before")
	mustSucceed(t, result, err)
	book.fail(errors.New("write /var/lib/nixbastion/audit/audit.jsonl: no space left on device"))
	want := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "cannot write its audit log") || strings.Contains(err.Error(), "/var") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = alice.build(t.Context(), nix.Discard, "meanwhile")
	want("build", err)
	want("upload", alice.upload(t.Context(), newLabFile(labPath("input"), "x")))
	_, err = alice.AddToStore(t.Context(), nix.Discard, nix.AddToStoreRequest{Name: "text", Method: nix.ContentAddressMethod{Method: nix.Text, Algo: nix.SHA256}}, strings.NewReader("x"))
	want("text", err)
	for _, said := range []string{"Audit log: CANNOT BE WRITTEN since ", "(1m0s): builds, uploads and jumps are refused", "\n  write /var/lib/nixbastion/audit/audit.jsonl: no space left on device\n"} {
		if got := l.admin("status"); !strings.Contains(got, said) {
			t.Errorf("the admin does not read %q in\n%s", said, got)
		}
	}
	if s := l.proxy.state(); !s.AuditFailing {
		t.Error("the metrics tell nothing")
	}
	if text, err := l.client("reader").read(t.Context(), labPath("before")); text != "built by b1" || err != nil {
		t.Errorf("reading: %q, %v", text, err)
	}
	book.fail(nil)
	result, err = alice.build(t.Context(), nix.Discard, "afterwards")
	mustSucceed(t, result, err)
	// What was built and cannot be kept is no success.
	book.onCommit(func(audit.Event) error { return errors.New("no space left") })
	result, err = alice.build(t.Context(), nix.Discard, "late")
	if err != nil || result.Status != nix.StatusTransientFailure {
		t.Fatalf("late: %+v, %v", result, err)
	}
	want("late", errors.New(result.ErrorMsg))
	_, err = alice.build(t.Context(), nix.Discard, "before")
	want("known", err)
	if got := b.built(); !slices.Equal(got, []string{"before", "afterwards", "late"}) {
		t.Errorf("built: %q", got)
	}
}

// lastUpload is a book that is full behind the first upload.
type lastUpload struct{ *auditBook }

func (l lastUpload) Record(e audit.Event) {
	l.auditBook.Record(e)
	if e.Kind == audit.Upload {
		l.fail(errors.New("no space left on device"))
	}
}

// Guards against a client that fills the disk by an upload and goes on with it unseen.
func TestAnUploadEndsWhereEventsHaveNoRoom(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	l.proxy.builds.audit = lastUpload{l.audited()}
	alice := l.client("alice")
	one, two := newLabFile(labPath("one"), "1"), newLabFile(labPath("two"), "2")
	if err := alice.upload(t.Context(), one, two); err == nil || !strings.Contains(err.Error(), "cannot write its audit log") {
		t.Errorf("upload: %v", err)
	}
	valid, err := l.client("reader").QueryValidPaths(t.Context(), []nix.StorePath{one.info.Path, two.info.Path}, false)
	if err != nil || !slices.Equal(valid, []nix.StorePath{one.info.Path}) {
		t.Errorf("valid: %q, %v", valid, err)
	}
}

// Guards against refusals that nobody can look up.
func TestRefusedOperationsAreKept(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	book := l.audited()
	reader := l.client("reader")
	if _, err := reader.build(t.Context(), nix.Discard, "hello"); err == nil {
		t.Error("a reader may build")
	}
	e := book.one(t, audit.Refused)
	if e.Principal != "reader" || e.Command != "build" || e.Path != labPath("hello.drv").String() || !strings.Contains(e.Reason, "may not build") {
		t.Errorf("build: %+v", e)
	}
	if err := l.client("alice").uploadWith(t.Context(), nix.AddOptions{}, newLabFile(labPath("unsigned"), "x")); err == nil {
		t.Error("an upload without signature")
	}
	if e := book.of(audit.Refused)[1]; e.Principal != "alice" || e.Command != "upload" || !strings.Contains(e.Reason, "lacks a signature") {
		t.Errorf("upload: %+v", e)
	}
}

// Guards against signatures that nobody can account for, and against a change of keys
// that fills the log.
func TestSignaturesAreKept(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	book := l.audited()
	alice := l.client("alice")
	for _, name := range []string{"one", "two"} {
		result, err := alice.build(t.Context(), nix.Discard, name)
		mustSucceed(t, result, err)
	}
	l.signWith("{name: default, signing_keys: [KEY(home-1)]}, {name: other}")
	pass := book.one(t, audit.Resign)
	if pass.Domain != "default" || pass.Count != 2 || !slices.Equal(pass.SigningKeys, []string{"home-1"}) || pass.Result != "done" {
		t.Errorf("pass: %+v", pass)
	}
	if signed := book.of(audit.Sign); len(signed) != 0 {
		t.Errorf("signed by the pass: %+v", signed)
	}
	result, err := alice.build(t.Context(), nix.Discard, "three")
	mustSucceed(t, result, err)
	out := newLabFile(labPath("three"), "built by b1").info
	if e := book.one(t, audit.Sign); e.Path != out.Path.String() || e.NarHash != out.NarHash.String() || e.Domain != "default" || !slices.Equal(e.SigningKeys, []string{"home-1"}) {
		t.Errorf("sign: %+v", e)
	}
}

// Guards against a client who shows a path to other domains, by the signature of a key
// that the policy trusts, and leaves no trace.
func TestSignaturesThatClientsAddAreKept(t *testing.T) {
	l := newLab(t)
	book := l.audited()
	alice := l.client("alice")
	f := newLabFile(labPath("input"), "x")
	if err := alice.upload(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if err := alice.AddSignatures(t.Context(), f.info.Path, []string{labKey.Sign(f.info.Fingerprint()).String()}); err != nil {
		t.Fatal(err)
	}
	if e := book.one(t, audit.Sign); e.Principal != "alice" || e.Domain != "default" || e.Path != f.info.Path.String() ||
		e.NarHash != f.info.NarHash.String() || !slices.Equal(e.SigningKeys, []string{labKey.Name()}) {
		t.Errorf("added: %+v", e)
	}
}

// Guards against outputs and builders that were not what they should be, and a policy
// that changed, without a trace.
func TestWhatIsNotAsItShouldBeIsKept(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = func(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		f := newLabFile(drv.Outputs[0].Path, "announced, of some length")
		f.nar = newLabFile(drv.Outputs[0].Path, "delivered").nar
		b.put(f)
		return &nix.BuildResult{Status: nix.StatusBuilt}, nil
	}
	l := newLab(t, b)
	book := l.audited()
	if _, err := l.client("alice").build(t.Context(), nix.Discard, "hello"); err != nil {
		t.Fatal(err)
	}
	if e := book.one(t, audit.OutputRefused); e.Builder != "b1" || e.Path != labPath("hello").String() || e.Principal != "alice" || e.Reason == "" {
		t.Errorf("output: %+v", e)
	}
	if _, err := l.proxy.Reload("test"); err != nil {
		t.Fatal(err)
	}
	pol := l.proxy.policy.Current()
	if e := book.one(t, audit.Policy); e.Result != "loaded" || e.File != l.file || e.FileHash != pol.FileHash || len(e.FileHash) != 64 {
		t.Errorf("policy: %+v", e)
	}
	text, err := os.ReadFile(l.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.file, append(text, "builder: x\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.proxy.Reload("test"); err == nil {
		t.Error("a policy with a mistake was loaded")
	}
	if e := book.of(audit.Policy)[1]; e.Result != "refused" || len(e.FileHash) != 64 || e.FileHash == pol.FileHash || !strings.Contains(e.Reason, "unknown key") {
		t.Errorf("policy: %+v", e)
	}
	stranger := strings.ReplaceAll(string(text), authorizedLine(b.hostKey), authorizedLine(testKey("another host")))
	if err := os.WriteFile(l.file, []byte(stranger), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.proxy.Reload("test"); err != nil {
		t.Fatal(err)
	}
	if e := book.one(t, audit.BuilderRefused); e.Builder != "b1" || !strings.Contains(e.Reason, "key") {
		t.Errorf("builder: %+v", e)
	}
}

// Guards against logins and refusals that do not say who it was.
func TestLoginsAndRefusalsAreKept(t *testing.T) {
	book := &auditBook{}
	inMemory(t, func(o *FrontOptions) { o.Audit = book }, func(s *site) {
		s.works(s.login("root\n\x1b[2J", testKey("alice")))
		in := book.one(t, audit.Login)
		if in.Principal != "alice" || in.User != "root\n\x1b[2J" || in.Key != fingerprint(testKey("alice")) || in.Address != "10.1.0.1" || in.Port == 0 || in.Client == "" {
			s.Errorf("login: %+v", in)
		}
		if _, err := s.dial("nix", testKey("stranger")); err == nil {
			s.Error("a stranger got in")
		}
		s.settle(nil)
		out := book.one(t, audit.LoginRefused)
		if out.User != "nix" || !slices.Equal(out.Keys, []string{fingerprint(testKey("stranger"))}) || out.Address != "10.1.0.1" ||
			!strings.Contains(out.Reason, errStranger.Error()) || out.Principal != "" || out.Key != "" {
			s.Errorf("refused: %+v", out)
		}
		client := s.login("nix", testKey("root"))
		s.roster.remove(testKey("root"))
		if _, err := client.NewSession(); err == nil {
			s.Error("a removed key has a session")
		}
		gone := book.one(t, audit.Refused)
		if gone.Principal != "root" || gone.Command != "session" || gone.Reason != errStranger.Error() {
			s.Errorf("session: %+v", gone)
		}
	})
}

// Guards against jumps that leave no trace, or are made while none can be left.
func TestJumpsAreKept(t *testing.T) {
	book := &auditBook{}
	f := &far{}
	jump := func(ctx context.Context, who *Identity, host string, port uint32) (JumpConn, error) {
		if host == "secret" {
			return nil, refuseJump("it is not listed")
		}
		return f.jump(ctx, who, host, port)
	}
	inMemory(t, func(o *FrontOptions) { o.Audit, o.Jump = book, jump }, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, end := f.open(s, client)
		ch.Write([]byte("12345"))
		end.Write([]byte("123"))
		time.Sleep(90 * time.Second)
		ch.CloseWrite()
		end.CloseWrite()
		s.logged("ssh jump ended")
		if e := book.one(t, audit.Jump); e.Principal != "alice" || e.Target != "builder1:22" || e.Dialled != "10.2.0.2:22" || e.Address != "10.1.0.1" {
			s.Errorf("jump: %+v", e)
		}
		if e := book.one(t, audit.JumpEnd); e.Target != "builder1:22" || e.Sent != 5 || e.Received != 3 || e.Seconds != 90 || e.Reason != "both sides ended" {
			s.Errorf("end: %+v", e)
		}
		refusedJump(s, client, "secret", 22, ssh.Prohibited)
		if e := book.one(t, audit.JumpRefused); e.Target != "secret:22" || e.Reason != "it is not listed" {
			s.Errorf("refused: %+v", e)
		}
		book.fail(errors.New("no space left"))
		if text := refusedJump(s, client, "builder1", 22, ssh.ConnectionFailed); !strings.Contains(text, "cannot write its audit log") {
			s.Errorf("without a log: %q", text)
		}
		book.fail(nil)
		s.roster.remove(testKey("alice"))
		refusedJump(s, client, "builder1", 22, ssh.Prohibited)
		if e := book.one(t, audit.Refused); e.Principal != "alice" || e.Command != "jump" || e.Reason != errStranger.Error() {
			s.Errorf("with a removed key: %+v", e)
		}
	})
}
