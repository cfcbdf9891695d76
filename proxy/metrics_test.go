package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/audit"
	"nixbastion/internal/metrics"
	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

// on are the labels of a series for the one system of a lab.
func builtOn(builder, result string) string {
	return fmt.Sprintf(`builds_total{builder=%q,result=%q,system="x86_64-linux"}`, builder, result)
}

func attempted(builder, result string) string {
	return fmt.Sprintf(`build_attempts_total{builder=%q,result=%q}`, builder, result)
}

// Guards against numbers that stand still while things happen, and so against
// dashboards and alerts that show a quiet proxy.
func TestClientsAndBuildsMoveTheirMetrics(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	s := l.serveMonitored(l.monitored())
	m := s.monitor
	m.rises("a login", func() { s.nix("alice") }, `ssh_connections_total{result="admitted"}`, `ssh_logins_total{result="success"}`,
		"ssh_connections", "ssh_sessions", "ssh_received_bytes_total", "ssh_sent_bytes_total")
	m.rises("a stranger's login", func() {
		if _, err := s.dial("alice", testKey("stranger")); err == nil {
			t.Error("a stranger came in")
		}
	}, `ssh_logins_total{result="refused"}`)
	m.rises("a scanner", func() {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
	}, `ssh_logins_total{result="failed"}`)
	m.rises("a trickling login", func() {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}, "ssh_logins_pending")

	c := &labClient{Client: s.nix("alice")}
	input := newLabFile(labPath("blueprint"), "some input")
	m.rises("an upload", func() {
		if err := c.upload(t.Context(), input); err != nil {
			t.Fatal(err)
		}
	}, `operation_duration_seconds_count{op="AddMultipleToStore"}`, "cache_added_paths_total", "cache_paths", "cache_size_bytes")
	m.rises("a query", func() { c.QueryPathInfo(t.Context(), input.info.Path) }, `operation_duration_seconds_count{op="QueryPathInfo"}`, "cache_hits_total")
	m.rises("a miss", func() {
		if _, err := c.NarFromPath(t.Context(), labPath("nowhere")); err == nil {
			t.Error("a path that is nowhere was given")
		}
	}, `operation_errors_total{op="NarFromPath"}`, "cache_misses_total")

	c = &labClient{Client: s.nix("alice")}
	m.rises("a build", func() {
		result, err := c.build(t.Context(), nix.Discard, "one", input.info.Path)
		mustSucceed(t, result, err)
	}, `build_requests_total{result="started"}`, builtOn("b1", "built"), attempted("b1", "answered"), `build_duration_seconds_count{system="x86_64-linux"}`,
		`queue_wait_seconds_count{system="x86_64-linux"}`, `builder_sent_bytes_total{builder="b1"}`, `builder_received_bytes_total{builder="b1"}`,
		`operation_duration_seconds_count{op="BuildDerivation"}`)
	m.becomes(`builder_sessions_idle{builder="b1"}`, 1)
	m.becomes(`builder_connections{builder="b1"}`, 1)
	m.rises("the same build again", func() {
		result, err := c.build(t.Context(), nix.Discard, "one", input.info.Path)
		mustSucceed(t, result, err)
	}, `build_requests_total{result="known"}`)
	ssh := l.must("alice", serveCommand, nil)
	m.rises("a query by the other protocol", func() { ssh.QueryValidPaths(t.Context(), []nix.StorePath{input.info.Path}, false) }, `operation_duration_seconds_count{op="QueryValidPaths"}`)

	before := m.numbers()
	for series := range before {
		for _, word := range []string{"alice", "stranger", "127.0.0.1", "blueprint"} {
			if strings.Contains(series, word) {
				t.Errorf("%s tells of %s", series, word)
			}
		}
	}
}

// Guards against a queue that nobody sees, and slots that count in one place alone.
func TestSlotsAndQueueAreTold(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	b.build = held(release)
	l := newLab(t, b)
	m := l.monitored()
	m.becomes(`builder_slots{builder="b1"}`, 1)
	m.becomes(`builder_slots_used{builder="b1"}`, 0)
	m.becomes(`queue_length{system="x86_64-linux"}`, 0)
	m.becomes("queue_oldest_wait_seconds", 0)
	ended := []chan error{l.begin("alice", "one")}
	m.becomes(`builder_slots_used{builder="b1"}`, 1)
	m.becomes(`builder_sessions{builder="b1"}`, 1)
	m.rises("an equal request", func() { ended = append(ended, l.begin("bob", "one")) }, `build_requests_total{result="joined"}`)
	m.rises("a request that waits", func() { ended = append(ended, l.begin("bob", "two")) }, `queue_length{system="x86_64-linux"}`, "queue_oldest_wait_seconds")
	close(release)
	for _, done := range ended {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	m.becomes(`queue_length{system="x86_64-linux"}`, 0)
	m.becomes("queue_oldest_wait_seconds", 0)
	m.becomes(`builder_slots_used{builder="b1"}`, 0)
}

// Guards against failures that all look alike: whose fault a build was decides who is
// woken.
func TestFailuresAreCountedByWhoseTheyAre(t *testing.T) {
	b := newLabBuilder("b1")
	answer := make(chan *nix.BuildResult, 1)
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		if result := <-answer; result != nil {
			return result, nil
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	l := newLab(t, b)
	m := l.monitored()
	builds := 0
	build := func() {
		builds++
		if _, err := l.client("alice").build(t.Context(), nix.Discard, fmt.Sprint("build", builds)); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct {
		what   string
		answer *nix.BuildResult
		series []string
	}{
		{"a build that fails", nix.Failure(nix.StatusPermanentFailure, "builder for 'x' failed with exit code 1"), []string{builtOn("b1", "failed"), attempted("b1", "answered")}},
		{"one that times out", nix.Failure(nix.StatusTimedOut, "timed out"), []string{builtOn("b1", "timed_out")}},
		{"one that prints too much", nix.Failure(nix.StatusLogLimitExceeded, "too much"), []string{builtOn("b1", "log_limit")}},
		{"one that another builder may run", nix.Failure(nix.StatusMiscFailure, "a 'x86_64-linux' with features {} is required to build '/nix/store/x.drv', but I am a 'riscv64-linux'"), []string{builtOn("", "no_builder"), attempted("b1", "mismatch")}},
		{"one on a full disk", nix.Failure(nix.StatusMiscFailure, diskFull), []string{builtOn("", "no_builder"), attempted("b1", "fault")}},
	} {
		answer <- c.answer
		m.rises(c.what, build, c.series...)
	}
	m.becomes(`builder_breaker_state{builder="b1"}`, 2)
	m.becomes(`builder_up{builder="b1"}`, 0)
	l.proxy.router.Suspend("b1", "", time.Time{})
	m.becomes(`builder_breaker_state{builder="b1"}`, 1)

	answer <- nil
	m.rises("one whose client leaves", func() {
		c := l.client("alice")
		began := make(chan struct{})
		go func() {
			close(began)
			c.build(t.Context(), nix.Discard, "left")
		}()
		<-began
		eventually(t, "it runs", func() bool { return l.proxy.router.Gauges().Builders[0].Busy == 1 })
		c.hangUp()
	}, builtOn("", "canceled"))
	l.proxy.router.Pardon("b1")
	m.becomes(`builder_breaker_state{builder="b1"}`, 0)
	b.die()
	m.rises("a builder that is gone", build, `builder_dials_failed_total{builder="b1"}`, builtOn("", "no_builder"))
	m.becomes(`builder_reachable{builder="b1"}`, 0)
	if path, drv := labDrv("foreign"); true {
		drv.Platform = "hostile\n{}\"-linux"
		m.rises("a system that nobody has", func() {
			l.client("alice").BuildDerivation(t.Context(), nix.Discard, path, drv, nix.BuildNormal)
		}, `builds_total{builder="",result="no_builder",system="other"}`)
	}
}

// Guards against an admin who ends builds and so sets off the alert that builders are
// missing, and against an end whose author the audit log does not have.
func TestAKilledBuildIsCanceledAndItsEndKept(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	defer close(release)
	b.build = held(release)
	l := newLab(t, b)
	book, m := l.audited(), l.monitored()
	running := l.begin("alice", "runs")
	l.underWay("runs", isRunning)
	queued := l.begin("bob", "queued")
	l.underWay("queued", func(r buildRecord) bool { return r.State == "waiting" })
	for i, name := range []string{"queued", "runs"} {
		m.rises(name, func() { l.change("kill", labPath(name+".drv").String(), "no time") }, builtOn("", "canceled"))
		if e := book.of(audit.Build)[i]; e.Drv != labPath(name+".drv").String() || e.Result != "MiscFailure" || !strings.Contains(e.Reason, "killed by root: no time") || (e.Builder == "b1") != (name == "runs") {
			t.Errorf("%s: %+v", name, e)
		}
	}
	<-running
	<-queued
	if n := m.numbers()[builtOn("", "no_builder")]; n != 0 {
		t.Errorf("%v builds without a builder", n)
	}
}

// Guards against states of builders that only people are told.
func TestStatesOfBuildersAreTold(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	m := l.monitored()
	state := func(name string) string { return "builder_" + name + `{builder="b1"}` }
	for _, name := range []string{"drained", "overloaded", "asleep"} {
		m.becomes(state(name), 0)
	}
	m.becomes(state("up"), 1)
	m.becomes(state("reachable"), 1)
	l.change("drain", "b1")
	m.becomes(state("drained"), 1)
	m.becomes(state("up"), 0)
	l.change("undrain", "b1")
	m.becomes(state("up"), 1)
	l.proxy.router.SetOverloaded("b1", "load 9")
	m.becomes(state("overloaded"), 1)
	m.becomes(state("up"), 0)
	l.proxy.router.SetOverloaded("b1", "")
	l.proxy.router.SetAsleep("b1", true, time.Minute)
	m.becomes(state("asleep"), 1)
	end := l.proxy.builds.copies.begin("b1")
	m.becomes(state("fetching_builds"), 1)
	end()
	ours, theirs := newLabFile(labPath("x"), "ours"), newLabFile(labPath("x"), "theirs")
	l.proxy.builds.differences.note("b1", ours.info, theirs.info)
	m.becomes(state("differing_inputs_total"), 1)
}

// Guards against a reload that fails a scrape, and a builder that stays on the dashboard
// when it is removed: neither what it did nor how it stands is told any more, though its
// last build runs on.
func TestScrapesDuringReloads(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	release := make(chan struct{})
	b1.build, b2.build = held(release), held(release)
	l := newLab(t, b1, b2)
	m := l.monitored()
	running := []chan error{l.begin("alice", "one"), l.begin("alice", "two")}
	m.becomes(`builder_slots_used{builder="b1"}`, 1)
	m.becomes(`builder_slots_used{builder="b2"}`, 1)
	with := l.policyText()
	done := make(chan struct{})
	scraped := make(chan struct{})
	go func() {
		defer close(scraped)
		for {
			select {
			case <-done:
				return
			default:
				if status, text := m.get("/metrics"); status != http.StatusOK {
					t.Errorf("scrape: %d %s", status, text)
				}
			}
		}
	}()
	m.rises("reloads", func() {
		for range 10 {
			l.withoutBuilder("b1")
			l.reload(with)
		}
		l.withoutBuilder("b1")
	}, `policy_reloads_total{result="success"}`)
	close(done)
	<-scraped
	close(release)
	for _, ended := range running {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	for series := range m.numbers() {
		if strings.Contains(series, `"b1"`) {
			t.Errorf("%s is still told", series)
		}
	}
	m.becomes(builtOn("other", "built"), 1)
	m.becomes(builtOn("b2", "built"), 1)

	if err := os.WriteFile(l.file, []byte("state_dir: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.rises("a reload that is refused", func() {
		if _, err := l.proxy.Reload("test"); err == nil {
			t.Error("it was taken")
		}
	}, `policy_reloads_total{result="refused"}`)
	m.becomes("policy_last_reload_successful", 0)
	l.reload(with)
	m.becomes("policy_last_reload_successful", 1)
}

// Guards against a balancer that sends clients to a proxy that cannot say yet which
// builders are there, or that is about to end, and against one that misses the end.
func TestReadyFollowsTheLifeOfTheProxy(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	l := newLab(t, b)
	l.repool(upstream.Options{OnState: l.proxy.router.SetUp, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		select {
		case <-release:
			return (&net.Dialer{}).DialContext(ctx, network, address)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}})
	m := l.monitored()
	expect := func(path string, status int, says string) {
		t.Helper()
		eventually(t, path+" says "+says, func() bool {
			got, body := m.get(path)
			return got == status && strings.Contains(body, says)
		})
	}
	expect("/ready", 503, errNotServing.Error())
	expect("/live", 200, "live")
	s := l.serveMonitored(m)
	expect("/ready", 503, errNotLookedYet.Error())
	m.becomes("ready", 0)
	close(release)
	expect("/ready", 200, "ready")
	m.becomes("ready", 1)
	m.becomes("draining", 0)
	expect("/draining", 503, "not draining")
	s.leave()
	expect("/ready", 503, errNotServing.Error())
	l.proxy.front.stop()
	expect("/ready", 503, errDraining.Error())
	expect("/draining", 200, "draining")
	m.becomes("draining", 1)
}

// Guards against refused connections and jumps that nobody counts.
func TestTheFrontCountsWhatItRefuses(t *testing.T) {
	numbers := metrics.New("test")
	m := watchMetrics(t, metrics.ServerOptions{Metrics: numbers})
	s := onLoopback(t, func(o *FrontOptions) {
		o.Metrics, o.Limits = numbers, Limits{Pending: 1, PendingStart: 1, PendingPerSource: 1}
		o.Jump = func(_ context.Context, _ *Identity, host string, _ uint32) (JumpConn, error) {
			switch host {
			case "nowhere":
				return nil, errors.New("no route to host")
			case "forbidden":
				return nil, refuseJump("not listed")
			}
			_, ours := newMemConn(netip.MustParseAddrPort("10.2.0.2:22"))
			return &memTarget{memConn: ours}, nil
		}
	})
	client := s.login("alice", testKey("alice"))
	m.rises("a jump", func() { tryJump(client, "builder1", 22) }, `ssh_jumps_total{result="opened"}`)
	m.rises("a forbidden jump", func() { tryJump(client, "forbidden", 22) }, `ssh_jumps_total{result="refused"}`)
	m.rises("a jump to nowhere", func() { tryJump(client, "nowhere", 22) }, `ssh_jumps_total{result="failed"}`)
	client.Close()
	m.rises("a crowd", func() {
		for range 2 {
			conn := s.socket()
			t.Cleanup(func() { conn.Close() })
		}
	}, `ssh_connections_total{result="refused"}`)
}
