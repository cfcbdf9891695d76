// Package house holds the tests that keep the whole project in order.
package house

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "nixbastion/"

// mayImport says which of the project's packages each may import, test files
// aside. A package that is not listed here may import nothing of the project:
// adding one is a decision, and this is where it shows.
var mayImport = map[string][]string{
	"cmd/nixbastion": {"cache", "policy", "proxy", "proxy/upstream", "internal/nix",
		"internal/audit", "internal/metrics", "internal/simulate", "internal/tracefile"},
	"proxy": {"cache", "policy", "proxy/upstream", "route",
		"internal/nix", "internal/nix/nar", "internal/nix/worker", "internal/nix/serve", "internal/sshconn",
		"internal/audit",      // it says what happened
		"internal/metrics",    // counts it
		"internal/tracefile"}, // and writes what can be simulated later
	"proxy/upstream":         {"policy", "internal/nix", "internal/nix/worker", "internal/nix/serve", "internal/sshconn"},
	"route":                  {},
	"cache":                  {"internal/nix", "internal/nix/nar"},
	"policy":                 {"internal/nix"},
	"internal/nix":           {"internal/nix/nar"},
	"internal/nix/wire":      {"internal/nix", "internal/nix/nar"},
	"internal/nix/nar":       {},
	"internal/nix/worker":    {"internal/nix", "internal/nix/wire", "internal/nix/nar"},
	"internal/nix/serve":     {"internal/nix", "internal/nix/wire", "internal/nix/nar"},
	"internal/nix/storetest": {"internal/nix", "internal/nix/nar"},
	"internal/metrics":       {},
	"internal/sshconn":       {},
	"internal/simulate":      {"route", "internal/tracefile"}, // it drives the router itself
	"internal/tracefile":     {},
	"internal/audit":         {},
	"internal/vectors":       {"internal/nix", "internal/nix/wire", "internal/nix/nar", "internal/nix/worker", "internal/nix/serve"},
	"internal/testbed":       {},
	"internal/world":         {"internal/testbed"},
	"internal/demo":          {"internal/testbed", "internal/world"},
	"internal/fleet":         {"internal/testbed", "internal/world", "internal/simulate"}, // it carries the traces that the models carry
	"internal/bench": {"internal/testbed", "internal/world", "internal/fleet", "internal/simulate",
		"internal/nix", "internal/nix/worker"}, // one of its clients is its own
	"internal/e2e": {"internal/testbed", "internal/world"},
}

// onlyIn names packages from outside that one package of ours alone may import,
// so that they can be replaced in one place.
var onlyIn = map[string]string{
	"github.com/gliderlabs/ssh":                               "proxy",
	"gopkg.in/yaml.v3":                                        "policy",
	"go.etcd.io/bbolt":                                        "cache",
	"github.com/prometheus/client_golang/prometheus":          "internal/metrics",
	"github.com/prometheus/client_golang/prometheus/promhttp": "internal/metrics",
	"github.com/pires/go-proxyproto":                          "proxy",
	"github.com/coreos/go-systemd/v22/activation":             "cmd/nixbastion",
	"github.com/coreos/go-systemd/v22/daemon":                 "cmd/nixbastion",
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p goPackage
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// Guards against arrows between packages that turn the house into a knot: route
// must know no connection, the cache no client, the policy nobody.
func TestImportsRunOneWay(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			ours, isOurs := strings.CutPrefix(imp, module)
			if isOurs && !slices.Contains(mayImport[name], ours) {
				t.Errorf("%s imports %s; if that is right, say so in mayImport", name, ours)
			}
			if owner := onlyIn[imp]; owner != "" && owner != name {
				t.Errorf("%s imports %s, which is for %s alone", name, imp, owner)
			}
		}
	}
}
