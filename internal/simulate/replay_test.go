package simulate

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/tracefile"
)

func read(t *testing.T, text string, machines []Machine) (*Trace, error) {
	t.Helper()
	return Read([]*tracefile.Reader{tracefile.NewReader("trace", strings.NewReader(text))}, machines)
}

func mustRead(t *testing.T, text string, machines []Machine) *Trace {
	t.Helper()
	trace, err := read(t, text, machines)
	if err != nil {
		t.Fatal(err)
	}
	return trace
}

// lineOf is a line of a trace; more is added as it stands.
func lineOf(principal, drv string, asked int, more string) string {
	return fmt.Sprintf(`{"principal":%q,"drv":%q,"name":"%s-1","asked":"2026-01-30T12:00:%02dZ","system":%q,"seconds":10%s}`+"\n",
		principal, drv, drv, asked, linux, more)
}

var pair = []Machine{host("a", 1, 1), host("b", 1, 1)}

// Guards against a history in which the user of an output stands before its maker,
// or names it by its path, being simulated as if nothing had to be waited for.
func TestInputsThatOthersBuildAreDependencies(t *testing.T) {
	trace := mustRead(t,
		lineOf("anna", "user", 2, `,"inputs":[{"path":"/lib","size":7},{"path":"/src","size":5},{"drv":"tool"}]`)+
			lineOf("anna", "lib", 1, `,"outputs":[{"path":"/lib","size":7}]`)+
			lineOf("anna", "tool", 1, ""), pair)
	var names []string
	for _, b := range trace.Builds {
		names = append(names, b.Name)
	}
	if want := []string{"lib-1", "tool-1", "user-1"}; !reflect.DeepEqual(names, want) {
		t.Fatalf("builds are %q, expected %q", names, want)
	}
	user := trace.Builds[2]
	if !reflect.DeepEqual(user.Deps, []int{0, 1}) || !reflect.DeepEqual(user.Sources, []Source{{"/src", 5}}) {
		t.Errorf("the last needs builds %v and sources %v", user.Deps, user.Sources)
	}
	if trace.Bound() != 20*time.Second {
		t.Errorf("the bound is %v, expected 20 s for the chain", trace.Bound())
	}
}

// Lines of one derivation are one build that several want; one principal wants it
// once, from the first time on.
func TestEqualDerivationsAreOneBuild(t *testing.T) {
	trace := mustRead(t, lineOf("anna", "x", 5, "")+lineOf("bert", "x", 7, "")+lineOf("anna", "x", 9, ""), pair)
	want := []Client{{"anna", []Ask{{0, 0}}}, {"bert", []Ask{{0, 2 * time.Second}}}}
	if len(trace.Builds) != 1 || !reflect.DeepEqual(trace.Clients, want) {
		t.Errorf("%d builds for %v, expected one for %v", len(trace.Builds), trace.Clients, want)
	}
}

// Domains share neither builds nor machines that are not for both.
func TestDomainsShareNothing(t *testing.T) {
	machines := []Machine{host("a", 1, 1), host("b", 1, 1)}
	machines[0].Domains, machines[1].Domains = []string{"default"}, []string{"lab"}
	trace := mustRead(t, lineOf("anna", "x", 1, "")+lineOf("anna", "x", 1, `,"domain":"lab"`), machines)
	if len(trace.Builds) != 2 || len(trace.Clients) != 2 {
		t.Fatalf("%d builds for %d clients, expected two of each", len(trace.Builds), len(trace.Clients))
	}
	for i := range trace.Builds {
		if fit := trace.fitting(&trace.Builds[i]); len(fit) != 1 || machines[fit[0]].Domains[0] != trace.Builds[i].Domain {
			t.Errorf("%s of domain %s may run on %v", trace.Builds[i].Name, trace.Builds[i].Domain, fit)
		}
	}
}

// A build that was asked for the moment its input was there had been waiting for it:
// with faster builders it would have been asked for earlier. One that came an hour
// later would not.
func TestWhoWaitedForAnInputWantedBothAtOnce(t *testing.T) {
	lib := lineOf("anna", "lib", 1, `,"ended":"2026-01-30T12:00:30Z"`)
	for asked, want := range map[int]time.Duration{31: 0, 39: 0, 45: 44 * time.Second, 20: 19 * time.Second} {
		trace := mustRead(t, lib+lineOf("anna", "user", asked, `,"inputs":[{"drv":"lib"}]`), pair)
		if got := trace.Clients[0].Asks[1].At; got != want {
			t.Errorf("asked for at :%d after an input that came at :30: counts from %v, expected %v", asked, got, want)
		}
	}
}

func TestBuildersCanStandInTheFirstLine(t *testing.T) {
	trace := mustRead(t, `{"builders":[{"name":"m","systems":{"x86_64-linux":1},"mandatory_features":["kvm"]}]}`+"\n"+
		lineOf("anna", "x", 1, `,"features":["kvm"]`), nil)
	want := Machine{Name: "m", Systems: map[string]float64{linux: 1}, Mandatory: []string{"kvm"}, Slots: 1, Speed: 1, Link: defaultLink}
	if !reflect.DeepEqual(trace.Machines, []Machine{want}) {
		t.Errorf("machines are %+v, expected %+v", trace.Machines, want)
	}
}

func TestTracesThatMakeNoSenseAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"empty":         {"\n", "no builds are in the trace"},
		"no builders":   {lineOf("anna", "x", 1, ""), "no builders are known"},
		"a circle":      {lineOf("anna", "a", 1, `,"inputs":[{"drv":"b"}]`) + lineOf("anna", "b", 1, `,"inputs":[{"drv":"a"}]`), "trace:1: the builds that it needs need it too"},
		"no such thing": {lineOf("anna", "x", 1, `,"features":["kvm"]`), "no builder can run x-1"},
	} {
		machines := pair
		if name == "no builders" {
			machines = nil
		}
		if _, err := read(t, c.text, machines); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, expected %q", name, err, c.want)
		}
	}
}

// Guards against a trace that fills the memory: what is kept is bounded.
func TestATraceIsNotReadWithoutEnd(t *testing.T) {
	var text strings.Builder
	for i := range maxReplayed + 1 {
		text.WriteString(lineOf("anna", fmt.Sprint(i%3), 1, ""))
	}
	_, err := read(t, text.String(), pair)
	if want := fmt.Sprintf("trace:%d: more than", maxReplayed+1); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, expected %q", err, want)
	}
}
