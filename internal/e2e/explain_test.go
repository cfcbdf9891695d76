package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// explained is what is looked at of nixbastion explain --json.
type explained struct {
	MayBuild bool `json:"may_build"`
	Ranking  struct {
		Builder  string
		Builders []struct{ Name, Reason string }
	}
}

var explainedPlace = regexp.MustCompile(`(?m)^a '.*' with features \{.*\}: goes to (\S+)$`)

// explainKinds are what builds require, and whether a builder of the park has it.
var explainKinds = []struct {
	system   string
	features []string
	nowhere  bool
}{
	{intel, nil, false}, {intel, []string{"kvm"}, false}, {arm, nil, false}, {intel, []string{"big-parallel"}, false}, {intel32, nil, false},
	{intel, []string{"benchmark"}, false}, {intel, []string{"nixos-test"}, false}, {intel, []string{"kvm", "benchmark"}, true},
}

// What explain prints of a .drv file is the builder on which real Nix then has it
// built, while others run; and where it says that there is none, the client reads the
// same reasons. Guards against a dry run that is another ranking than the one that
// decides.
func TestExplainNamesTheBuilderThatRuns(t *testing.T) { testExplained(t, 10) }

func TestSoakExplainNamesTheBuilderThatRuns(t *testing.T) {
	onlyInSoak(t)
	testExplained(t, 200)
}

func testExplained(t *testing.T, rounds int) {
	line := counted(t)
	p := startPark(t)
	writeMachinesLine(t, p.client, []string{"ssh-ng://proxy", intel + "," + arm + "," + intel32, p.key.File(), "8", "1", "nixos-test,benchmark,big-parallel,kvm", "-", "-"})
	// Builds that take places here and there meanwhile.
	var busy []testbed.Derivation
	for i, kind := range explainKinds[:4] {
		busy = append(busy, testbed.Derivation{Name: fmt.Sprintf("busy%d-%d", rounds, i), System: kind.system, RequiredFeatures: kind.features, Sleep: time.Hour})
	}
	held := startScriptFor(t, 30*time.Minute, p.client, buildScript(writeExpression(t, p.client, busy...), namesOf(busy))+" -j0")
	eventually(t, "the builders are busy", patience, func() bool {
		running := 0
		for _, host := range []*testbed.Host{p.plain, p.armed, p.virtual, p.tester, p.kept} {
			running += runningBuilds(t, host)
		}
		return running == len(busy)
	})
	defer held.kill()

	random := rand.New(rand.NewPCG(1, 1))
	var all []testbed.Derivation
	for i := range rounds {
		kind := explainKinds[i%len(explainKinds)]
		if i >= len(explainKinds) {
			kind = explainKinds[random.IntN(len(explainKinds))]
		}
		all = append(all, testbed.Derivation{Name: fmt.Sprintf("explained%d-%d", rounds, i), System: kind.system, RequiredFeatures: kind.features})
	}
	file := writeExpression(t, p.client, all...)
	paths := strings.Fields(p.client.MustShell(t, "nix-instantiate "+file+" -A "+strings.Join(namesOf(all), " -A ")+" 2>/dev/null"))
	if len(paths) != len(all) {
		t.Fatalf("%d derivations, want %d", len(paths), len(all))
	}
	ranOn := map[string]int{}
	for i, d := range all {
		text, a := p.explain(t, paths[i])
		run := startScript(t, p.client, buildScript(file, []string{d.Name})+" -j0")
		said := explainedPlace.FindStringSubmatch(text)
		if said == nil {
			log := run.mustFail(t)
			for _, b := range a.Ranking.Builders {
				if !lineWith(log, b.Name+": "+b.Reason) || !strings.Contains(text, ": no builder can run it\n") {
					t.Fatalf("build %d failed so:\n%s\nand was explained so:\n%s", i, log, text)
				}
			}
			ranOn["nowhere"]++
			continue
		}
		run.mustSucceed(t)
		if got := builtOn(p.proxy, d.Name); !slices.Equal(got, []string{said[1]}) || a.Ranking.Builder != said[1] {
			t.Fatalf("build %d ran on %q:\n%s", i, got, text)
		}
		ranOn[said[1]]++
	}
	line.rounds = rounds
	line.note("builds went to %v", ranOn)
	t.Log(line.notes)
	if len(ranOn) < 5 {
		t.Errorf("the builds went to %v alone", ranOn)
	}
}

// explain asks the running proxy about a .drv file of the client, as a person and as a
// program.
func (p *park) explain(t *testing.T, drv string) (text string, a explained) {
	t.Helper()
	contents, err := p.client.ReadFile(t.Context(), drv)
	if err != nil {
		t.Fatal(err)
	}
	file := "/root/" + drv[strings.LastIndex(drv, "/")+1:]
	if err := p.proxy.Host().WriteFile(t.Context(), file, contents); err != nil {
		t.Fatal(err)
	}
	command := world.Binary + " explain --principal alice --drv " + file
	said := p.proxy.Host().MustShell(t, command+" && "+command+" --json")
	text, forPrograms, _ := strings.Cut(said, "\n{\n")
	if err := json.Unmarshal([]byte("{"+forPrograms), &a); err != nil {
		t.Fatalf("%v:\n%s", err, said)
	}
	if !a.MayBuild {
		t.Fatalf("it may not be built:\n%s", text)
	}
	return text + "\n", a
}
