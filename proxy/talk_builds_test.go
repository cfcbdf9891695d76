package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/route"
)

// townBuilds are builds of a day in the town, with what peers may say.
func townBuilds() (underWay, ended []*buildRecord) {
	at := func(d time.Duration) *time.Time { when := townTime().Add(-d); return &when }
	record := func(id, name, principal, state string) buildRecord {
		return buildRecord{
			ID: id, Name: name, Derivation: labPath(name + ".drv").String(), State: state, Principals: []string{principal}, Domain: "default",
			System: "x86_64-linux", Features: []string{}, Clients: 1, Asked: *at(3*time.Hour + 5*time.Minute), Attempts: []attemptRecord{},
		}
	}
	running := record("k3jx0a", "firefox-140.0", "alice", "running")
	running.Phase, running.Builder, running.Began, running.Principals = "build", "b1", at(time.Hour), []string{"alice", "carol"}
	inputs := record("2w8q9z", "chromium-138.0", "alice", "running")
	inputs.Phase, inputs.Builder, inputs.Began, inputs.Asked = "inputs", "b1", at(4*time.Second), *at(5 * time.Second)
	waiting := record("zz01yq", "nixos-test", "carol", "waiting")
	waiting.Asked, waiting.Clients, waiting.Features = *at(42 * time.Second), 0, []string{"kvm", "nixos-test"}
	end := func(r buildRecord, took, ago time.Duration, result, status, text string) buildRecord {
		r.State, r.Clients, r.Asked, r.Began, r.Ended = "ended", 0, *at(ago + took), at(ago+took), at(ago)
		r.Result, r.Status, r.Error, r.LogBytes = result, status, text, 1234
		return r
	}
	built := end(record("0a0a0a", "hello-2.12", "alice", ""), 3*time.Second, 20*time.Second, "built", "Built", "")
	built.Builder = "b2"
	failed := end(record("1b1b1b", "broken", "carol", ""), 90*time.Second, 10*time.Minute, "failed", "PermanentFailure",
		"builder for '\x1b[2J' failed with exit code 1; "+strings.Repeat("long ", 40))
	failed.Builder, failed.System = "b2", "aarch64-linux"
	failed.Attempts = []attemptRecord{{"b1", "cannot build: No space left on device", 12.5}}
	killed := end(record("2c2c2c", "endless", "eve", ""), 26*time.Hour, 5*time.Hour, "killed", "MiscFailure", "build of 'x' was killed by root: too long")
	left := end(record("3d3d3d", "unwanted", "alice", ""), time.Second, 50*time.Hour, "abandoned", "", "")
	left.LogBytes = 0
	return []*buildRecord{&running, &inputs, &waiting}, []*buildRecord{&built, &failed, &killed, &left}
}

// townSights are connections to the town.
func townSights() []connSight {
	who := func(principal, certificate, address, client string) *Identity {
		return &Identity{Grant: Grant{Principal: principal, Certificate: certificate}, Fingerprint: policy.Fingerprint(testKey(principal).PublicKey()),
			Remote: netip.MustParseAddrPort(address), ClientVersion: client}
	}
	return []connSight{
		{who: who("carol", "", "192.0.2.7:40000", "SSH-2.0-OpenSSH_9.9\x1b[2J"), since: townTime().Add(-26 * time.Hour), received: 3 << 30, sent: 999, jumps: 2},
		{who: who("alice", "serial 7 of 'ca'", "[2001:db8::1]:40001", "SSH-2.0-OpenSSH_10.0"), since: townTime().Add(-time.Minute), received: 1 << 10, sent: 5 << 20,
			sessions: []sessionSight{
				{"nix-daemon --stdio", "BuildDerivation hello-2.12", townTime().Add(-4 * time.Second)},
				{"nix-store --serve --write", "", townTime().Add(-9 * time.Second)},
				{"status\x1b[2J", "", townTime().Add(-time.Second)},
				{"nix-daemon --stdio", "QueryPathInfo", townTime()},
			}},
	}
}

// Guards against answers that nobody reads before they are shipped: read the files
// as the admin that they are for, also on a terminal.
func TestAdminsAnswersReadAsWritten(t *testing.T) {
	underWay, ended := townBuilds()
	all := newBuilds(underWay, ended, &buildFilter{limit: 3}, townTime())
	queue := newQueue(new(glances).take(busyTown(t).router).Queue, &asker{}, buildIDs{{"default", labPath("four.drv").String()}: "four44"}, townTime().Add(42*time.Second))
	status := &statusAnswer{Version: "test", Domains: []string{"default"}, Queue: []waitingStatus{}, Builders: []builderStatus{{Name: "b1", State: "down", Reason: "gone"}, {Name: "b2", State: "up"}},
		Totals: &totals{UpSeconds: 93784, Running: 3, Waiting: 2, BuiltLastHour: 40, FailedLastHour: 1, Connections: 5, Principals: 2, StoreBytes: 12 << 30, StoreSize: 50 << 30}}
	for file, a := range map[string]answer{"builds": all, "queue": queue, "who": newWho(townSights(), townTime()), "status-totals": status} {
		asJSON, err := inJSON(a)
		if err != nil || !json.Valid([]byte(asJSON)) {
			t.Errorf("%s: %v\n%s", file, err, asJSON)
		}
		for kind, got := range map[string]string{".txt": inWords(a, Look{}), ".colour": inWords(a, Look{Colour: true}), ".json": asJSON} {
			golden := filepath.Join("testdata", "talk", file+kind)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(golden); err != nil || got != string(want) {
				t.Errorf("%s: %v, got:\n%s\nwant:\n%s", golden, err, got, want)
			}
		}
	}
}

// Guards against "-3600s ago" when the clock was set back.
func TestNothingEndsInTheFuture(t *testing.T) {
	for d, want := range map[time.Duration]string{-time.Hour: "0s", 0: "0s", 59*time.Second + 600*time.Millisecond: "1m 00s", 25 * time.Hour: "1d 1h"} {
		if got := span(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}

// Guards against "1 connections".
func TestOneOfSomethingIsNotMany(t *testing.T) {
	answers := []answer{
		&statusAnswer{Domains: []string{"default"}, Totals: &totals{Connections: 1, Principals: 1}},
		&keyAnswer{Builders: 1, Slots: 1},
		newWho([]connSight{{who: townSights()[0].who, jumps: 1}}, townTime()),
	}
	for _, a := range answers {
		if text := inWords(a, Look{}); regexp.MustCompile(`\b1 \w+s\b`).MatchString(text) {
			t.Errorf("%T reads:\n%s", a, text)
		}
	}
}

// Guards against filters that leave out what was asked for.
func TestBuildsAreFiltered(t *testing.T) {
	underWay, ended := townBuilds()
	for options, want := range map[string]string{
		"":                             "k3jx0a 2w8q9z zz01yq | 0a0a0a 1b1b1b 2c2c2c 3d3d3d",
		"--principal carol":            "k3jx0a zz01yq | 1b1b1b",
		"--principal=nobody":           "|",
		"--builder b1":                 "k3jx0a 2w8q9z | 1b1b1b",
		"--system aarch64-linux":       "| 1b1b1b",
		"--failed":                     "| 1b1b1b 2c2c2c",
		"--since 1h":                   "k3jx0a 2w8q9z zz01yq | 0a0a0a 1b1b1b",
		"--since 2d":                   "k3jx0a 2w8q9z zz01yq | 0a0a0a 1b1b1b 2c2c2c",
		"--failed --since=6h":          "| 1b1b1b 2c2c2c",
		"--limit 1":                    "k3jx0a 2w8q9z zz01yq | 0a0a0a",
		"--limit 0 --watch --since 1s": "k3jx0a 2w8q9z zz01yq |",
	} {
		q, err := parseQuestion(append([]string{"builds"}, strings.Fields(options)...))
		if err != nil {
			t.Errorf("%s: %v", options, err)
			continue
		}
		b := newBuilds(underWay, ended, &q.filter, townTime())
		var ids []string
		for _, r := range b.UnderWay {
			ids = append(ids, r.ID)
		}
		ids = append(ids, "|")
		for _, r := range b.Ended {
			ids = append(ids, r.ID)
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("%s: got %s, want %s", options, got, want)
		}
	}
}

// Guards against options that mean something else than was said, or nothing.
func TestOptionsThatMakeNoSenseAreRefused(t *testing.T) {
	for words, want := range map[string]string{
		"builds --since":        "--since needs a value",
		"builds --since soon":   `--since takes a duration such as 30m, 12h or 7d, and not "soon"`,
		"builds --since=-1h":    `--since takes a duration such as 30m, 12h or 7d, and not "-1h"`,
		"builds --since 99999d": `--since takes a duration such as 30m, 12h or 7d, and not "99999d"`,
		"builds --limit=-1":     `--limit takes a number of builds, 0 for all, and not "-1"`,
		"builds --failed=yes":   "--failed takes no value",
		"builds --follow":       `builds knows no option "--follow" but --json, --watch, --principal, --builder, --system, --failed, --since, --limit`,
		"status --watch=0.5":    `--watch takes a number of seconds, 1 to 3600, and not "0.5"`,
		"status --watch 3601":   `--watch takes a number of seconds, 1 to 3600, and not "3601"`,
		"status --watch=NaN":    `--watch takes a number of seconds, 1 to 3600, and not "NaN"`,
		"log --watch":           `log knows no option "--watch" but --json, --follow`,
		"who -v":                `who knows no option "-v" but --json, --watch`,
	} {
		if _, err := parseQuestion(strings.Fields(words)); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", words, err, want)
		}
	}
	for words, want := range map[string]time.Duration{"status --watch": 2 * time.Second, "status --watch=5": 5 * time.Second, "status --watch 1.5 --json": 1500 * time.Millisecond} {
		if q, err := parseQuestion(strings.Fields(words)); err != nil || q.watch != want || len(q.args) != 0 {
			t.Errorf("%s: %+v, %v", words, q, err)
		}
	}
}

// Guards against an answer that comes once, that piles up on a terminal, that a program
// cannot take apart, or that goes on for nobody.
func TestWatchedAnswersComeAgain(t *testing.T) {
	p := newTown(t).proxy
	for _, c := range []struct {
		words string
		look  Look
		check func(piece string) bool
	}{
		{"help", Look{}, nil},
		{"queue --watch", Look{}, func(s string) bool { return s == "no build waits\n\n" }},
		{"queue --watch", Look{Terminal: true}, func(s string) bool { return s == "\x1b[Hno build waits\x1b[K\n\x1b[J" }},
		{"queue --watch --json", Look{Terminal: true}, func(s string) bool { return s == `{"queue_length":0,"queue":[]}`+"\n" }},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			out := &pieces{after: 3, stop: stop}
			if err := p.reply(ctx, &asker{access: &policy.Access{Principal: &p.policy.Current().Principals[0]}}, out, strings.Fields(c.words), c.look); err != nil {
				t.Errorf("%s: %v", c.words, err)
			}
			if c.check == nil {
				if len(out.all) != 1 {
					t.Errorf("%s came %d times", c.words, len(out.all))
				}
				return
			}
			if len(out.all) != 3 || slices.ContainsFunc(out.all, func(s string) bool { return !c.check(s) }) {
				t.Errorf("%s %+v: %q", c.words, c.look, out.all)
			}
		})
	}
}

// Guards against answers that go on and keep the proxy from its end, or end with it as if
// there were no more to say.
func TestWatchedAnswersEndWithTheProxy(t *testing.T) {
	l := newLab(t)
	for _, command := range []string{"status --watch 1", "queue --watch 3600"} {
		stopping := make(chan struct{})
		close(stopping)
		if got := l.run("alice", command, func(x *Exec) { x.Stopping = stopping }); got.status != 1 || got.stdout == "" || got.stderr != "nixbastion: "+ErrStops.Error()+"\n" {
			t.Errorf("%s: %+v", command, got)
		}
		if got := l.run("alice", strings.Fields(command)[0], func(x *Exec) { x.Stopping = stopping }); got.status != 0 || got.stdout == "" {
			t.Errorf("%s once: %+v", command, got)
		}
	}
}

// pieces collects what is written, and stops after some.
type pieces struct {
	all   []string
	after int
	stop  func()
}

func (p *pieces) Write(text []byte) (int, error) {
	p.all = append(p.all, string(text))
	if len(p.all) == p.after {
		p.stop()
	}
	return len(text), nil
}

// Guards against a key that learns what another domain builds, or that may not
// build and reads others' logs, or that asks for what is for the admin.
func TestBuildsStayInTheirDomain(t *testing.T) {
	b := newLabBuilder("b1")
	b.maxJobs = 2
	release := make(chan struct{})
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		nix.Line(log, "a line of its log")
		if drv.Env[0].Value == "hello-running" {
			<-release
		}
		return makeOutputs(ctx, b, log, drv)
	}
	l := newLab(t, b)
	running := l.begin("alice", "hello-running")
	defer func() { close(release); <-running }()
	runs := l.underWay("hello-running", isRunning)
	if err := <-l.begin("alice", "hello"); err != nil {
		t.Fatal(err)
	}
	r := l.ended("hello")
	if got := l.run("bob", "builds", nil); got.status != 0 || !strings.Contains(got.stdout, r.ID+"  hello") {
		t.Errorf("bob, of the same domain, reads %+v", got)
	}
	if got := l.run("bob", "log "+r.ID, nil); got.status != 0 || !strings.Contains(got.stdout, "a line of its log\n") {
		t.Errorf("bob reads the log: %+v", got)
	}
	for _, command := range []string{"builds", "builds --json", "queue", "log " + r.ID, "log hello", "log " + r.Derivation, "log " + runs.ID} {
		for _, principal := range []string{"eve", "reader"} {
			got := l.run(principal, command, nil)
			text := strings.ReplaceAll(got.stdout+got.stderr, strings.TrimPrefix(command, "log "), "")
			if strings.Contains(text, "hello") || strings.Contains(text, "alice") || strings.Contains(text, "a line") || strings.Contains(text, r.ID) || strings.Contains(text, runs.ID) {
				t.Errorf("%s asks %s: %+v", principal, command, got)
			}
			if refused := principal == "reader" || strings.HasPrefix(command, "log"); (got.status != 0) != refused {
				t.Errorf("%s asks %s: %+v", principal, command, got)
			}
		}
	}
	if got := l.run("alice", "who", nil); got.status != statusUsage || got.stdout != "" {
		t.Errorf("alice asks who: %+v", got)
	}
	if got := l.run("alice", "kill "+r.ID, nil); got.status != statusRefused {
		t.Errorf("alice kills: %+v", got)
	}
}

// Guards against a queue in an order that is not that of the router, and against one
// that takes the router's time for each build that waits.
func TestQueueIsInOrder(t *testing.T) {
	var queue []route.Queued
	for i := range 100 {
		queue = append(queue, route.Queued{Name: fmt.Sprint(i), Domain: "default", Waiting: route.Waiting{Ahead: (100 - i) / 50}})
	}
	q := newQueue(queue, &asker{}, nil, townTime())
	if !slices.IsSortedFunc(q.Queue, func(a, b waitingStatus) int { return a.Position - b.Position }) || q.QueueLength != 100 || q.Queue[0].Derivation != "51" {
		t.Errorf("the queue is %+v", q.Queue)
	}
	asked := 0
	q.expect(func(route.Request) route.Decision {
		asked++
		return route.Decision{Candidates: []route.Candidate{{Name: "b1", State: route.Busy, Terms: route.Terms{Wait: 40 * time.Second}}}}
	})
	if asked != maxExpected || q.Queue[0].startText() != "on b1 in 40s" || q.Queue[99].startText() != "-" {
		t.Errorf("asked %d times; the first starts %s, the last %s", asked, q.Queue[0].startText(), q.Queue[99].startText())
	}
	asked = 0
	few := newQueue(queue[49:53], &asker{}, nil, townTime())
	few.expect(func(route.Request) route.Decision {
		asked++
		return route.Decision{}
	})
	if asked != 2 {
		t.Errorf("asked for %d of 2 that are next", asked)
	}
}

// Guards against keys of the JSON that nobody is told of.
func TestJSONIsDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "docs", "admin.md"))
	if err != nil {
		t.Fatal(err)
	}
	sections := strings.Split(string(page), "\n### ")
	for section, answer := range map[string]any{
		"builds": buildsAnswer{}, "queue": queueAnswer{}, "who": whoAnswer{}, "status": statusAnswer{}, "why": whyAnswer{}, "log": logObject{},
	} {
		i := slices.IndexFunc(sections, func(s string) bool { return strings.HasPrefix(s, section+"\n") })
		if i < 0 {
			t.Errorf("there is no section %s", section)
			continue
		}
		for _, key := range jsonKeys(reflect.TypeOf(answer)) {
			inQueue := strings.HasPrefix(key, "queue.") || strings.HasPrefix(key, "build.") // described elsewhere
			if last := key[strings.LastIndex(key, ".")+1:]; !inQueue && !strings.Contains(sections[i], "`"+last+"`") {
				t.Errorf("%s does not tell of %s", section, key)
			}
		}
	}
	for _, key := range jsonKeys(reflect.TypeOf(waitingStatus{})) {
		if !strings.Contains(string(page), "`"+key+"`") {
			t.Errorf("nothing tells of %s of those that wait", key)
		}
	}
}

// jsonKeys are the keys that a type has as JSON, with those above them.
func jsonKeys(t reflect.Type) (keys []string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() {
		return nil
	}
	for i := range t.NumField() {
		key, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if key == "" {
			continue
		}
		keys = append(keys, key)
		for _, below := range jsonKeys(t.Field(i).Type) {
			keys = append(keys, key+"."+below)
		}
	}
	return keys
}
