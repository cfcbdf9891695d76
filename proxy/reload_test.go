package proxy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/nix"
)

// replaceIn changes one builder's line of the policy.
func (l *lab) replaceIn(builder string, replacements ...string) {
	l.Helper()
	parts := strings.SplitAfter(l.policyText(), "\n")
	i := slices.IndexFunc(parts, func(line string) bool { return strings.Contains(line, "name: "+builder+",") })
	if i < 0 {
		l.Fatalf("no builder %s in the policy", builder)
	}
	changed := strings.NewReplacer(replacements...).Replace(parts[i])
	if changed == parts[i] {
		l.Fatalf("nothing to replace in %q", parts[i])
	}
	parts[i] = changed
	l.reload(strings.Join(parts, ""))
}

// Guards against a reload that costs running builds, or their outputs: whatever it
// changes of their builder, they end there, and what waits is looked at anew.
func TestReloadEndsNoBuild(t *testing.T) {
	other := newLabBuilder("other")
	other.start(t)
	for name, change := range map[string]func(l *lab, b *labBuilder){
		"removed":      func(l *lab, b *labBuilder) { l.withoutBuilder("b1") },
		"fewer slots":  func(l *lab, b *labBuilder) { l.replaceIn("b1", "max_jobs: 3", "max_jobs: 1") },
		"features":     func(l *lab, b *labBuilder) { l.replaceIn("b1", "systems:", "mandatory_features: [kvm], systems:") },
		"other system": func(l *lab, b *labBuilder) { l.replaceIn("b1", "x86_64-linux", "riscv64-linux") },
		"domains":      func(l *lab, b *labBuilder) { l.replaceIn("b1", "domains: [default]", "domains: [other]") },
		"host key": func(l *lab, b *labBuilder) {
			l.replaceIn("b1", authorizedLine(b.hostKey), authorizedLine(testKey("another")))
		},
		"address": func(l *lab, b *labBuilder) {
			l.replaceIn("b1", b.listener.Addr().String(), other.listener.Addr().String(), authorizedLine(b.hostKey), authorizedLine(other.hostKey))
		},
		"there and back": func(l *lab, b *labBuilder) {
			text := l.policyText()
			l.withoutBuilder("b1")
			l.reload(text)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
			release, read := make(chan struct{}), make(chan struct{})
			b1.maxJobs, b1.build = 3, held(release)
			b1.onNar = func(context.Context, nix.StorePath) { <-read }
			b2.build = held(release)
			l := newLab(t, b1, b2)
			l.proxy.router.Suspend("b1", "not yet", time.Now().Add(time.Hour))
			elsewhere := l.begin("alice", "elsewhere")
			eventually(t, "b2 is busy", func() bool { return len(b2.built()) == 1 })
			l.proxy.router.Suspend("b1", "", time.Time{})
			running := []chan error{l.begin("alice", "one"), l.begin("bob", "two"), l.begin("alice", "three")}
			eventually(t, "three builds run on b1", func() bool { return len(b1.built()) == 3 })
			queued := l.begin("bob", "queued")
			eventually(t, "the fourth waits", func() bool { return len(l.proxy.router.Status().Queue) == 1 })
			change(l, b1)
			close(release)
			eventually(t, "the outputs are on their way", func() bool { return len(b1.given()) > 0 })
			close(read)
			for _, ended := range append(running, elsewhere, queued) {
				if err := <-ended; err != nil {
					t.Errorf("one that ran or waited: %v", err)
				}
			}
			if err := <-l.begin("alice", "last"); err != nil {
				t.Errorf("one that came later: %v", err)
			}
			if name == "removed" || name == "address" {
				eventually(t, "the old connections are closed", func() bool { return b1.connections() == 0 })
			}
		})
	}
}

func (l *lab) withoutBuilder(name string) {
	l.Helper()
	kept := slices.DeleteFunc(strings.SplitAfter(l.policyText(), "\n"), func(line string) bool { return strings.Contains(line, "name: "+name+",") })
	l.reload(strings.Join(kept, ""))
}

// Guards against a queue that sees a new builder only when something ends elsewhere,
// and one that waits for what a reload has taken away.
func TestReloadLooksAtTheQueueAtOnce(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	release := make(chan struct{})
	b1.build = held(release)
	l := newLab(t, b1, b2)
	text := l.policyText()
	l.withoutBuilder("b2")
	running := l.begin("alice", "one")
	eventually(t, "the build runs", func() bool { return len(b1.built()) == 1 })
	second := l.begin("bob", "two")
	eventually(t, "the second waits", func() bool { return len(l.proxy.router.Status().Queue) == 1 })
	l.reload(text)
	if err := <-second; err != nil || len(b2.built()) != 1 {
		t.Errorf("with a new builder: %v", err)
	}
	l.withoutBuilder("b2")
	third := l.begin("bob", "three")
	eventually(t, "the third waits", func() bool { return len(l.proxy.router.Status().Queue) == 1 })
	l.replaceIn("b1", "x86_64-linux", "riscv64-linux")
	if err := <-third; err == nil || !strings.Contains(err.Error(), "system is riscv64-linux") {
		t.Errorf("with nobody left: %v", err)
	}
	close(release)
	if err := <-running; err != nil {
		t.Error(err)
	}
}

// Guards against builds that wait under the limit of before until their principal asks
// for another one.
func TestReloadChangesLimitsOfWhoWaits(t *testing.T) {
	b1 := newLabBuilder("b1")
	release := make(chan struct{})
	b1.maxJobs, b1.build = 4, held(release)
	l := newLab(t, b1)
	l.edit("{name: bob, role: full,", "{name: bob, role: full, max_jobs: 1,")
	ended := []chan error{l.begin("bob", "one"), l.begin("bob", "two"), l.begin("bob", "three")}
	eventually(t, "two wait", func() bool { return len(l.proxy.router.Status().Queue) == 2 })
	l.edit("max_jobs: 1,", "max_jobs: 2,")
	eventually(t, "another one runs", func() bool { return len(b1.built()) == 2 && len(l.proxy.router.Status().Queue) == 1 })
	close(release)
	for _, done := range ended {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Guards against a build that goes wrong because a reload came between the choice of
// its builder and its session there, again and again.
func TestReloadsDuringBuildsFailNone(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	b1.maxJobs, b2.maxJobs = 2, 2
	l := newLab(t, b1, b2)
	text, moved := l.policyText(), newLabBuilder("b1")
	moved.start(t)
	texts := []string{
		text,
		strings.ReplaceAll(text, "max_jobs: 2", "max_jobs: 1"),
		strings.NewReplacer(b1.listener.Addr().String(), moved.listener.Addr().String()).Replace(text),
		strings.ReplaceAll(text, "  - {name: b1,", "  - {name: b3,"),
	}
	done := make(chan error, 1)
	go func() {
		var errs []error
		for i := range 40 {
			errs = append(errs, <-l.begin([]string{"alice", "bob"}[i%2], strings.Repeat("x", i+1)))
		}
		done <- errors.Join(errs...)
	}()
	for i := 0; ; i++ {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			if i < 10 {
				t.Logf("only %d reloads", i)
			}
			return
		default:
			l.reload(texts[i%len(texts)])
		}
	}
}
