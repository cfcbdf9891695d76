package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
	"nixbastion/policy"
)

// visitor is a client that has logged in, with a session of the worker protocol if it
// was asked for.
type visitor struct {
	l       *lab
	ssh     *ssh.Client
	session *ssh.Session
	stderr  syncBuffer
	*worker.Client
}

func (l *lab) visit(addr, key string) *visitor {
	l.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		l.Fatal(err)
	}
	client, err := clientOn(conn, &ssh.ClientConfig{User: "nix", Auth: []ssh.AuthMethod{ssh.PublicKeys(testKey(key))}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		l.Fatalf("login of %s: %v", key, err)
	}
	l.Cleanup(func() { client.Close() })
	return &visitor{l: l, ssh: client}
}

// daemon opens a session.
func (v *visitor) daemon() *visitor {
	v.l.Helper()
	var err error
	if v.session, err = v.ssh.NewSession(); err != nil {
		v.l.Fatal(err)
	}
	v.session.Stderr = &v.stderr
	in, err := v.session.StdinPipe()
	if err != nil {
		v.l.Fatal(err)
	}
	out, err := v.session.StdoutPipe()
	if err != nil {
		v.l.Fatal(err)
	}
	if err := v.session.Start("nix-daemon --stdio"); err != nil {
		v.l.Fatal(err)
	}
	if v.Client, err = worker.NewClient(v.l.Context(), &channelEnds{out, in, sync.OnceValue(in.Close)}, worker.ClientOptions{}); err != nil {
		v.l.Fatal(err)
	}
	return v
}

// channelEnds are both directions of a session. It may be closed by several at once.
type channelEnds struct {
	io.Reader
	io.Writer
	closeOnce func() error
}

func (c *channelEnds) Close() error { return c.closeOnce() }

// build has something built, and tells how that ended.
func (v *visitor) build(name string) (ended chan error) {
	ended = make(chan error, 1)
	go func() {
		path, drv := labDrv(name)
		result, err := v.BuildDerivation(v.l.Context(), nix.Discard, path, drv, nix.BuildNormal)
		if err == nil && !result.Status.Success() {
			err = errors.New(result.ErrorMsg)
		}
		ended <- err
	}()
	return ended
}

// alive reports whether the proxy still answers on the connection.
func (v *visitor) alive() bool {
	_, _, err := v.ssh.SendRequest(keepAliveRequest, true, nil)
	return err == nil
}

// edit changes the policy's text.
func (l *lab) edit(replacements ...string) {
	l.Helper()
	text := l.policyText()
	changed := strings.NewReplacer(replacements...).Replace(text)
	if changed == text {
		l.Fatalf("nothing to replace in\n%s", text)
	}
	l.reload(changed)
}

const aliceLine = "{name: alice, role: full,"

// Guards against whoever goes on, with a build or without, on what the policy of their
// login gave them; against an end without a reason; and against one for somebody else.
func TestReloadEndsWhatTheNewPolicyForbids(t *testing.T) {
	alice := authorizedLine(testKey("alice"))
	for name, c := range map[string]struct {
		change func(l *lab)
		want   string
	}{
		"principal": {func(l *lab) { l.edit("  - {name: alice, role: full, keys: ["+alice+"], repair_builds: allow}\n", "") },
			`principal "alice" was removed from the proxy's policy`},
		"key": {func(l *lab) { l.edit(alice, authorizedLine(testKey("new laptop"))) }, "your key is not accepted any more: the proxy's policy was changed"},
		"revoked": {func(l *lab) {
			l.reload(l.policyText() + "revoked_keys: " + writeText(t, filepath.Join(t.TempDir(), "revoked"), alice) + "\n")
		}, "your key was revoked"},
		"role":    {func(l *lab) { l.edit(aliceLine, "{name: alice, role: read,", ", repair_builds: allow", "") }, `principal "alice" has the role read now: the proxy's policy was changed; connect again`},
		"domain":  {func(l *lab) { l.edit(aliceLine, "{name: alice, role: full, domain: other,") }, `principal "alice" is in domain "other" now: the proxy's policy was changed; connect again`},
		"owner":   {func(l *lab) { l.edit(aliceLine, "{name: malice, role: full,") }, `your key belongs to principal "malice" now: the proxy's policy was changed; connect again`},
		"command": {func(l *lab) { l.edit("["+alice, "['command=\"nix-store --serve\" "+alice+"'") }, "what your key may run was changed in the proxy's policy; connect again"},
	} {
		t.Run(name, func(t *testing.T) {
			b1 := newLabBuilder("b1")
			release := make(chan struct{})
			b1.maxJobs, b1.build = 4, held(release)
			l := newLab(t, b1)
			addr := l.serve()
			builds, waits, bob := l.visit(addr, "alice").daemon(), l.visit(addr, "alice").daemon(), l.visit(addr, "bob").daemon()
			uploads, idle := l.visit(addr, "alice").daemon(), l.visit(addr, "alice")
			running, others := builds.build("one"), bob.build("two")
			half := newLabFile(labPath("half"), "some text")
			sending, never := make(chan struct{}), make(chan struct{})
			t.Cleanup(func() { close(never) })
			uploaded := make(chan error, 1)
			go func() {
				uploaded <- uploads.AddMultipleToStore(t.Context(), nix.Discard, oneOf(half.info, &halting{bytes.NewReader(half.nar[:50]), sending, never}), nix.AddOptions{DontCheckSigs: true})
			}()
			eventually(t, "both builds run", func() bool { return len(b1.built()) == 2 })
			<-sending
			c.change(l)
			if err := <-running; err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the build: %v", err)
			}
			gone := []*visitor{builds, waits, uploads}
			if name == "role" || name == "command" { // a connection that runs nothing may stay
				if !idle.alive() {
					t.Error("a connection that runs nothing was ended")
				}
			} else {
				gone = append(gone, idle)
			}
			for _, v := range gone {
				v.ssh.Wait()
			}
			for _, v := range gone[:2] {
				v.session.Wait()
				if got := v.stderr.String(); got != "nixbastion: "+c.want+"\n" {
					t.Errorf("standard error is %q", got)
				}
			}
			eventually(t, "the build of who had to go has ended", func() bool { b1.mu.Lock(); defer b1.mu.Unlock(); return b1.ended == 1 })
			close(release)
			if err := <-others; err != nil || !bob.alive() {
				t.Errorf("bob's build: %v", err)
			}
		})
	}
}

// halting is an upload that stands still after its first part.
type halting struct {
	part    io.Reader
	reached chan struct{}
	never   chan struct{}
}

func (s *halting) Read(p []byte) (int, error) {
	n, err := s.part.Read(p)
	if err == io.EOF {
		close(s.reached)
		<-s.never
	}
	return n, err
}

func oneOf(info *nix.PathInfo, nar io.Reader) nix.PathSource {
	given := false
	return nix.PathSource{Count: 1, Next: func() (*nix.PathInfo, io.Reader, error) {
		if given {
			return nil, nil, io.EOF
		}
		given = true
		return info, nar, nil
	}}
}

// Guards against a build that is ended although the policy lets it finish, and against
// a client that does more meanwhile than wait for it and fetch its outputs.
func TestBuildsOfRemovedPrincipalsCanFinish(t *testing.T) {
	b1 := newLabBuilder("b1")
	release := make(chan struct{})
	b1.maxJobs = 4
	b1.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		if drv.Env[0].Value == "endless" {
			<-ctx.Done()
		}
		return held(release)(ctx, b, log, drv)
	}
	l := newLabOf(t, labPolicy{extra: "reload: {running_builds: finish}\n"}, b1)
	addr := l.serve()
	endless := l.visit(addr, "alice").daemon().build("endless")
	v, idle := l.visit(addr, "alice").daemon(), l.visit(addr, "alice").daemon()
	old := newLabFile(labPath("old"), "uploaded before")
	if err := v.AddMultipleToStore(t.Context(), nix.Discard, oneOf(old.info, bytes.NewReader(old.nar)), nix.AddOptions{DontCheckSigs: true}); err != nil {
		t.Fatal(err)
	}
	running := v.build("one")
	eventually(t, "the builds run", func() bool { return len(b1.built()) == 2 })
	answer := l.removeAlice()
	if want := "policy loaded; 1 connection ended, as the new policy forbids them; 2 connections will end when their builds are done, as the new policy forbids them\n"; answer != want {
		t.Errorf("got %q", answer)
	}
	idle.ssh.Wait()
	close(release)
	if err := <-running; err != nil {
		t.Fatalf("the build: %v", err)
	}
	if _, err := v.QueryPathInfo(t.Context(), labPath("one")); err != nil {
		t.Errorf("info of its output: %v", err)
	}
	r, err := v.NarFromPath(t.Context(), labPath("one"))
	if err != nil {
		t.Fatalf("its output: %v", err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Errorf("its output: %v", err)
	}
	r.Close()
	for what, err := range map[string]error{
		"another build":  <-v.build("two"),
		"another path":   second(v.QueryPathInfo(t.Context(), old.info.Path)),
		"another upload": v.AddMultipleToStore(t.Context(), nix.Discard, oneOf(old.info, bytes.NewReader(old.nar)), nix.AddOptions{DontCheckSigs: true}),
		"what is valid":  second(v.QueryValidPaths(t.Context(), []nix.StorePath{old.info.Path}, false)),
	} {
		if err == nil || !strings.Contains(err.Error(), "was removed") {
			t.Errorf("%s: %v", what, err)
		}
	}
	l.reload(l.policyText() + "revoked_keys: " + writeText(t, filepath.Join(t.TempDir(), "revoked"), authorizedLine(testKey("alice"))) + "\n")
	if err := <-endless; err == nil || !strings.Contains(err.Error(), "your key was revoked") {
		t.Errorf("a build of a revoked key: %v", err)
	}
	v.ssh.Wait()
}

// Guards against answers that go on to tell what happens in a domain to who has to go
// and may wait for his builds alone.
func TestAnswersEndForWhoHasToGo(t *testing.T) {
	for _, command := range []string{"status --watch=1", "log one --follow"} {
		t.Run(command, func(t *testing.T) {
			b1 := newLabBuilder("b1")
			release, more := make(chan struct{}), make(chan struct{})
			t.Cleanup(func() { close(release) })
			b1.maxJobs = 4
			b1.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
				nix.Line(log, "before")
				<-more
				nix.Line(log, "a secret")
				return held(release)(ctx, b, log, drv)
			}
			l := newLabOf(t, labPolicy{extra: "reload: {running_builds: finish}\n"}, b1)
			v := l.visit(l.serve(), "alice")
			v.daemon().build("one")
			eventually(t, "the build runs", func() bool { return len(b1.built()) == 1 })
			session, err := v.ssh.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			var out, errs syncBuffer
			session.Stdout, session.Stderr = &out, &errs
			if err := session.Start(command); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the answer begins", func() bool { return out.String() != "" })
			l.removeAlice()
			before := out.String()
			close(more)
			var exit *ssh.ExitError
			if err := session.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 1 || !strings.Contains(errs.String(), "was removed") {
				t.Errorf("it ended: %v, %q", err, errs.String())
			}
			if got := out.String(); got != before {
				t.Errorf("was told %q", strings.TrimPrefix(got, before))
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

// removeAlice takes a principal out of the policy, and returns what the admin reads.
func (l *lab) removeAlice() string {
	l.Helper()
	kept := slices.DeleteFunc(strings.SplitAfter(l.policyText(), "\n"), func(line string) bool { return strings.Contains(line, "name: alice,") })
	if err := os.WriteFile(l.file, []byte(strings.Join(kept, "")), 0o600); err != nil {
		l.Fatal(err)
	}
	return l.change("reload")
}

// Guards against a build that lingers for a client that was lost, and whose principal is
// not in the policy any more.
func TestLingeringBuildsOfRemovedPrincipalsEnd(t *testing.T) {
	b1 := newLabBuilder("b1")
	b1.maxJobs, b1.build = 4, held(make(chan struct{}))
	l := newLab(t, b1)
	for _, who := range []string{"alice", "bob"} {
		c := l.client(who)
		go c.build(t.Context(), nix.Discard, "of-"+who)
		eventually(t, "it runs", func() bool { return len(b1.built()) > 0 && strings.Contains(strings.Join(b1.built(), " "), who) })
		c.lost.Store(true)
		c.hangUp()
	}
	lingering := func() int {
		l.proxy.builds.inflight.mu.Lock()
		defer l.proxy.builds.inflight.mu.Unlock()
		return len(l.proxy.builds.inflight.lingering)
	}
	eventually(t, "both linger", func() bool { return lingering() == 2 })
	l.removeAlice()
	if n := lingering(); n != 1 {
		t.Errorf("%d principals have builds that linger", n)
	}
	eventually(t, "one build has ended", func() bool { b1.mu.Lock(); defer b1.mu.Unlock(); return b1.ended == 1 })
}

// Guards against open sessions that go on with settings of yesterday.
func TestOpenSessionsSeeWhatThePolicySaysNow(t *testing.T) {
	b1 := newLabBuilder("b1")
	b1.maxJobs = 2
	release := make(chan struct{})
	b1.build = held(release)
	l := newLab(t, b1)
	addr := l.serve()
	v, w := l.visit(addr, "bob").daemon(), l.visit(addr, "bob").daemon()
	one := v.build("one")
	eventually(t, "the first runs", func() bool { return len(b1.built()) == 1 })
	l.edit("{name: bob, role: full,", "{name: bob, role: full, check_builds: refuse, max_jobs: 1,", "scheduling:", "limits: {nar_size: 1KiB}\nscheduling:")
	two := w.build("two")
	eventually(t, "the second waits", func() bool { return len(l.proxy.router.Status().Queue) == 1 })
	close(release)
	if err := errors.Join(<-one, <-two); err != nil {
		t.Fatal(err)
	}
	path, drv := labDrv("one")
	if _, err := v.BuildDerivation(t.Context(), nix.Discard, path, drv, nix.BuildCheck); err == nil || !strings.Contains(err.Error(), "check_builds") {
		t.Errorf("a check: %v", err)
	}
	large := newLabFile(labPath("large"), strings.Repeat("x", 2000))
	if err := v.AddMultipleToStore(t.Context(), nix.Discard, oneOf(large.info, bytes.NewReader(large.nar)), nix.AddOptions{DontCheckSigs: true}); err == nil || !strings.Contains(err.Error(), "limits.nar_size) is 1024") {
		t.Errorf("an upload: %v", err)
	}
}

// Guards against a jump that leads where the policy does not list it any more, or to
// where a builder was, and against all others ending with it.
func TestReloadEndsForbiddenJumps(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
		}
	}()
	b1 := newLabBuilder("b1")
	jumper := fmt.Sprintf("role: read, jump: [%q, b1]", listener.Addr())
	l := newLabOf(t, labPolicy{principals: map[string]string{"jumper": jumper}}, b1)
	v := l.visit(l.serve(), "jumper")
	port := uint32(listener.Addr().(*net.TCPAddr).Port)
	direct, err := tryJump(v.ssh, "127.0.0.1", port)
	if err != nil {
		t.Fatal(err)
	}
	builder, err := tryJump(v.ssh, "b1", 22)
	if err != nil {
		t.Fatal(err)
	}
	moved := newLabBuilder("b1")
	moved.start(t)
	l.replaceIn("b1", b1.listener.Addr().String(), moved.listener.Addr().String())
	if _, err := io.Copy(io.Discard, builder); err != nil {
		t.Errorf("the jump to a builder that moved: %v", err)
	}
	eventually(t, "the jump to a builder that moved has ended", func() bool { return len(l.log.records(t, "ssh jump ended")) == 1 })
	if got := l.log.records(t, "ssh jump ended")[0]["reason"]; got != "the policy has changed: jump refused: the name leads to another host or port now" {
		t.Errorf("it ended: %v", got)
	}
	l.edit(jumper, "role: read, jump: [b1]")
	if _, err := io.Copy(io.Discard, direct); err != nil {
		t.Errorf("the other jump: %v", err)
	}
	if !v.alive() {
		t.Error("the connection ended")
	}
}

// Guards against a way through the proxy to itself once it drains: where it listened the
// next process does.
func TestJumpsLeadToNoDoorOfADrainingProxy(t *testing.T) {
	l := newLabOf(t, labPolicy{principals: map[string]string{"jumper": `role: read, jump: ["127.0.0.0/8:*"]`}}, newLabBuilder("b1"))
	addr, leave := l.openDoor()
	v := l.visit(addr, "jumper")
	leave()
	next, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	var refusal *ssh.OpenChannelError
	_, err = tryJump(v.ssh, "127.0.0.1", uint32(next.Addr().(*net.TCPAddr).Port))
	if !errors.As(err, &refusal) || refusal.Reason != ssh.Prohibited {
		t.Errorf("a jump to the next process: %v", err)
	}
}

// Guards against a connection that the policy allows and that a reload costs, a bad file
// that gets into force, or one that is refused without its place: many edits, half of
// them with mistakes, one principal coming and going, with builds all the time.
func TestManyReloadsCostNobodyWhoMayStay(t *testing.T) {
	const edits = 60
	b1 := newLabBuilder("b1")
	b1.maxJobs = 4
	l := newLab(t, b1)
	addr := l.serve()
	idle, bob := l.visit(addr, "bob").daemon(), l.visit(addr, "bob").daemon()
	text := l.policyText()
	bad := text + "nonsense: 1\n"
	place := fmt.Sprintf("%s:%d:1: unknown key \"nonsense\"", l.file, strings.Count(bad, "\n"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				t.Logf("%d builds", i)
				return
			default:
			}
			if err := <-bob.build(fmt.Sprint("build-", i)); err != nil {
				t.Errorf("a build: %v", err)
				return
			}
		}
	})
	for i := range edits {
		switch i % 4 {
		case 0, 2:
			if err := os.WriteFile(l.file, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := l.proxy.ChangeAdmin(t.Context(), "root", []string{"reload"}); err == nil || !strings.HasPrefix(err.Error(), place) {
				t.Fatalf("a file with a mistake: %v", err)
			}
		case 1:
			l.reload(strings.ReplaceAll(text, "name: alice,", "name: nobody,"))
		case 3:
			l.reload(text)
			alice := l.visit(addr, "alice")
			t.Cleanup(func() {
				if alice.alive() != (i == edits-1) {
					t.Errorf("alice of edit %d: %t", i, alice.alive())
				}
			})
		}
	}
	close(stop)
	wg.Wait()
	if _, err := idle.QueryValidPaths(t.Context(), nil, false); err != nil || !bob.alive() {
		t.Errorf("who may stay: %v", err)
	}
	if n := len(l.log.records(t, "policy refused; the old one stays")); n != edits/2 {
		t.Errorf("%d refusals are in the log", n)
	}
}

// Guards against a refused policy that only who asked for it hears of, and against
// changes that wait for a restart without a word.
func TestStatusSaysHowTheLastReloadWent(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	text := l.policyText()
	status := func() (s policyStatus, words string) {
		var answer struct{ Policy policyStatus }
		if err := json.Unmarshal([]byte(l.admin("status", "--json")), &answer); err != nil {
			t.Fatal(err)
		}
		return answer.Policy, l.admin("status")
	}
	if got, words := status(); got.LastReload != nil || len(got.NeedsRestart) != 0 || strings.Contains(words, "Policy:") {
		t.Errorf("before any reload: %+v\n%s", got, words)
	}
	l.reload(text + "log: {level: debug}\n")
	l.reload(text + "log: {level: debug}\nlimits: {nar_size: 1GiB}\n")
	if answer := l.change("reload"); answer != "policy loaded\nchanged since the start, and in force after a restart only: log\n" {
		t.Errorf("the third time: %q", answer)
	}
	if got, words := status(); !got.LastReload.Loaded || fmt.Sprint(got.NeedsRestart) != "[log]" ||
		!strings.Contains(words, "in force after a restart only: log\n") || !strings.Contains(words, "Policy: loaded ") {
		t.Errorf("loaded: %+v\n%s", got, words)
	}
	if err := os.WriteFile(l.file, []byte("a: 1\nb: 1\nc: 1\nd: 1\ne: 1\nf: 1\ng: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.proxy.Reload("SIGHUP"); !errors.As(err, new(*policy.Mistakes)) {
		t.Errorf("got %v", err)
	}
	got, words := status()
	if got.LastReload.Loaded || got.LastReload.By != "SIGHUP" || len(got.LastReload.Mistakes) != maxMistakesShown || got.LastReload.MoreMistakes != 3 {
		t.Errorf("refused: %+v", got.LastReload)
	}
	for _, want := range []string{"REFUSED", "by SIGHUP", l.file + ":2:1: unknown key \"b\"\n    hint: ", "  and 3 more", "after a restart only: log"} {
		if !strings.Contains(words, want) {
			t.Errorf("no %q in:\n%s", want, words)
		}
	}
	if got := l.run("alice", "status --json", nil); got.status != 0 || strings.Contains(got.stdout, "policy") {
		t.Errorf("a client reads %+v", got)
	}
	l.reload(text)
	if got, words := status(); !got.LastReload.Loaded || len(got.NeedsRestart) != 0 || strings.Contains(words, "REFUSED") {
		t.Errorf("good again: %+v\n%s", got, words)
	}
}
