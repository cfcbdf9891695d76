package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy/upstream"
	"nixbastion/route"
)

var update = flag.Bool("update", false, "write answers into testdata/talk, to be read before they are committed")

// townPolicy has builders in two domains, and a key for each role.
const townPolicy = `
state_dir: state
listen: [":2222"]
domains: [{name: other}]
builders:
  - {name: b1, address: "127.0.0.1:1", user: nix, identity_file: id, host_keys: [%[1]s], systems: [x86_64-linux, i686-linux],
     features: [big-parallel, kvm], max_jobs: 2, speed_factor: 2}
  - {name: b2, address: "127.0.0.1:1", user: nix, identity_file: id, host_keys: [%[1]s], systems: [aarch64-linux], max_jobs: 4}
  - {name: b3, address: "127.0.0.1:1", user: nix, identity_file: id, host_keys: [%[1]s], systems: [x86_64-linux],
     mandatory_features: [big-parallel], max_jobs: 1}
  - {name: secret, address: "127.0.0.1:1", user: nix, identity_file: id, host_keys: [%[1]s], systems: [x86_64-linux, riscv64-linux],
     features: [hidden], max_jobs: 8, domains: [other]}
principals:
  - {name: alice, role: full, keys: [%[2]s]}
  - {name: carol, role: full, max_jobs: 1, keys: [%[3]s]}
  - {name: reader, role: read, keys: [%[4]s]}
  - {name: eve, role: full, domain: other, keys: [%[5]s]}
`

// town is a proxy whose router the test moves by hand, on a clock that stands.
type town struct {
	*lab
	router *route.Router
}

func townTime() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func newTown(t *testing.T) *town {
	t.Helper()
	l := &lab{TB: t, log: &logBook{}}
	dir := t.TempDir()
	l.writeKey(filepath.Join(dir, "id"), "proxy")
	keys := []any{authorizedLine(testKey("builder"))}
	for _, name := range []string{"alice", "carol", "reader", "eve"} {
		keys = append(keys, authorizedLine(testKey(name)))
	}
	l.start(filepath.Join(dir, "config.yaml"), fmt.Sprintf(townPolicy, keys...))
	r := route.New(route.Options{Now: townTime})
	l.proxy.router, l.proxy.builds.router = r, r
	l.proxy.hostKey = testKey("host").PublicKey()
	l.proxy.apply(l.proxy.policy.Current())
	return &town{l, r}
}

// acquire takes a slot, or returns once the request is in the queue.
func (c *town) acquire(principal, drv, system string, features ...string) {
	c.Helper()
	owner := c.principal(principal)
	waits, done := make(chan struct{}, 1), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		lease, err := c.router.Acquire(ctx, route.Request{
			Asker: askerOf(owner), Domain: owner.Domain, Name: labPath(drv).String(), System: system, Features: features,
		}, func(route.Waiting) {
			select {
			case waits <- struct{}{}:
			default:
			}
		})
		if err == nil {
			c.Cleanup(lease.Release)
		}
	}()
	select {
	case <-waits:
		c.Cleanup(func() { cancel(); <-done })
	case <-done:
		c.Cleanup(cancel)
	}
}

// busyTown has builds in both domains, running and waiting, and a builder that
// said something nasty.
func busyTown(t *testing.T) *town {
	c := newTown(t)
	c.acquire("alice", "one.drv", "x86_64-linux")
	c.acquire("carol", "two.drv", "x86_64-linux", "kvm")
	c.acquire("carol", "three.drv", "i686-linux")
	c.acquire("alice", "four.drv", "x86_64-linux", "kvm", "big-parallel")
	for i := range 9 {
		c.acquire("eve", fmt.Sprintf("plot-%d.drv", i), "x86_64-linux", "hidden")
	}
	c.router.SetUp("b2", false, "connection refused\x1b[2J\u009b2J\u202e")
	c.router.Suspend("b3", "out of disk", townTime().Add(time.Minute))
	return c
}

// ask puts a question as a principal does, 42 seconds later; "" is the admin.
func (c *town) ask(principal, question string) string {
	c.Helper()
	a := &asker{}
	if principal != "" {
		who := c.identity(principal)
		a = &asker{client: who, access: who.Data.(*policy.Access)}
	}
	words := strings.Fields(question)
	if words[0] != "status" {
		text, err := c.proxy.answer(c.Context(), a, words...)
		if err != nil {
			c.Fatalf("%s asks %s: %v", principal, question, err)
		}
		return text
	}
	state := newStatus(new(glances).take(c.router), c.proxy.policy.Current(), "test", a, nil, townTime().Add(42*time.Second))
	if a.seesReasons() {
		state.addLoads(townLoad, townTime().Add(42*time.Second))
	}
	if len(words) == 1 {
		return inWords(state, Look{})
	}
	text, err := inJSON(state)
	if err != nil {
		c.Fatal(err)
	}
	return text
}

// answer is what an asker reads.
func (p *Proxy) answer(ctx context.Context, a *asker, words ...string) (string, error) {
	var text strings.Builder
	err := p.reply(ctx, a, &text, words, Look{})
	return text.String(), err
}

// townLoad is what the town's builders say of their load. One of them may not.
func townLoad(builder string) (upstream.Load, time.Time, error) {
	switch builder {
	case "b1":
		return upstream.Load{
			System: "Linux", Load1: 35.2, Load5: 30, Load15: 12.5, Cores: 16, MemoryTotal: 64 << 30, MemoryAvailable: 7 << 30, DiskFree: 3 << 29,
			Pressure: &upstream.Pressure{CPU: 81.5, Memory: 2.25, IO: 12}, ClockAhead: -90 * time.Second,
		}, townTime().Add(40 * time.Second), nil
	case "secret":
		return upstream.Load{System: "Darwin", Load1: 1, Cores: 10, MemoryTotal: 16 << 30, MemoryAvailable: 8 << 30, DiskFree: 1 << 40}, townTime().Add(42 * time.Second), nil
	}
	return upstream.Load{}, time.Time{}, errors.New("does not run a shell for account 'nix'\x1b[2J")
}

// Guards against answers that nobody reads before they are shipped: read the files
// as the users that they are for.
func TestAnswersReadAsWritten(t *testing.T) {
	c := busyTown(t)
	drv := c.uploadDerivation("alice")
	for file, q := range map[string]struct{ principal, question string }{
		"status.txt":         {"alice", "status"},
		"status.json":        {"alice", "status --json"},
		"status-read.txt":    {"reader", "status"},
		"status-read.json":   {"reader", "status --json"},
		"status-admin.txt":   {"", "status"},
		"status-admin.json":  {"", "status --json"},
		"why.txt":            {"alice", "why x86_64-linux kvm"},
		"why.json":           {"alice", "why --json x86_64-linux kvm"},
		"why-waits.txt":      {"carol", "why i686-linux"},
		"why-nobody.txt":     {"alice", "why riscv64-linux kvm,hidden nixos-test"},
		"why-down.txt":       {"alice", "why aarch64-linux"},
		"why-admin.txt":      {"", "why x86_64-linux hidden"},
		"why-admin.json":     {"", "why x86_64-linux hidden --json"},
		"why-derivation.txt": {"alice", "why " + drv.String()},
		"explain.txt":        {"", `explain {"principal":"carol","system":"x86_64-linux","features":["kvm"]}`},
		"explain.json":       {"", `explain {"key":"` + fingerprint(testKey("alice")) + `","address":"192.0.2.7","system":"x86_64-linux"} --json`},
		"explain-read.txt":   {"", `explain {"key":"` + fingerprint(testKey("reader")) + `","system":"x86_64-linux"}`},
		"explain-nobody.txt": {"", `explain {"key":"` + fingerprint(testKey("stranger")) + `","system":"x86_64-linux"}`},
		"check.txt":          {"alice", "check nix.example.org"},
		"check.json":         {"alice", "check nix.example.org --json"},
		"check-read.txt":     {"reader", "check"},
		"help.txt":           {"alice", "help"},
		"help-read.txt":      {"reader", "help"},
		"help.json":          {"alice", "help --json"},
	} {
		got := c.ask(q.principal, q.question)
		if strings.HasSuffix(file, ".json") && !json.Valid([]byte(got)) {
			t.Errorf("%s is not JSON:\n%s", file, got)
		}
		golden := filepath.Join("testdata", "talk", file)
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: got:\n%s\nwant:\n%s", file, got, want)
		}
	}
}

// uploadDerivation puts a derivation and its one input into the store.
func (c *town) uploadDerivation(principal string) nix.StorePath {
	c.Helper()
	input := newLabFile(labPath("input"), "some input")
	drv := &nix.Derivation{BasicDerivation: nix.BasicDerivation{
		Outputs:   []nix.DerivationOutput{{Name: "out", Path: labPath("hello")}},
		InputSrcs: []nix.StorePath{input.info.Path}, Platform: "x86_64-linux", Builder: "/bin/sh",
		Env: []nix.EnvVar{{Name: "name", Value: "hello"}, {Name: "out", Value: labPath("hello").String()}, {Name: "requiredSystemFeatures", Value: "kvm"}},
	}}
	file := newLabFile(labPath("hello.drv"), drv.ATerm(), input.info.Path)
	if err := c.client(principal).upload(c.Context(), input, file); err != nil {
		c.Fatal(err)
	}
	return file.info.Path
}

// Guards against an explanation in other words than those of the failure that it
// explains, or of another ranking than the one that decides.
func TestWhySaysWhatABuildWouldSay(t *testing.T) {
	c := busyTown(t)
	_, err := c.router.Acquire(t.Context(), route.Request{Domain: "default", Name: "x", System: "riscv64-linux", Features: []string{"kvm"}}, nil)
	var none *route.NoBuilderError
	if !errors.As(err, &none) {
		t.Fatalf("acquire: %v", err)
	}
	answer := c.ask("alice", "why riscv64-linux kvm")
	for _, b := range none.Builders {
		if want := fmt.Sprintf("  %s: %s\n", b.Name, b.Reason); !strings.Contains(answer, want) {
			t.Errorf("no %q in:\n%s", want, answer)
		}
	}
	decision := c.router.Explain(c.proxy.builds.requestOf(&order{principal: c.principal("alice"), system: "x86_64-linux", features: []string{"kvm"}}))
	if got := c.ask("alice", "why x86_64-linux kvm"); !strings.HasPrefix(got, decision.String()+"\n") {
		t.Errorf("got:\n%s\nwant:\n%s", got, decision)
	}
}

// Guards against a key that learns of another domain: its builders, who builds
// there and what, and what it may not know of its own.
func TestAnswersStayInTheirDomain(t *testing.T) {
	c := busyTown(t)
	drv := c.uploadDerivation("eve")
	for _, principal := range []string{"alice", "carol", "reader"} {
		for _, question := range []string{
			"status", "why x86_64-linux hidden", "why riscv64-linux", "check", "check h", "help", "why " + drv.String(), "why " + labPath("plot-8.drv").String(),
		} {
			for _, json := range []string{"", " --json"} {
				got := c.run(principal, question+json, nil)
				for _, secret := range []string{"secret", "eve", "plot", "other", "9 builds", "10/8", "8/8"} {
					text := strings.NewReplacer(question, "", "plot-8.drv", "").Replace(got.stdout + got.stderr)
					if strings.Contains(text, secret) {
						t.Errorf("%s asks %s%s and reads %q in:\n%s%s", principal, question, json, secret, got.stdout, got.stderr)
					}
				}
			}
		}
	}
	for _, question := range []string{"status", "status --json", "check", "help"} {
		got := c.run("reader", question, nil)
		for _, secret := range []string{"alice", "carol", "one.drv", "three.drv", "connection refused", "out of disk"} {
			if strings.Contains(got.stdout+got.stderr, secret) {
				t.Errorf("the reader asks %s and reads %q in:\n%s", question, secret, got.stdout)
			}
		}
	}
	if got := c.run("reader", "why x86_64-linux", nil); got.status != 1 || got.stdout != "" || !strings.Contains(got.stderr, "role read") {
		t.Errorf("the reader asks why: %+v", got)
	}
	if got := c.run("eve", "status", nil); !strings.Contains(got.stdout, "secret") || !strings.Contains(got.stdout, "plot-8.drv") || strings.Contains(got.stdout, "alice") {
		t.Errorf("eve asks for her own status: %+v", got)
	}
	if got := c.run("eve", "why "+drv.String(), nil); got.status != 0 || !strings.Contains(got.stdout, "secret: lacks feature kvm") {
		t.Errorf("eve asks for her own derivation: %+v", got)
	}
}

// Guards against peers that write on a user's terminal through an answer.
func TestAnswersHaveNoEscapeSequences(t *testing.T) {
	c := busyTown(t)
	for _, question := range []string{"status", "status --json", "why aarch64-linux", "why aarch64-linux --json", "check", "check --json"} {
		got := c.run("alice", question, func(x *Exec) { x.Identity.User = "nix\x1b]0;x\a\r\u202e\xff" })
		if got.status != 0 || strings.ContainsAny(got.stdout, "\x1b\a\r\u009b\u202e") || !utf8.ValidString(got.stdout) {
			t.Errorf("%s: %+v", question, got)
		}
		if strings.HasSuffix(question, "--json") && !json.Valid([]byte(got.stdout)) {
			t.Errorf("%s is not JSON:\n%s", question, got.stdout)
		}
	}
}

// Guards against questions that hang, crash or say nothing.
func TestQuestionsThatMakeNoSenseAreAnsweredInASentence(t *testing.T) {
	c := newTown(t)
	absent := labPath("absent.drv").String()
	for question, want := range map[string]said{
		"status now":                   {stderr: "status takes no arguments but --json, --watch", status: 2},
		"status --yaml":                {stderr: `status knows no option "--yaml" but --json, --watch`, status: 2},
		"help me":                      {stderr: "help takes no arguments but --json, --watch", status: 2},
		"why":                          {stderr: whyUsage, status: 2},
		"why --json":                   {stderr: whyUsage, status: 2},
		"why /etc/passwd":              {stderr: `"/etc/passwd" is not the path of a derivation; ` + whyUsage, status: 2},
		"why x.drv":                    {stderr: `"x.drv" is not the path of a derivation; ` + whyUsage, status: 2},
		"why 'a b'":                    {stderr: `"a b" is not the name of a system or feature; ` + whyUsage, status: 2},
		"why x86_64-linux a b'":        {stderr: errUnknownCommand.Error(), status: 127},
		"why " + absent:                {stderr: "derivation " + absent + " is not in the store here; most clients send what it needs and not the derivation itself, so say why SYSTEM FEATURE ... instead", status: 1},
		"why " + labPath("x").String(): {stderr: fmt.Sprintf("%q is not the path of a derivation; %s", labPath("x"), whyUsage), status: 2},
		"why x86_64-linux " + strings.Repeat("f,", 65): {stderr: "more than 64 features; " + whyUsage, status: 2},
		"check a b":   {stderr: "say check, or check HOST with the name by which you reach this host", status: 2},
		"check ''":    {stderr: `"" is not the name or address of a host`, status: 2},
		"check a/b":   {stderr: `"a/b" is not the name or address of a host`, status: 2},
		"check 'x y'": {stderr: `"x y" is not the name or address of a host`, status: 2},
	} {
		want.stderr = "nixbastion: " + want.stderr + "\n"
		if got := c.run("alice", question, nil); got != want {
			t.Errorf("%s\ngot  %+v\nwant %+v", question, got, want)
		}
	}
	if n := len(c.log.records(t, "question asked")); n != 15 {
		t.Errorf("%d questions are in the log", n)
	}
}

// Guards against lines to paste that do not lead here: for a host by address too.
func TestCheckPrintsLinesThatWork(t *testing.T) {
	c := newTown(t)
	var k keyAnswer
	if err := json.Unmarshal([]byte(c.ask("alice", "check 2001:db8::1 --json")), &k); err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(k.MachinesLine)
	if len(fields) != 8 || fields[0] != "ssh-ng://[2001:db8::1]" || fields[7] != k.HostKeyField {
		t.Errorf("machines line %q", k.MachinesLine)
	}
	host, key, _ := strings.Cut(k.KnownHostsLine, " ")
	if parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(key)); err != nil || host != "2001:db8::1" || !bytes.Equal(parsed.Marshal(), testKey("host").PublicKey().Marshal()) {
		t.Errorf("known_hosts line %q: %v", k.KnownHostsLine, err)
	}
	who := c.identity("alice")
	who.Remote = netip.MustParseAddrPort("[::ffff:192.0.2.7]:1")
	text, err := c.proxy.answer(t.Context(), &asker{client: who, access: who.Data.(*policy.Access)}, "check")
	if err != nil || !strings.Contains(text, "from 192.0.2.7 ") {
		t.Errorf("%v:\n%s", err, text)
	}
}

// Guards against an answer as long as the queue.
func TestALongQueueIsCutShort(t *testing.T) {
	c := newTown(t)
	state := &route.Status{}
	for i := range 10_000 {
		state.Queue = append(state.Queue, route.Queued{Principal: "alice", Domain: "default", Name: fmt.Sprint(i), Since: townTime()})
	}
	s := newStatus(state, c.proxy.policy.Current(), "test", &asker{}, nil, townTime())
	if text := inWords(s, Look{}); s.QueueLength != 10_000 || len(s.Queue) != maxQueueShown || !strings.HasSuffix(text, "\n  and 9900 more\n") {
		t.Errorf("%d of %d, the text ends with %q", len(s.Queue), s.QueueLength, text[max(0, len(text)-40):])
	}
}

// Guards against questions on the admin's socket that are only a client's.
func TestTheAdminAsksForWhatIsHis(t *testing.T) {
	c := busyTown(t)
	for _, words := range [][]string{nil, {"check"}, {"help"}, {"rm"}, {"status", "x"}, {"why"}, {"explain"}, {"explain", "x"}} {
		var text strings.Builder
		if err := c.proxy.AskAdmin(t.Context(), &text, words, Look{}); text.Len() > 0 || !errors.As(err, new(*UsageError)) {
			t.Errorf("%q: %v, %q", words, err, &text)
		}
	}
	var text strings.Builder
	err := c.proxy.AskAdmin(t.Context(), &text, []string{"why", "x86_64-linux", "hidden", "--json"}, Look{})
	if err != nil || text.String() != c.ask("", "why x86_64-linux hidden --json") {
		t.Errorf("%v: %s", err, &text)
	}
}
