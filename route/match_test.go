package route

import (
	"testing"

	"pgregory.net/rapid"
)

// TestMatchIsTheRuleOfNix guards against a builder that gets what the client's own
// hook would not have sent there, and against one that is passed over.
func TestMatchIsTheRuleOfNix(t *testing.T) {
	both := linux("b", 1)
	both.Systems = map[string]float64{"x86_64-linux": 1, "i686-linux": 0.5}
	none := Builder{Name: "b", MaxJobs: 1}
	tests := []struct {
		name    string
		builder Builder
		system  string
		require []string
		want    string // empty: matches
	}{
		{"the system is listed", linux("b", 1), "x86_64-linux", nil, ""},
		{"the system is one of several", both, "i686-linux", nil, ""},
		{"the system is another", linux("b", 1), "aarch64-linux", nil, "system is x86_64-linux, not aarch64-linux"},
		{"the system is none of several", both, "aarch64-linux", nil, "systems are i686-linux, x86_64-linux, not aarch64-linux"},
		{"systems are compared whole", linux("b", 1), "x86_64", nil, "system is x86_64-linux, not x86_64"},
		{"no system is listed", none, "x86_64-linux", nil, "has no system"},
		{"builtin needs no system", linux("b", 1), "builtin", nil, ""},
		{"builtin needs no system at all", none, "builtin", nil, ""},
		{"builtin still needs features", linux("b", 1), "builtin", []string{"kvm"}, "lacks feature kvm"},
		{"builtin still needs mandatory features", linux("b", 1).only("big-parallel"), "builtin", nil, "needs mandatory feature big-parallel"},
		{"features may be left unused", linux("b", 1).with("kvm"), "x86_64-linux", nil, ""},
		{"a supported feature is required", linux("b", 1).with("kvm"), "x86_64-linux", []string{"kvm"}, ""},
		{"a feature is lacking", linux("b", 1).with("kvm"), "x86_64-linux", []string{"kvm", "nixos-test"}, "lacks feature nixos-test"},
		{"two features are lacking", linux("b", 1), "x86_64-linux", []string{"kvm", "nixos-test"}, "lacks features kvm, nixos-test"},
		{"a mandatory feature is required", linux("b", 1).only("big-parallel"), "x86_64-linux", []string{"big-parallel"}, ""},
		{"mandatory features are supported, too", linux("b", 1).with("kvm").only("big-parallel"), "x86_64-linux", []string{"big-parallel", "kvm"}, ""},
		{"a mandatory feature is not required", linux("b", 1).only("big-parallel"), "x86_64-linux", nil, "needs mandatory feature big-parallel"},
		{"a mandatory feature listed as supported is mandatory", linux("b", 1).with("kvm").only("kvm"), "x86_64-linux", nil, "needs mandatory feature kvm"},
		{"one of two mandatory features is not required", linux("b", 1).only("a", "b"), "x86_64-linux", []string{"a"}, "needs mandatory feature b"},
		{"ca-derivations is a feature like others", linux("b", 1), "x86_64-linux", []string{"ca-derivations"}, "lacks feature ca-derivations"},
		{"ca-derivations is supported", linux("b", 1).with("ca-derivations"), "x86_64-linux", []string{"ca-derivations"}, ""},
		{"everything is wrong", linux("b", 0).only("m"), "aarch64-linux", []string{"kvm"}, "system is x86_64-linux, not aarch64-linux; lacks feature kvm; needs mandatory feature m; takes no builds"},
		{"no slots", linux("b", 0), "x86_64-linux", nil, "takes no builds"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := matchFeatures(&test.builder, test.system, test.require)
			if got := m.String(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if m.ok() != (test.want == "") {
				t.Errorf("ok() is %v for %q", m.ok(), m.String())
			}
		})
	}
}

// TestShapesAreToldApart guards against two requests that share a lane although
// different builders match: names come from peers and may hold any bytes.
func TestShapesAreToldApart(t *testing.T) {
	word := rapid.SampledFrom([]string{"", "a", `"`, `\`, `a""a`, `"-"`, "\x00"})
	shapes := rapid.Custom(func(t *rapid.T) shape {
		s := shape{system: word.Draw(t, "system")}
		s.hard = rapid.SliceOfN(word, 0, 2).Draw(t, "features")
		s.soft = rapid.SliceOfN(word, 0, 1).Draw(t, "wishes")
		if rapid.Bool().Draw(t, "needs") {
			s.needs = map[string]int64{word.Draw(t, "resource"): int64(rapid.IntRange(1, 2).Draw(t, "amount"))}
		}
		s.alone = rapid.Bool().Draw(t, "alone")
		for range rapid.IntRange(0, 1).Draw(t, "exclusions") {
			s.exclude = append(s.exclude, Exclusion{word.Draw(t, "builder"), word.Draw(t, "reason")})
		}
		for range rapid.IntRange(0, 1).Draw(t, "avoided") {
			s.avoid = append(s.avoid, Exclusion{word.Draw(t, "builder"), word.Draw(t, "reason")})
		}
		return s
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := shapes.Draw(t, "a"), shapes.Draw(t, "b")
		if (a.key("p") == b.key("p")) != sameShape(a, b) {
			t.Fatalf("keys %q and %q", a.key("p"), b.key("p"))
		}
	})
	features := shape{hard: []string{"a", "b"}}
	excluded := shape{exclude: []Exclusion{{"a", "b"}}}
	if features.key("p") == excluded.key("p") {
		t.Error("an exclusion is taken for two features")
	}
}

// TestFeaturesAreASet guards against requests that are told apart by the order in
// which a derivation lists what it requires.
func TestFeaturesAreASet(t *testing.T) {
	a, b := askLinux("x", "y"), askLinux("y", "x", "y")
	sa, sb := a.shape(), b.shape()
	if sa.key("p") != sb.key("p") {
		t.Errorf("%q and %q", sa.features, sb.features)
	}
	if b.Features[0] != "y" {
		t.Error("the caller's slice was sorted")
	}
}
