package policy

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// example returns config.example.yaml with the paths of a directory that has what
// the file names.
func example(t *testing.T) (dir, string) {
	t.Helper()
	text, err := os.ReadFile("../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d := newDir(t)
	d.write("known_hosts", "[2001:db8::17]:2222 "+authorizedLine("arm1")+"\n", 0o644)
	d.write("runners.keys", "# runners\n"+authorizedLine("runner")+"\n", 0o644)
	d.write("policy.d/none", "not a policy", 0o644)
	d.write("revoked_keys", "# nobody\n", 0o644)
	d.write("ssh_host_ed25519_key-cert.pub", hostCertificateOf(t, nil), 0o644)
	return d, strings.NewReplacer("/etc/nixbastion", string(d), "/var/lib/nixbastion", d.path("state")).Replace(string(text))
}

// commentedOut are the settings that the example has as comments.
var commentedOut = regexp.MustCompile(`(?m)^( *)#((?:- )?[a-z_]+:)`)

// Guards against an example that nobody can start from.
func TestExampleLoadsAsItIs(t *testing.T) {
	d, text := example(t)
	pol := d.load(t, text)
	if len(pol.Builders) != 2 || len(pol.Principals) != 2 || len(pol.keys) != 3 {
		t.Errorf("got %d builders, %d principals, %d keys", len(pol.Builders), len(pol.Principals), len(pol.keys))
	}
}

// Guards against keys that the example forgot, and against alternatives in it that
// would be refused.
func TestExampleNamesEveryKeyOfTheSchema(t *testing.T) {
	d, text := example(t)
	all := commentedOut.ReplaceAllString(text, "$1$2")
	dec := newDecoder(d.path("policy.yaml"), realDisk{})
	dec.decode([]byte(all))
	if err := dec.mistakes.sorted(dec.file); err != nil {
		t.Fatal(err)
	}
	for key, there := range dec.schema {
		if !there {
			t.Errorf("%s is not in config.example.yaml", key)
		}
	}
	for _, key := range []string{"listen", "cache.size", "builders.known_hosts", "principals.no_builder", "domains.name"} {
		if _, known := dec.schema[key]; !known {
			t.Errorf("%s is not in the schema: this test looks at nothing", key)
		}
	}
}

// Guards against defaults in the example that are not those of the program: with
// all comments made settings, the policy is the same but for what the file says to
// be no default.
func TestExampleTellsTheDefaults(t *testing.T) {
	d, text := example(t)
	plain := d.load(t, text)
	all := d.load(t, commentedOut.ReplaceAllString(text, "$1$2"))
	if !slices.Equal(plain.Listen, all.Listen) || plain.Cache != all.Cache || plain.Limits != all.Limits || plain.Log != all.Log {
		t.Errorf("listen, limits or log: %v %+v %+v, as comments %v %+v %+v", plain.Listen, plain.Limits, plain.Log, all.Listen, all.Limits, all.Log)
	}
	limits, penalties := all.SSH.Limits, all.SSH.Penalties
	limits.SessionMemory, penalties.Exempt = 0, nil
	if plain.SSH.Limits != limits || !reflect.DeepEqual(plain.SSH.Penalties, penalties) {
		t.Errorf("ssh: %+v, as comments %+v", plain.SSH, all.SSH)
	}
	usual := all.Scheduling // with what the file says to be no default
	usual.SoftFeatures, usual.Alone, usual.Needs, usual.History = nil, nil, nil, ""
	if !reflect.DeepEqual(plain.Scheduling, usual) || len(all.Scheduling.Needs) != 4 || len(all.BuildLimits) != 1 {
		t.Errorf("scheduling: %+v, as comments %+v, and build_limits %+v", plain.Scheduling, all.Scheduling, all.BuildLimits)
	}
	a, b := plain.Builders[0], all.Builders[0]
	if a.Content != b.Content || !slices.Equal(a.Domains, b.Domains) {
		t.Errorf("builder: %+v, as comments %+v", a, b)
	}
	if other := all.Builders[1].Load; a.Load != b.Load || a.Load != other { // b has its own, other the usual one
		t.Errorf("load: %+v, as comments %+v and %+v", a.Load, b.Load, other)
	}
	if b.Wake.Timeout != defaultWakeTimeout || b.Wake.After != defaultSleepAfter {
		t.Errorf("wake: %+v", b.Wake)
	}
	if a.Protocol != b.Protocol {
		t.Errorf("protocol: %v, as comments %v", a.Protocol, b.Protocol)
	}
	if plain.Reload != all.Reload {
		t.Errorf("reload: %+v, as comments %+v", plain.Reload, all.Reload)
	}
	if plain.Audit != all.Audit {
		t.Errorf("audit: %+v, as comments %+v", plain.Audit, all.Audit)
	}
	if plain.Commands != all.Commands || plain.Admin.Socket != all.Admin.Socket ||
		!reflect.DeepEqual(plain.TrustedPublicKeys, all.TrustedPublicKeys) {
		t.Errorf("commands, admin or trusted keys: %+v, as comments %+v", plain, all)
	}
	if p, q := plain.Principals[0], all.Principals[0]; p.Domain != q.Domain || p.NoBuilder != q.NoBuilder ||
		p.CheckBuilds != q.CheckBuilds || p.RepairBuilds != q.RepairBuilds || p.Class != q.Class || p.Weight != q.Weight ||
		p.ConnectionsPerMinute != q.ConnectionsPerMinute || p.BuildsPerMinute != q.BuildsPerMinute {
		t.Errorf("principal: %+v, as comments %+v", p, q)
	}
}
