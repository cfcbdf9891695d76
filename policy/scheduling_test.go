package policy

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// Guards against settings that end up in another field.
func TestSchedulingArrivesWhereItBelongs(t *testing.T) {
	d := newDir(t)
	pol := d.load(t, `
state_dir: state
scheduling:
  soft_features: [big-parallel, kvm]
  alone: [benchmark, kvm]
  startup_grace: 1m30s
  starve_after: 2h
  attempts: 7
  hung_after: 1500ms
  linger: 3m
  feed_ahead: false
  feed_ahead_limit: 5MiB
  history: history.jsonl
  needs:
    - {feature: kvm, name: "vm-*", attribute: size, value: "1", resources: {kvm: 1, mem: 64}}
    - {attribute: memGiB, amount_of: mem, resources: {kvm: 2}}
build_limits:
  - {principal: anna, system: builtin, name: "*-test", max_silent: 1h, timeout: 10.5h, max_log_size: 3MiB, cores: 4}
load: {every: 7s, max_load: 1.5, max_pressure: 12.5, min_memory: 2GiB, min_disk: 3GiB}
`+builderText(`    resources: {kvm: 4, mem: 1000000000000}
    wake: {command: [wakeonlan, -i, "a b", -i, "a b"], timeout: 4m}
    sleep: {command: [/bin/sleep, now], after: 20m}
`)+"principals: [{name: anna, role: full, class: interactive, weight: 2.5, keys: ["+authorizedLine("anna")+"]}]\n")
	want := Scheduling{
		SoftFeatures: []string{"big-parallel", "kvm"}, Alone: []string{"benchmark", "kvm"},
		Needs: []Need{
			{Feature: "kvm", Name: "vm-*", Attribute: "size", Value: "1", Resources: map[string]int64{"kvm": 1, "mem": 64}},
			{Attribute: "memGiB", AmountOf: "mem", Resources: map[string]int64{"kvm": 2}},
		},
		StartupGrace: 90 * time.Second, StarveAfter: 2 * time.Hour, Attempts: 7, HungAfter: 1500 * time.Millisecond, Linger: 3 * time.Minute,
		FeedAheadLimit: 5 << 20, History: d.path("history.jsonl"),
	}
	if !reflect.DeepEqual(pol.Scheduling, want) {
		t.Errorf("got %+v, want %+v", pol.Scheduling, want)
	}
	limit := BuildLimit{Principal: "anna", System: "builtin", Name: "*-test", MaxSilent: time.Hour, Timeout: 630 * time.Minute, MaxLogSize: 3 << 20, Cores: 4}
	if !reflect.DeepEqual(pol.BuildLimits, []BuildLimit{limit}) {
		t.Errorf("got %+v, want %+v", pol.BuildLimits, limit)
	}
	b := pol.Builders[0]
	if want := (LoadLimits{false, 7 * time.Second, 1.5, 12.5, 2 << 30, 3 << 30}); b.Load != want {
		t.Errorf("got %+v, want %+v", b.Load, want)
	}
	wake := Wake{[]string{"wakeonlan", "-i", "a b", "-i", "a b"}, 4 * time.Minute, []string{"/bin/sleep", "now"}, 20 * time.Minute}
	if !reflect.DeepEqual(b.Resources, map[string]int64{"kvm": 4, "mem": maxAmount}) || !reflect.DeepEqual(b.Wake, wake) {
		t.Errorf("got %+v and %+v, want %+v", b.Resources, b.Wake, wake)
	}
	if p := pol.Principals[0]; p.Class != ClassInteractive || p.Weight != 2.5 {
		t.Errorf("got %+v", p)
	}
}

// Guards against zeros that are taken for the default, and defaults for zeros.
func TestSchedulingDefaultsAndZeros(t *testing.T) {
	d := newDir(t)
	wake := builderText("    wake: {command: [w]}\n    sleep: {command: [s]}\n")
	pol := d.load(t, minimal+wake)
	if !reflect.DeepEqual(pol.Scheduling, defaultScheduling()) || pol.BuildLimits != nil || pol.Builders[0].Load != defaultLoad() {
		t.Errorf("got %+v, limits %+v, load %+v", pol.Scheduling, pol.BuildLimits, pol.Builders[0].Load)
	}
	if w := pol.Builders[0].Wake; w.Timeout != defaultWakeTimeout || w.After != defaultSleepAfter {
		t.Errorf("got %+v", w)
	}
	pol = d.load(t, minimal+"scheduling: {startup_grace: 0, linger: 0s}\nload: {max_load: 0, max_pressure: 0, min_memory: 0, min_disk: 0}\n"+builderText(""))
	if s := pol.Scheduling; s.StartupGrace != 0 || s.Linger != 0 {
		t.Errorf("got %+v", s)
	}
	if want := (LoadLimits{Every: defaultLoadEvery}); pol.Builders[0].Load != want {
		t.Errorf("got %+v", pol.Builders[0].Load)
	}
}

// Guards against a builder that is looked at though nobody may, or is overloaded since
// one threshold of its own took all others away.
func TestABuildersLoadOverridesSingleThresholds(t *testing.T) {
	const off = "load: off\n"
	usual, own := defaultLoad(), defaultLoad()
	usual.MaxPressure, own.MaxPressure = 20, 20
	own.MaxLoad = 8
	none := defaultLoad()
	none.Off = true
	only := defaultLoad()
	only.MaxLoad = 8
	d := newDir(t)
	for text, want := range map[string]LoadLimits{
		minimal + "load: {max_pressure: 20}\n" + builderText(""):                              usual,
		minimal + builderText("    load: {max_load: 8}\n") + "load: {max_pressure: 20}\n":     own,
		minimal + off + builderText(""):                                                       none,
		minimal + off + builderText("    load: {max_load: 8}\n"):                              only,
		minimal + "load: {max_pressure: 20}\n" + builderText("    load: {max_pressure: 0}\n"): defaultLoad(),
		minimal + builderText("    "+off):                                                     none,
	} {
		if got := d.load(t, text).Builders[0].Load; got != want {
			t.Errorf("%s\ngot %+v, want %+v", text, got, want)
		}
	}
}

const needsText = minimal + `scheduling:
  needs:
    - {feature: kvm, resources: {kvm: 1, mem: 4}}
    - {name: "chromium-*", resources: {mem: 32}}
    - {name: "firefox-*", feature: big-parallel, resources: {mem: 16}}
    - {attribute: memGiB, amount_of: mem}
    - {attribute: size, value: big, resources: {mem: 8}}
    - {attribute: licence, resources: {licence: 1}}
`

// Guards against builds that share a builder which they overload, and against others
// that wait for what they do not need.
func TestABuildNeedsTheLargestAmountOfAllRulesThatApply(t *testing.T) {
	pol := newDir(t).load(t, needsText+builderText("    resources: {kvm: 4, mem: 64, licence: 1}\n"))
	for _, c := range []struct {
		features string
		name     string
		env      map[string]string
		want     map[string]int64
	}{
		{"", "hello", nil, nil},
		{"kvm nixos-test", "hello", nil, map[string]int64{"kvm": 1, "mem": 4}},
		{"", "chromium-1", map[string]string{"memGiB": "31"}, map[string]int64{"mem": 32}},
		{"", "chromium-1", map[string]string{"memGiB": "33"}, map[string]int64{"mem": 33}},
		{"", "firefox-1", nil, nil},
		{"big-parallel", "firefox-1", nil, map[string]int64{"mem": 16}},
		{"", "hello", map[string]string{"memGiB": "0"}, nil},
		{"", "hello", map[string]string{"memGiB": "1000000000000"}, map[string]int64{"mem": maxAmount}},
		{"", "hello", map[string]string{"size": "small"}, nil},
		{"", "hello", map[string]string{"size": "big"}, map[string]int64{"mem": 8}},
		{"", "hello", map[string]string{"licence": ""}, map[string]int64{"licence": 1}},
	} {
		got, err := pol.NeedsOf(strings.Fields(c.features), c.name, lookup(c.env))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v: got %v, %v", c, got, err)
		}
	}
}

func lookup(env map[string]string) func(string) (string, bool) {
	return func(key string) (string, bool) {
		value, ok := env[key]
		return value, ok
	}
}

// Guards against a slip in a derivation that gives the build less than it needs, and
// against one that writes lines into a log.
func TestAnAmountThatIsNoneIsRefusedWithItsAttribute(t *testing.T) {
	pol := newDir(t).load(t, needsText+builderText("    resources: {kvm: 4, mem: 64, licence: 1}\n"))
	for _, value := range []string{"", "-1", "+1", "1.5", "08", " 8", "8\n", "1e3", "0x8", "1000000000001", strings.Repeat("9", 1000), "a\x1b\nb"} {
		needs, err := pol.NeedsOf(nil, "hello", lookup(map[string]string{"memGiB": value}))
		if err == nil || needs != nil || !strings.Contains(err.Error(), "attribute memGiB of the derivation is ") || !strings.Contains(err.Error(), "whole number from 0 to 1000000000000") {
			t.Errorf("%q: got %v, %v", value, needs, err)
		} else if len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%q: %q", value, err)
		}
	}
}

// Guards against a limit that counts for others than it was written for, or hides a
// limit of another kind.
func TestForEachLimitTheFirstRuleCountsThatSetsIt(t *testing.T) {
	principals := "principals:\n"
	for _, name := range []string{"runners", "anna"} {
		principals += "  - {name: " + name + ", role: full, keys: [" + authorizedLine(name) + "]}\n"
	}
	pol := newDir(t).load(t, minimal+principals+`build_limits:
  - {principal: runners, name: "*-test", timeout: 1h}
  - {principal: runners, timeout: 2h, cores: 2}
  - {system: aarch64-linux, cores: 4, max_log_size: 4KiB}
  - {max_silent: 20m, timeout: 3h}
`)
	for _, c := range []struct {
		principal, system, name string
		want                    BuildLimit
	}{
		{"anna", "x86_64-linux", "vm-test", BuildLimit{MaxSilent: 20 * time.Minute, Timeout: 3 * time.Hour}},
		{"runners", "x86_64-linux", "vm-test", BuildLimit{MaxSilent: 20 * time.Minute, Timeout: time.Hour, Cores: 2}},
		{"runners", "aarch64-linux", "vm", BuildLimit{MaxSilent: 20 * time.Minute, Timeout: 2 * time.Hour, Cores: 2, MaxLogSize: 4096}},
		{"anna", "aarch64-linux", "vm", BuildLimit{MaxSilent: 20 * time.Minute, Timeout: 3 * time.Hour, Cores: 4, MaxLogSize: 4096}},
	} {
		if got := pol.LimitsOf(c.principal, c.system, c.name); got != c.want {
			t.Errorf("%+v: got %+v", c, got)
		}
	}
	if got := newDir(t).load(t, minimal).LimitsOf("anna", "x86_64-linux", "vm"); got != (BuildLimit{}) {
		t.Errorf("without rules: %+v", got)
	}
}

// Guards against a policy that makes every build slow.
func TestRulesAreBounded(t *testing.T) {
	d := newDir(t)
	limits := func(n int) string {
		return minimal + "build_limits:\n" + strings.Repeat("  - {name: x, cores: 1}\n", n)
	}
	needs := func(n int) string {
		return minimal + builderText("    resources: {mem: 1}\n") + "scheduling:\n  needs:\n" + strings.Repeat("    - {name: x, resources: {mem: 1}}\n", n)
	}
	if pol := d.load(t, needs(maxRules)); len(pol.Scheduling.Needs) != maxRules {
		t.Errorf("got %d rules", len(pol.Scheduling.Needs))
	}
	for _, text := range []string{needs(maxRules + 1), limits(maxRules + 1)} {
		_, err := Load(d.write("policy.yaml", text, 0o644))
		if err == nil || !strings.Contains(err.Error(), "there are more than 1000 rules") || len(err.(*Mistakes).List) != 1 {
			t.Errorf("got %v", err)
		}
	}
}

// Guards against a file of history that nobody writes to, without a word; all else of
// scheduling counts at once.
func TestOnlyTheFileOfHistoryNeedsARestart(t *testing.T) {
	d := newDir(t)
	before := d.load(t, minimal)
	after := d.load(t, minimal+"scheduling: {attempts: 2, linger: 0, feed_ahead: false, alone: [benchmark]}\nload: off\nbuild_limits: [{cores: 1}]\n"+
		builderText("    resources: {kvm: 1}\n"))
	if got := before.NeedsRestart(after); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	if got := before.NeedsRestart(d.load(t, minimal+"scheduling: {history: h}\n")); !slices.Equal(got, []string{"scheduling.history"}) {
		t.Errorf("got %v", got)
	}
}

func TestDurationsAreWrittenAsTheFileHasThem(t *testing.T) {
	for text, want := range map[string]string{"90s": "1m30s", "60m": "1h", "3600s": "1h", "1h5s": "1h0m5s", "0": "0", "0s": "0", "1500ms": "1.5s", "10m": "10m", "90m": "1h30m", "24h": "24h"} {
		value, err := parseDuration(text)
		if got := durationText(value); got != want || err != nil {
			t.Errorf("%s: got %s, %v", text, got, err)
		}
		if again, err := parseDuration(want); again != value || err != nil {
			t.Errorf("%s is read as %s, %v", want, again, err)
		}
	}
}
