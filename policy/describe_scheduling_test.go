package policy

import (
	"strings"
	"testing"
)

// Guards against rules whose meaning the admin does not see: each setting of
// scheduling has its sentence.
func TestDescribeSaysHowBuildsWaitAndRun(t *testing.T) {
	d := newDir(t)
	got := describe(t, d.load(t, minimal+`scheduling:
  soft_features: [big-parallel, kvm]
  alone: [benchmark]
  startup_grace: 1m
  starve_after: 2h
  attempts: 1
  hung_after: 45s
  feed_ahead_limit: 5MiB
  history: /h
  needs:
    - {feature: kvm, resources: {kvm: 1, mem: 4}}
    - {name: "vm-*", attribute: size, value: "1", resources: {mem: 8}}
    - {attribute: memGiB, amount_of: mem, resources: {kvm: 1}}
build_limits:
  - {principal: anna, system: x86_64-linux, name: "*-test", max_silent: 1h, timeout: 10h, max_log_size: 3MiB, cores: 1}
  - {cores: 4}
load: {max_load: 1.5, max_pressure: 12.5, min_memory: 2GiB, min_disk: 1GiB}
`+builderText(`    resources: {mem: 64, kvm: 4}
    wake: {command: [wakeonlan, "a b"]}
    sleep: {command: [s]}
`)+strings.Replace(strings.TrimPrefix(builderText("    load: off\n"), "builders:\n"), "name: b1", "name: b2", 1)+
		strings.Replace(strings.TrimPrefix(builderText("    load: {every: 1m, max_load: 0, max_pressure: 0, min_memory: 0, min_disk: 0}\n"), "builders:\n"), "name: b1", "name: b3", 1)+
		"principals: [{name: anna, role: full, class: bulk, weight: 0.5, keys: ["+authorizedLine("anna")+"]}, {name: otto, role: full, class: interactive, weight: 1, keys: ["+authorizedLine("otto")+"]}]\n"), "proxy")
	for _, want := range []string{
		"  wait in the first 1m of the proxy for builders that are down, instead of failing (startup_grace)",
		"  that have waited 2h go before younger ones, whoever asked for them (starve_after)",
		"  are tried on up to 1 builder when builders fail (attempts)",
		"  are begun a second time elsewhere when their builder owes every sign of life for 45s (hung_after)",
		"  go on for 1m when their last client is lost without saying goodbye (linger)",
		"  have large inputs sent ahead to their probable builder, up to 5MiB at a time (feed_ahead)",
		"  that require big-parallel or kvm prefer builders with it, and run on others too (soft_features)",
		"  that require benchmark run with no other build on their builder (alone)",
		"  that require kvm need 1 kvm and 4 mem (needs)",
		`  named vm-* and with the attribute size = "1" need 8 mem (needs)`,
		"  with the attribute memGiB need 1 kvm, and as much mem as it says (needs)",
		"  of anna for x86_64-linux named *-test print nothing for 1h at most, take 10h at most, print 3MiB at most, are told to use 1 core (build_limits)",
		"  of everybody are told to use 4 cores (build_limits)",
		"  for each of these limits the first line counts that applies and has it",
		"  are written to /h when they are finished (history)",
		"    anna: 1 key, its builds are bulk (class), weight 0.5",
		"    otto: 1 key, its builds are interactive (class)",
		"  has 4 kvm and 64 mem for its builds together (resources)",
		"  its load is looked at every 5s; it gets no builds while the load of others is above 1.5 per core, or something waits for memory or the disk more than 12.5% of the time, " +
			"or less than 2GiB of memory are available, or less than 1GiB are free in its store (load)",
		`  is woken by wakeonlan "a b", and has 5m to come up (wake)`,
		"  is put to sleep by s when it had no build for 15m (sleep)",
		"  its load is not looked at (load)",
		"  its load is looked at every 1m, and keeps no build away (load)",
	} {
		if !strings.Contains(got, "\n"+want+"\n") {
			t.Errorf("no line %q in:\n%s", want, got)
		}
	}
	got = describe(t, d.load(t, minimal+"scheduling: {startup_grace: 0, linger: 0, feed_ahead: false}\n"), "proxy")
	for _, want := range []string{"end at once when their last client is lost (linger: 0)", "have their inputs sent when their builder is chosen (feed_ahead: false)"} {
		if !strings.Contains(got, "\n  "+want+"\n") {
			t.Errorf("no line %q in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "startup_grace") {
		t.Errorf("a grace of 0:\n%s", got)
	}
}

// Guards against rules that are valid and do what nobody meant: keep a builder idle,
// or do nothing.
func TestDescribeWarnsOfRulesThatNeverCount(t *testing.T) {
	d := newDir(t)
	principals := "principals: [{name: anna, role: full, keys: [" + authorizedLine("anna") + "]}]\n"
	two := builderText("    features: [kvm]\n    resources: {kvm: 1}\n") + strings.Replace(strings.TrimPrefix(builderText("    mandatory_features: [kvm]\n"), "builders:\n"), "name: b1", "name: b2", 1)
	needs := func(rule string) string { return "scheduling: {needs: [" + rule + "]}\n" }
	idle := "warning: builder b2 offers the feature kvm and never gets a build that requires it: that needs 1 of resource kvm, and it has 0\n"
	for text, want := range map[string]string{
		needs("{feature: kvm, resources: {kvm: 1}}") + two:            idle,
		needs("{feature: kvm, name: x, resources: {kvm: 1}}") + two:   "",
		needs("{feature: kvm, attribute: kvm, amount_of: kvm}") + two: "",
		needs("{feature: kvn, resources: {kvm: 1}}") + two:            "warning: no builder offers the feature kvn, of which scheduling.needs has a rule\n",
		needs("{name: x, resources: {kvm: 1}}") + two:                 "",
		two: "warning: no build needs the resource kvm: no rule of scheduling.needs names it\n",
		builderText("") + "build_limits: [{system: riscv64-linux, cores: 1}, {system: x86_64-linux, cores: 1}, {system: builtin, cores: 1}]\n": "warning: no builder builds for riscv64-linux, of which build_limits has a rule\n",
		strings.Replace(needs("{feature: kvm, resources: {kvm: 1}}"), "{needs", "{soft_features: [kvm], needs", 1) + two:                       idle,
		strings.Replace(needs("{feature: wish, resources: {kvm: 1}}"), "{needs", "{soft_features: [wish], needs", 1) + two:                     "",
	} {
		got := describe(t, d.load(t, minimal+principals+text), "proxy")
		_, warnings, found := strings.Cut(got, "\nwarning: ")
		if found {
			warnings = "warning: " + warnings
		}
		if warnings != want {
			t.Errorf("%s\ngot the warnings:\n%s\nwant:\n%s", text, warnings, want)
		}
	}
}
