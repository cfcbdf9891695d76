package route

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// builtin is the system of derivations that Nix itself carries out, such as
// builtin:fetchurl. Every builder runs it.
const builtin = "builtin"

// mismatch is what keeps a builder from ever running a request. All empty: it
// matches.
type mismatch struct {
	// systems are the builder's, if the required one is not among them.
	systems []string
	system  string
	// lacks are required features that it does not support.
	lacks []string
	// demands are its mandatory features that are not required.
	demands []string
	// short are resources of which it has less than is needed.
	short []string
	// closed says that it takes no builds at all.
	closed bool
}

// match is what keeps a builder from ever running a request of a shape.
func match(b *Builder, s *shape) mismatch {
	m := matchFeatures(b, s.system, s.hard)
	for _, name := range slices.Sorted(maps.Keys(s.needs)) {
		if has := b.Resources[name]; has < s.needs[name] {
			m.short = append(m.short, fmt.Sprintf("%d %s, not %d", has, name, s.needs[name]))
		}
	}
	return m
}

// matchFeatures is the rule of Nix's own build hook (build-remote.cc, machines.cc): the
// system is listed, or is "builtin"; every required feature is supported or
// mandatory; every mandatory feature is required. What the builder's own
// nix.conf says plays no part.
func matchFeatures(b *Builder, system string, required []string) mismatch {
	var m mismatch
	if _, listed := b.Systems[system]; !listed && system != builtin {
		m.system, m.systems = system, slices.Sorted(maps.Keys(b.Systems))
	}
	for _, feature := range required {
		if !slices.Contains(b.Features, feature) && !slices.Contains(b.MandatoryFeatures, feature) {
			m.lacks = append(m.lacks, feature)
		}
	}
	for _, feature := range b.MandatoryFeatures {
		if !slices.Contains(required, feature) {
			m.demands = append(m.demands, feature)
		}
	}
	m.closed = b.MaxJobs <= 0
	return m
}

func (m *mismatch) ok() bool {
	return m.system == "" && !m.closed && len(m.lacks) == 0 && len(m.demands) == 0 && len(m.short) == 0
}

// String says it for people: "system is x86_64-linux, not aarch64-linux; lacks
// feature kvm".
func (m *mismatch) String() string {
	var parts []string
	if m.system != "" {
		parts = append(parts, systemMismatch(m.systems, m.system))
	}
	if len(m.lacks) > 0 {
		parts = append(parts, "lacks "+features(m.lacks))
	}
	if len(m.demands) > 0 {
		parts = append(parts, "needs mandatory "+features(m.demands))
	}
	if len(m.short) > 0 {
		parts = append(parts, "has "+strings.Join(m.short, ", "))
	}
	if m.closed {
		parts = append(parts, "takes no builds")
	}
	return strings.Join(parts, "; ")
}

func systemMismatch(has []string, wants string) string {
	switch len(has) {
	case 0:
		return "has no system"
	case 1:
		return "system is " + has[0] + ", not " + wants
	}
	return "systems are " + strings.Join(has, ", ") + ", not " + wants
}

func features(names []string) string {
	if len(names) == 1 {
		return "feature " + names[0]
	}
	return "features " + strings.Join(names, ", ")
}
