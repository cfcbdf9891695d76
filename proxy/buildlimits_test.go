package proxy

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

func logLine(text string) nix.LogMessage {
	return nix.LogMessage{Kind: nix.LogResult, ID: 1, Type: nix.ResultBuildLogLine, Fields: []nix.LogField{nix.TextField(text)}}
}

// inWatch runs a build under limits and returns the end that they gave it, if
// they did.
func inWatch(t *testing.T, limits nix.BuildLimits, build func(nix.Logger)) (end *limitError) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, dog := watch(t.Context(), &order{drvPath: labPath("x.drv"), limits: buildLimits{BuildLimits: limits}}, nix.Discard)
		build(dog)
		synctest.Wait()
		end, _ = context.Cause(ctx).(*limitError)
		dog.stop()
	})
	return end
}

// Guards against limits that are forgotten, or that end what keeps to them.
func TestBuildsAreEndedByTheLimitsOfTheirClient(t *testing.T) {
	prefix := "building of '" + labPath("x.drv").String() + "' "
	talks := func(log nix.Logger) {
		for range 10 {
			time.Sleep(9 * time.Second)
			log.Log(logLine("123456789"))
		}
	}
	for name, tc := range map[string]struct {
		limits nix.BuildLimits
		build  func(nix.Logger)
		status nix.BuildStatus
		text   string
	}{
		"no limits":        {nix.BuildLimits{}, talks, 0, ""},
		"within all":       {nix.BuildLimits{MaxSilent: 10 * time.Second, Timeout: 91 * time.Second, MaxLogSize: 100}, talks, 0, ""},
		"silence":          {nix.BuildLimits{MaxSilent: 8 * time.Second}, talks, nix.StatusTimedOut, "timed out after 8 seconds of silence"},
		"time":             {nix.BuildLimits{Timeout: 89 * time.Second}, talks, nix.StatusTimedOut, "timed out after 89 seconds"},
		"log":              {nix.BuildLimits{MaxLogSize: 99}, talks, nix.StatusLogLimitExceeded, "killed after writing more than 99 bytes of log output"},
		"what came first":  {nix.BuildLimits{MaxSilent: 8 * time.Second, MaxLogSize: 1}, talks, nix.StatusTimedOut, "timed out after 8 seconds of silence"},
		"plain text talks": {nix.BuildLimits{MaxSilent: 8 * time.Second}, func(log nix.Logger) { time.Sleep(7 * time.Second); nix.Line(log, "x"); time.Sleep(7 * time.Second) }, 0, ""},
		"progress is silence": {nix.BuildLimits{MaxSilent: 8 * time.Second}, func(log nix.Logger) {
			for range 9 {
				time.Sleep(time.Second)
				log.Log(nix.LogMessage{Kind: nix.LogResult, Type: nix.ResultProgress, Fields: []nix.LogField{nix.IntField(1)}})
			}
		}, nix.StatusTimedOut, "timed out after 8 seconds of silence"},
	} {
		t.Run(name, func(t *testing.T) {
			end := inWatch(t, tc.limits, tc.build)
			switch {
			case tc.text == "" && end != nil:
				t.Errorf("ended: %+v", end)
			case tc.text != "" && (end == nil || end.status != tc.status || end.text != prefix+tc.text+" (a limit of the client)"):
				t.Errorf("got %+v, want %s: %s", end, tc.status, tc.text)
			}
		})
	}
}

// Guards against a build that goes on at the builder after its limit, is tried
// elsewhere, or is attached to by a client that set no limit.
func TestALimitEndsTheBuildOnItsBuilder(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	for _, b := range []*labBuilder{b1, b2} {
		b.maxJobs = 2
		b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
			log.Log(nix.LogMessage{Kind: nix.LogStartActivity, ID: 1, Type: nix.ActivityBuild})
			log.Log(logLine(strings.Repeat("x", 100)))
			<-ctx.Done()
			return nil, ctx.Err()
		}
	}
	l := newLab(t, b1, b2)
	patient := l.client("bob")
	go patient.build(t.Context(), nix.Discard, "endless")
	eventually(t, "the patient one runs", func() bool { return len(b1.built())+len(b2.built()) == 1 })

	s := l.proxy.newSession(l.principal("alice"), l.proxy.log)
	defer s.close()
	s.SetBuildLimits(nix.BuildLimits{MaxLogSize: 50})
	path, drv := labDrv("endless")
	result, err := s.BuildDerivation(t.Context(), nix.Discard, path, drv, nix.BuildNormal)
	if err != nil || result.Status != nix.StatusLogLimitExceeded || !strings.Contains(result.ErrorMsg, "more than 50 bytes of log output") {
		t.Errorf("result %+v, %v", result, err)
	}
	eventually(t, "the builder was told", func() bool { return b1.endedBuilds()+b2.endedBuilds() == 1 })
	if n := len(b1.built()) + len(b2.built()); n != 2 {
		t.Errorf("%d builds were begun", n)
	}
	patient.hangUp()
}

// Guards against a client who asks for more than the policy allows, and against one
// who asks for less and does not get it.
func TestTheStricterLimitCounts(t *testing.T) {
	l := newLabOf(t, labPolicy{extra: "build_limits:\n  - {principal: alice, max_silent: 1m, timeout: 1h, max_log_size: 1KiB, cores: 3}\n"})
	s := l.proxy.newSession(l.principal("alice"), l.proxy.log)
	defer s.close()
	s.SetBuildLimits(nix.BuildLimits{MaxSilent: 30 * time.Second, Timeout: 2 * time.Hour})
	got := s.limitsOf(labPath("x.drv"), "x86_64-linux")
	if want := (nix.BuildLimits{MaxSilent: 30 * time.Second, Timeout: time.Hour, MaxLogSize: 1024}); got.BuildLimits != want || got.cores != 3 {
		t.Errorf("got %+v, want %+v and 3 cores", got, want)
	}
	// What clients ask for is nothing that sessions are kept for.
	if want := (upstream.Settings{MaxSilent: time.Minute, Timeout: time.Hour, MaxLogSize: 1024, Cores: 3}); got.settings() != want {
		t.Errorf("builders are told %+v, want %+v", got.settings(), want)
	}
	all := got.all()
	for kind, want := range [...]string{silence: "a limit of the client", deadline: "timeout of build_limits in the proxy's policy", logSize: "max_log_size of build_limits in the proxy's policy"} {
		if got := all[kind].whose(); got != want {
			t.Errorf("limit %d is %q, want %q", kind, got, want)
		}
	}
}

// Guards against a user who looks for a limit where it is not.
func TestWhoseLimitABuilderKeptIsSaid(t *testing.T) {
	limits := buildLimits{BuildLimits: nix.BuildLimits{MaxSilent: 2 * time.Second, Timeout: time.Minute}, policy: nix.BuildLimits{Timeout: time.Minute}}
	for text, want := range map[string]string{
		"building of '\x1b[35;1m/nix/store/x.drv\x1b[0m' timed out after \x1b[35;1m60\x1b[0m seconds": "(timeout of build_limits in the proxy's policy)",
		"building of 'x' timed out after 2 seconds of silence":                                        "(a limit of the client)",
		"building of 'x' timed out after 2 seconds":                                                   "(a limit of builder 'b1' itself)",
		"building of 'x' timed out after 160 seconds of silence":                                      "(a limit of builder 'b1' itself)",
	} {
		result := nix.Failure(nix.StatusTimedOut, "%s", text)
		limits.explain(result, "b1")
		if !strings.HasSuffix(result.ErrorMsg, text+" "+want) {
			t.Errorf("%q, want %q", result.ErrorMsg, want)
		}
	}
	limits.policy.MaxSilent = 2 * time.Second
	result := nix.Failure(nix.StatusTimedOut, "timed out after 2 seconds") // as Nix 2.34 says of silence
	if limits.explain(result, "b1"); !strings.HasSuffix(result.ErrorMsg, "(max_silent of build_limits in the proxy's policy)") {
		t.Errorf("%q, want the policy's limit of silence", result.ErrorMsg)
	}
	result = nix.Failure(nix.StatusPermanentFailure, "failed")
	if limits.explain(result, "b1"); result.ErrorMsg != "failed" {
		t.Errorf("another failure became %q", result.ErrorMsg)
	}
}

// Guards against limits of the policy that nobody keeps, that reach no builder, that
// are tried elsewhere, and that are put on other principals' builds, which share
// nothing with those under limits.
func TestThePolicysLimitsAreKeptAndTold(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	for _, b := range []*labBuilder{b1, b2} {
		b.maxJobs = 2
		b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
			log.Log(nix.LogMessage{Kind: nix.LogStartActivity, ID: 1, Type: nix.ActivityBuild})
			log.Log(logLine(strings.Repeat("x", 2000)))
			<-ctx.Done()
			return nil, ctx.Err()
		}
	}
	l := newLabOf(t, labPolicy{extra: "build_limits:\n  - {principal: alice, name: \"end*\", max_log_size: 1KiB, cores: 3}\n"}, b1, b2)
	free := l.client("bob")
	go free.build(t.Context(), nix.Discard, "endless")
	eventually(t, "the one without limits runs", func() bool { return len(b1.built())+len(b2.built()) == 1 })
	result, err := l.client("alice").build(t.Context(), nix.Discard, "endless")
	if err != nil || result.Status != nix.StatusLogLimitExceeded ||
		!strings.HasSuffix(result.ErrorMsg, "more than 1024 bytes of log output (max_log_size of build_limits in the proxy's policy)") {
		t.Errorf("result %+v, %v", result, err)
	}
	eventually(t, "the builder was told", func() bool { return b1.endedBuilds()+b2.endedBuilds() == 1 })
	if n := len(b1.built()) + len(b2.built()); n != 2 {
		t.Errorf("%d builds were begun", n)
	}
	commands := append(b1.executed(), b2.executed()...)
	if !slices.Contains(commands, "nix-daemon --stdio --option cores 3 --option max-build-log-size 1024") {
		t.Errorf("builders ran %q", commands)
	}
	free.hangUp()
}
