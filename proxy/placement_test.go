package proxy

import (
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/route"
)

// Guards against a chain of builds that carries each output from one builder to the
// next.
func TestBuilderHoldsWhatItBuilt(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	l := newLab(t, b1, b2)
	result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
	mustSucceed(t, result, err)
	req := requestBy(l.proxy.policy.Current(), l.principal("alice"), "", "x86_64-linux", nil, nil)
	req.Inputs = []route.Input{{ID: l.proxy.router.Intern(labPath("hello").String()), Size: 1 << 20}}
	for _, c := range l.proxy.router.Explain(req).Candidates {
		if built := len(map[string]*labBuilder{"b1": b1, "b2": b2}[c.Name].built()) > 0; built != (c.Missing == 0) {
			t.Errorf("%s lacks %d bytes; it was built there: %v", c.Name, c.Missing, built)
		}
	}
}

// Guards what is learned of jobs against sources, which nobody builds.
func TestInputsThatWereBuiltAreJobs(t *testing.T) {
	made, source := &nix.PathInfo{Path: labPath("gcc-13.2.0-lib")}, &nix.PathInfo{Path: labPath("source")}
	made.Deriver = labPath("gcc-13.2.0.drv")
	if jobs := inputJobs([]*nix.PathInfo{made, source, made}); len(jobs) != 1 || jobs[0] != "gcc" {
		t.Errorf("jobs %q", jobs)
	}
}
