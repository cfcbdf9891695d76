package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// How builds wait, run and end, in words for people.

func (t *description) scheduling() {
	s := &t.pol.Scheduling
	t.line(0, "\nBuilds")
	if s.StartupGrace > 0 {
		t.line(1, "wait in the first %s of the proxy for builders that are down, instead of failing (startup_grace)", durationText(s.StartupGrace))
	}
	t.line(1, "that have waited %s go before younger ones, whoever asked for them (starve_after)", durationText(s.StarveAfter))
	t.line(1, "are tried on up to %s when builders fail (attempts)", CountOf(s.Attempts, "builder"))
	t.line(1, "are begun a second time elsewhere when their builder owes every sign of life for %s (hung_after)", durationText(s.HungAfter))
	if s.Linger > 0 {
		t.line(1, "go on for %s when their last client is lost without saying goodbye (linger)", durationText(s.Linger))
	} else {
		t.line(1, "end at once when their last client is lost (linger: 0)")
	}
	if s.FeedAhead {
		t.line(1, "have large inputs sent ahead to their probable builder, up to %s at a time (feed_ahead)", sizeText(s.FeedAheadLimit))
	} else {
		t.line(1, "have their inputs sent when their builder is chosen (feed_ahead: false)")
	}
	t.features(s)
	for i := range s.Needs {
		t.line(1, "%s", s.Needs[i].meaning())
	}
	for i := range t.pol.BuildLimits {
		t.line(1, "%s", t.pol.BuildLimits[i].meaning())
	}
	if len(t.pol.BuildLimits) > 1 {
		t.line(1, "for each of these limits the first line counts that applies and has it")
	}
	if s.History != "" {
		t.line(1, "are written to %s when they are finished (history)", s.History)
	}
}

// features says which of them mean something else than usual.
func (t *description) features(s *Scheduling) {
	if len(s.SoftFeatures) > 0 {
		t.line(1, "that require %s prefer builders with it, and run on others too (soft_features)", strings.Join(s.SoftFeatures, " or "))
	}
	if len(s.Alone) > 0 {
		t.line(1, "that require %s run with no other build on their builder (alone)", strings.Join(s.Alone, " or "))
	}
}

// meaning is a sentence about builds.
func (r *Need) meaning() string {
	var which, what []string
	if r.Feature != "" {
		which = append(which, "that require "+r.Feature)
	}
	if r.Name != "" {
		which = append(which, "named "+r.Name)
	}
	switch {
	case r.Value != "":
		which = append(which, fmt.Sprintf("with the attribute %s = %s", r.Attribute, quote(r.Value)))
	case r.Attribute != "":
		which = append(which, "with the attribute "+r.Attribute)
	}
	if len(r.Resources) > 0 {
		what = append(what, resourceTexts(r.Resources))
	}
	if r.AmountOf != "" {
		what = append(what, "as much "+r.AmountOf+" as it says")
	}
	return strings.Join(which, " and ") + " need " + strings.Join(what, ", and ") + " (needs)"
}

func resourceTexts(resources map[string]int64) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(resources)) {
		all = append(all, fmt.Sprintf("%d %s", resources[name], name))
	}
	return strings.Join(all, " and ")
}

// meaning is a sentence about builds.
func (l *BuildLimit) meaning() string {
	var which, what []string
	if l.Principal != "" {
		which = append(which, "of "+l.Principal)
	}
	if l.System != "" {
		which = append(which, "for "+l.System)
	}
	if l.Name != "" {
		which = append(which, "named "+l.Name)
	}
	if len(which) == 0 {
		which = []string{"of everybody"}
	}
	if l.MaxSilent > 0 {
		what = append(what, "print nothing for "+durationText(l.MaxSilent)+" at most")
	}
	if l.Timeout > 0 {
		what = append(what, "take "+durationText(l.Timeout)+" at most")
	}
	if l.MaxLogSize > 0 {
		what = append(what, "print "+sizeText(l.MaxLogSize)+" at most")
	}
	if l.Cores > 0 {
		what = append(what, "are told to use "+CountOf(l.Cores, "core"))
	}
	return strings.Join(which, " ") + " " + strings.Join(what, ", ") + " (build_limits)"
}

// builderScheduling says what keeps builds from a builder, besides its slots.
func (t *description) builderScheduling(b *Builder) {
	if len(b.Resources) > 0 {
		t.line(1, "has %s for its builds together (resources)", resourceTexts(b.Resources))
	}
	t.line(1, "%s (load)", b.Load.meaning())
	if len(b.Wake.Command) > 0 {
		t.line(1, "is woken by %s, and has %s to come up (wake)", commandText(b.Wake.Command), durationText(b.Wake.Timeout))
	}
	if len(b.Wake.Sleep) > 0 {
		t.line(1, "is put to sleep by %s when it had no build for %s (sleep)", commandText(b.Wake.Sleep), durationText(b.Wake.After))
	}
}

// meaning is a sentence about a builder.
func (l *LoadLimits) meaning() string {
	if l.Off {
		return "its load is not looked at"
	}
	var busy []string
	if l.MaxLoad > 0 {
		busy = append(busy, "the load of others is above "+speedText(l.MaxLoad)+" per core")
	}
	if l.MaxPressure > 0 {
		busy = append(busy, "something waits for memory or the disk more than "+speedText(l.MaxPressure)+"% of the time")
	}
	if l.MinMemory > 0 {
		busy = append(busy, "less than "+sizeText(l.MinMemory)+" of memory are available")
	}
	if l.MinDisk > 0 {
		busy = append(busy, "less than "+sizeText(l.MinDisk)+" are free in its store")
	}
	text := "its load is looked at every " + durationText(l.Every)
	if len(busy) == 0 {
		return text + ", and keeps no build away"
	}
	return text + "; it gets no builds while " + strings.Join(busy, ", or ")
}

// commandText shows a command so that its words can be told apart.
func commandText(words []string) string {
	all := make([]string, len(words))
	for i, word := range words {
		if all[i] = word; strings.ContainsAny(word, " \t\"'\\") {
			all[i] = strconv.Quote(word)
		}
	}
	return strings.Join(all, " ")
}

// schedulingWarnings name rules that are allowed and never count.
func (t *description) schedulingWarnings(warn func(string, ...any)) {
	for i := range t.pol.Scheduling.Needs {
		t.needWarnings(&t.pol.Scheduling.Needs[i], warn)
	}
	for _, name := range t.pol.resourceNames() {
		if !t.pol.isNeeded(name) {
			warn("no build needs the resource %s: no rule of scheduling.needs names it", name)
		}
	}
	for _, l := range t.pol.BuildLimits {
		if l.System != "" && l.System != "builtin" && len(t.pol.Builders) > 0 && !slices.ContainsFunc(t.pol.Builders, func(b Builder) bool { return b.Systems[l.System] > 0 }) {
			warn("no builder builds for %s, of which build_limits has a rule", l.System)
		}
	}
}

// needWarnings name what a feature that needs resources has too little of.
func (t *description) needWarnings(rule *Need, warn func(string, ...any)) {
	if rule.Feature == "" {
		return
	}
	offered := false
	for _, b := range t.pol.Builders {
		if !slices.Contains(b.Features, rule.Feature) && !slices.Contains(b.MandatoryFeatures, rule.Feature) {
			continue
		}
		offered = true
		for _, name := range slices.Sorted(maps.Keys(rule.Resources)) {
			if has := b.Resources[name]; has < rule.Resources[name] && rule.Name == "" && rule.Attribute == "" {
				warn("builder %s offers the feature %s and never gets a build that requires it: that needs %d of resource %s, and it has %d",
					b.Name, rule.Feature, rule.Resources[name], name, has)
			}
		}
	}
	if !offered && !slices.Contains(t.pol.Scheduling.SoftFeatures, rule.Feature) {
		warn("no builder offers the feature %s, of which scheduling.needs has a rule", rule.Feature)
	}
}

// isNeeded says that a rule names a resource.
func (p *Policy) isNeeded(resource string) bool {
	return slices.ContainsFunc(p.Scheduling.Needs, func(r Need) bool { return r.AmountOf == resource || r.Resources[resource] > 0 })
}
