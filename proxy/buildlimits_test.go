package proxy

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
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
