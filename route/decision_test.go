package route

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"
)

func sameShape(a, b shape) bool {
	return a.domain == b.domain && a.system == b.system &&
		slices.Equal(a.hard, b.hard) && slices.Equal(a.soft, b.soft) && maps.Equal(a.needs, b.needs) && a.alone == b.alone &&
		slices.Equal(a.exclude, b.exclude) && slices.Equal(a.avoid, b.avoid)
}

func frozen() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// TestDecisionSaysWhy guards against a ranking that people cannot follow, and
// against an explanation that differs from what is done.
func TestDecisionSaysWhy(t *testing.T) {
	r := New(Options{Now: frozen})
	r.SetBuilders([]Builder{
		linux("b1", 2).with("kvm"), linux("b2", 4).with("kvm").fast(2), linux("b3", 1), arm("b4", 1).with("kvm"),
		linux("b5", 1).with("kvm"), linux("b6", 1).with("kvm"), linux("b7", 1).with("kvm"),
		{Name: "secret", Systems: map[string]float64{"x86_64-linux": 1}, MaxJobs: 1, Domains: []string{"other"}},
	})
	a, b := r.Intern("/nix/store/a"), r.Intern("/nix/store/b")
	r.NoteHeld("b2", a)
	r.SetUp("b5", false, "connection refused")
	r.Suspend("b6", "out of disk", frozen().Add(time.Minute))
	for range 3 {
		take(t, r, askLinux("kvm"))
	}
	req := askLinux("kvm")
	req.Inputs = []Input{{a, 1 << 20}, {b, 3 << 19}}
	req.Exclude = []Exclusion{{"b7", "lost the connection"}}

	want := `a 'x86_64-linux' with features {kvm}: goes to b2
  estimate: 1m0s at speed 1, a guess
  b2: 3/4 busy, speed 2, 1.50 MiB missing; done in 30s (build 30s, crowding 0.2s, penalty 0.2s)
  b1: 0/2 busy, speed 1, 2.50 MiB missing; done in 1m0s (build 1m0s, penalty 0.4s)
  b6: suspended until 03:05:05 UTC: out of disk
  b5: down: connection refused
  b7: excluded: lost the connection
  b3: lacks feature kvm
  b4: system is aarch64-linux, not x86_64-linux`
	if got := r.Explain(req).String(); got != want {
		t.Errorf("explained:\n%s\nwant:\n%s", got, want)
	}
	lease := take(t, r, req)
	if lease.Builder() != "b2" {
		t.Errorf("decided for %s", lease.Builder())
	}
}

// TestDecisionSaysWhyItWaits covers the outcomes in which nobody gets a place.
func TestDecisionSaysWhyItWaits(t *testing.T) {
	r := newRouter(linux("b1", 1))
	take(t, r, askLinux())
	limited := askLinux()
	limited.PrincipalMaxJobs = 1
	elsewhere := askLinux()
	elsewhere.Domain = "elsewhere"
	tests := []struct {
		req  Request
		want string
	}{
		{askLinux(), "a 'x86_64-linux' with features {}: waits for b1\n  estimate: 1m0s at speed 1, a guess\n  b1: 1/1 busy, speed 1, nothing missing; done in 2m3s (wait 1m0s, build 1m0s, crowding 0.6s, penalty 2.4s)"},
		{limited, "a 'x86_64-linux' with features {}: waits, alice runs 1 of at most 1 builds\n  estimate: 1m0s at speed 1, a guess\n  b1: 1/1 busy, speed 1, nothing missing; done in 2m3s (wait 1m0s, build 1m0s, crowding 0.6s, penalty 2.4s)"},
		{askLinux("kvm"), "a 'x86_64-linux' with features {kvm}: no builder can run it\n  estimate: 1m0s at speed 1, a guess\n  b1: lacks feature kvm"},
		{elsewhere, "a 'x86_64-linux' with features {}: there is no builder\n  estimate: 1m0s at speed 1, a guess"},
	}
	for _, test := range tests {
		if got := r.Explain(test.req).String(); got != test.want {
			t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
		}
	}
	r.SetUp("b1", false, "")
	want := "a 'x86_64-linux' with features {}: every builder that could run it is down\n  estimate: 1m0s at speed 1, a guess\n  b1: down"
	if got := r.Explain(askLinux()).String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if len(r.principals) != 1 || len(r.lanes) != 0 {
		t.Errorf("explaining left %d principals and %d lanes", len(r.principals), len(r.lanes))
	}
}

// TestSpeedSharesTheWork guards against a fast builder that idles, and against
// speeds of systems that are not looked at.
func TestSpeedSharesTheWork(t *testing.T) {
	emulated := linux("c", 8)
	emulated.Systems = map[string]float64{"x86_64-linux": 0.5, "aarch64-linux": 1}
	r := newRouter(linux("a", 8).fast(2), linux("b", 8), emulated)
	for range 14 {
		take(t, r, askLinux())
	}
	for name, want := range map[string]int{"a": 8, "b": 6, "c": 0} {
		if got := busy(r, name); got != want {
			t.Errorf("%s runs %d, want %d", name, got, want)
		}
	}
}

// TestNobodyCanRunIt guards against requests that wait for ever, and against a
// refusal that does not name every builder of the domain with what it lacks, or
// names one of another domain.
func TestNobodyCanRunIt(t *testing.T) {
	secret := arm("secret", 1)
	secret.Domains = []string{"other"}
	r := newRouter(linux("b1", 1), arm("b2", 1).with("kvm").only("big-parallel"), secret)
	elsewhere := ask("aarch64-linux")
	elsewhere.Domain = "elsewhere"
	excluded := askLinux()
	excluded.Exclude = []Exclusion{{"b1", "lost the connection"}}
	named := ask("aarch64-linux", "kvm")
	named.Name = "/nix/store/x.drv"
	tests := []struct {
		name string
		req  Request
		kind Kind
		want string
	}{
		{"nobody matches", named, NoneMatches, "a 'aarch64-linux' with features {kvm} is required to build '/nix/store/x.drv', but no builder can run it:\n" +
			"  b1: system is x86_64-linux, not aarch64-linux; lacks feature kvm\n  b2: needs mandatory feature big-parallel"},
		{"nobody is there", elsewhere, NoneMatches, "a 'aarch64-linux' with features {} is required to build, but domain 'elsewhere' has no builder"},
		{"tried everywhere", excluded, AllExcluded, "a 'x86_64-linux' with features {} is required to build, but no builder that can run it is left:\n" +
			"  b1: excluded: lost the connection\n  b2: system is aarch64-linux, not x86_64-linux; needs mandatory feature big-parallel"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { refused(t, r, test.req, test.kind, test.want) })
	}
	r.SetUp("b1", false, "no route to host")
	refused(t, r, askLinux(), AllDown, "a 'x86_64-linux' with features {} is required to build, but no builder that can run it is up:\n"+
		"  b1: down: no route to host\n  b2: system is aarch64-linux, not x86_64-linux; needs mandatory feature big-parallel")
	if len(r.lanes)+len(r.principals) != 0 {
		t.Errorf("left %d lanes and %d principals", len(r.lanes), len(r.principals))
	}
}

func refused(t *testing.T, r *Router, req Request, kind Kind, want string) {
	t.Helper()
	_, err := r.Acquire(context.Background(), req, func(w Waiting) { t.Errorf("waited: %s", w) })
	var none *NoBuilderError
	if !errors.As(err, &none) {
		t.Fatalf("got %v", err)
	}
	if none.Kind != kind || none.Error() != want {
		t.Errorf("got kind %d:\n%s\nwant kind %d:\n%s", none.Kind, none, kind, want)
	}
}

// TestWaitingIsASentence guards what people read while they wait.
func TestWaitingIsASentence(t *testing.T) {
	two := []BuilderReason{{"b1", "2/2 busy"}, {"b2", "lacks feature kvm"}}
	tests := []struct {
		waiting Waiting
		want    string
	}{
		{Waiting{Ahead: 3, Builders: two}, "waiting: 3 ahead; b1 2/2 busy, b2 lacks feature kvm"},
		{Waiting{Builders: two[:1]}, "waiting: next in the queue; b1 2/2 busy"},
		{Waiting{Limit: "alice runs 4 of at most 4 builds", Builders: two[:1]}, "waiting: next in the queue; alice runs 4 of at most 4 builds; b1 2/2 busy"},
		{Waiting{Ahead: 1, Builder: "b1", Wait: 40 * time.Second, Builders: two[:1], More: 2}, "waiting: 1 ahead; for b1 in about 40s; b1 2/2 busy and 2 more"},
	}
	for _, test := range tests {
		if got := test.waiting.String(); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}
