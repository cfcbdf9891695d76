package proxy

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/policy"
)

// withGrace gives a lab's builders another grace.
func (l *lab) withGrace(grace string) {
	l.Helper()
	l.reload(strings.ReplaceAll(l.policyText(), "startup_grace: 0s", "startup_grace: "+grace))
}

// Guards against builds that fail in the moments after the start of the proxy, or of
// the whole room, since no builder is up yet.
func TestBuildsWaitForBuildersThatWereNotUpYet(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	l := newLab(t, b1, b2)
	late := &bed{labBuilder: b1, t: t, address: b1.listener.Addr().String()}
	b1.die()
	b2.die()
	l.withGrace("1h")
	ended := l.begin("alice", "one")
	eventually(t, "the build waits", func() bool {
		status := l.proxy.router.Status()
		return len(status.Queue) == 1 && status.Builders[0].Trouble != "" && status.Builders[1].Trouble != ""
	})
	if reason := l.proxy.refusal(&policy.Principal{Domain: "default", NoBuilder: policy.NoBuilderRefuse}); !strings.Contains(reason, "b1 is down") {
		t.Errorf("who is to be sent away hears %q", reason)
	}
	if err := <-l.begin("eve", "other"); err == nil || !strings.Contains(err.Error(), "domain 'other' has no builder") {
		t.Errorf("what nobody can ever build: %v", err)
	}
	late.getUp()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	l.withGrace("0s")
}

// Guards against builds that wait for a builder which the admin has taken away.
func TestDrainedBuilderHasNoGrace(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	l.withGrace("1h")
	l.change("drain", "b1", "new disk")
	if err := <-l.begin("alice", "one"); err == nil || !strings.Contains(err.Error(), "b1: drained: new disk") {
		t.Errorf("a build: %v", err)
	}
	l.change("undrain", "b1")
	if err := <-l.begin("alice", "two"); err != nil {
		t.Errorf("a build after undrain: %v", err)
	}
}

// Guards against a grace that has no end.
func TestGraceEnds(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	b.die()
	l.withGrace("2s")
	for range 2 {
		err := <-l.begin("alice", "one")
		if err == nil || !strings.Contains(err.Error(), "b1: down: ") {
			t.Errorf("a build: %v", err)
		}
	}
	if left := l.proxy.builds.grace.left("b1", 2*time.Second); left != 0 {
		t.Errorf("%s are left", left)
	}
}

// Guards against a builder that a reload brings and that has no time to come up, and
// against a reload that gives all others another grace.
func TestGraceIsEachBuildersOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g grace
		named := func(names ...string) (builders []policy.Builder) {
			for _, name := range names {
				builders = append(builders, policy.Builder{Name: name})
			}
			return builders
		}
		want := func(builder string, want time.Duration) {
			t.Helper()
			if got := g.left(builder, time.Minute); got != want {
				t.Errorf("%s has %s left, want %s", builder, got, want)
			}
		}
		g.update(named("b1"))
		time.Sleep(20 * time.Second)
		g.update(named("b1", "b2"))
		want("b1", 40*time.Second)
		want("b2", time.Minute)
		time.Sleep(time.Minute)
		want("b1", 0)
		want("b2", 0)
		g.update(named("b2"))
		g.update(named("b1", "b2"))
		want("b1", time.Minute)
		want("b2", 0)
		want("b3", 0)
	})
}
