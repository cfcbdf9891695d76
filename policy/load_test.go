package policy

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const minimal = "state_dir: /var/lib/nixbastion\n"

func builderText(extra string) string {
	return "builders:\n  - name: b1\n    address: b1.example.org\n    user: nix\n    identity_file: builder-key\n" +
		"    host_keys: [" + authorizedLine("b1") + "]\n    systems: [x86_64-linux]\n" + extra
}

// Guards against defaults that open something: the least policy lets nobody in.
func TestDefaultsOfTheLeastPolicy(t *testing.T) {
	pol := newDir(t).load(t, minimal)
	if len(pol.Principals) != 0 || len(pol.keys) != 0 || len(pol.Builders) != 0 {
		t.Errorf("somebody is in: %+v", pol)
	}
	if len(pol.Domains) != 1 || pol.Domains[0].Name != "default" || len(pol.Listen) != 1 || pol.Listen[0] != ":22" {
		t.Errorf("domains %v, listen %v", pol.Domains, pol.Listen)
	}
	if pol.Cache != (Cache{50 << 30, 5 << 30, 8 << 20}) || pol.Limits != (Limits{BuildLog: 64 << 20, BuildLogs: 1 << 30, BuildHistory: 1000, NarSize: 64 << 30}) {
		t.Errorf("cache %+v, limits %+v", pol.Cache, pol.Limits)
	}
	if pol.Log != (Log{slog.LevelInfo, "json"}) || pol.SSH.Ciphers != nil {
		t.Errorf("log %+v, ciphers %v", pol.Log, pol.SSH.Ciphers)
	}
	if pol.Commands != (Commands{RemoteStoreRefuse, false}) || pol.Admin.Socket != "/var/lib/nixbastion/admin.sock" || pol.Admin.Users != nil {
		t.Errorf("commands %+v, admin %+v", pol.Commands, pol.Admin)
	}
	if keys := pol.TrustedPublicKeys; len(keys) != 1 || keys[0].Name() != "cache.nixos.org-1" {
		t.Errorf("trusted keys %v", keys)
	}
}

// Guards against settings that end up in another field.
func TestSettingsArriveWhereTheyBelong(t *testing.T) {
	d := newDir(t)
	d.write("hosts", "b2.example.org,[b2.example.org]:2222 "+authorizedLine("b2")+"\n", 0o644)
	pol := d.load(t, `
listen: ["192.0.2.1:22", "[::1]:2222"]
state_dir: state
ssh: {ciphers: [aes256-gcm@openssh.com]}
cache: {size: 3TiB, spool_reserve: 0}
limits: {nar_size: 7MiB, build_log: 9 KiB, build_logs: 0, build_history: 7}
log: {level: warn, format: text}
domains: [{name: ci}, {name: default, share: public}]
`+builderText(`    features: [kvm]
    mandatory_features: [big]
    max_jobs: 3
    speed_factor: 1.5
    remote_program: /opt/nix/bin/nix-daemon
    domains: [ci]
    builder_content: match
  - name: b2
    address: "b2.example.org:2222"
    user: builder
    identity_file: builder-key
    known_hosts: hosts
    systems: {aarch64-linux: 0.5, armv7l-linux: 1}
principals:
  - {name: anna, role: read, domain: ci, keys: [`+authorizedLine("anna")+`], max_jobs: 4, max_connections: 5, no_builder: refuse}
  - {name: otto, role: full, keys: [`+authorizedLine("otto")+`], jump: [b2, "b2:2222"]}
  - {name: eva, role: full, keys: [`+authorizedLine("eva")+`], check_builds: refuse, repair_builds: allow, publish: true}
commands: {remote_store: ignore, remote_program: refuse}
trusted_public_keys: [`+trustedText("plain-1")+`, {key: `+trustedText("public-1")+`, public: true}, {key: `+trustedText("own-1")+`, public: false}]
admin: {socket: run/admin, users: [anna, otto]}
`))
	if pol.StateDir != d.path("state") || pol.Listen[1] != "[::1]:2222" || pol.SSH.Ciphers[0] != "aes256-gcm@openssh.com" {
		t.Errorf("got %+v", pol)
	}
	if pol.Cache != (Cache{3 << 40, 0, 8 << 20}) || pol.Limits != (Limits{NarSize: 7 << 20, BuildLog: 9 << 10, BuildHistory: 7}) || pol.Log != (Log{slog.LevelWarn, "text"}) {
		t.Errorf("cache %+v, limits %+v, log %+v", pol.Cache, pol.Limits, pol.Log)
	}
	b := pol.Builders[0]
	if b.Name != "b1" || b.Address != "b1.example.org:22" || b.User != "nix" || b.IdentityFile != d.path("builder-key") ||
		len(b.HostKeys) != 1 || b.KnownHosts != "" || b.Systems["x86_64-linux"] != 1 || b.Features[0] != "kvm" || b.MandatoryFeatures[0] != "big" ||
		b.MaxJobs != 3 || b.SpeedFactor != 1.5 || b.RemoteProgram != "/opt/nix/bin/nix-daemon" || b.Domains[0] != "ci" || b.Content != ContentMatch {
		t.Errorf("builder %+v", b)
	}
	b = pol.Builders[1]
	if b.Address != "b2.example.org:2222" || b.KnownHosts != d.path("hosts") || len(b.HostKeys) != 0 || b.Systems["aarch64-linux"] != 0.5 ||
		b.MaxJobs != 1 || b.SpeedFactor != 1 || b.Domains[0] != "default" || b.Content != ContentAccept {
		t.Errorf("builder %+v", b)
	}
	want := Principal{Name: "anna", Role: RoleRead, Domain: "ci", MaxJobs: 4, MaxConnections: 5, ConnectionsPerMinute: 6000, BuildsPerMinute: 6000,
		NoBuilder: NoBuilderRefuse, Weight: 1}
	if !reflect.DeepEqual(pol.Principals[0], want) {
		t.Errorf("principal %+v, want %+v", pol.Principals[0], want)
	}
	if p := pol.Principals[1]; !p.CheckBuilds || p.RepairBuilds || !slices.Equal(p.Jump, []JumpTarget{{Builder: "b2"}, {Host: "b2", Port: 2222}}) {
		t.Errorf("principal %+v", p)
	}
	if p := pol.Principals[2]; p.CheckBuilds || !p.RepairBuilds || !p.Publish || p.Jump != nil {
		t.Errorf("principal %+v", p)
	}
	if pol.Commands != (Commands{RemoteStoreIgnore, true}) || !slices.Equal(trusted(pol), []string{"plain-1", "public-1 public", "own-1"}) ||
		pol.Admin.Socket != d.path("run/admin") || !slices.Equal(pol.Admin.Users, []string{"anna", "otto"}) {
		t.Errorf("commands %+v, trusted keys %v, admin %+v", pol.Commands, pol.TrustedPublicKeys, pol.Admin)
	}
}

// trustedText is a key for trusted_public_keys.
func trustedText(name string) string {
	return fmt.Sprintf("%q", name+":6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=")
}

func trusted(pol *Policy) []string {
	var all []string
	for _, key := range pol.TrustedPublicKeys {
		text := key.Name()
		if key.Public {
			text += " public"
		}
		all = append(all, text)
	}
	return all
}

// Guards against an audience that is wider than its admin wrote: all settings that
// open something are off, and the domain that is always there can have its own.
func TestNothingIsSharedByDefault(t *testing.T) {
	d := newDir(t)
	pol := d.load(t, minimal+"domains: [{name: ci}]\nprincipals: [{name: anna, role: full, keys: ["+authorizedLine("anna")+"]}]\n")
	if !reflect.DeepEqual(pol.Domains, []Domain{{Name: "default"}, {Name: "ci"}}) || pol.Principals[0].Publish || pol.TrustedPublicKeys[0].Public {
		t.Errorf("domains %v, principals %+v, keys %+v", pol.Domains, pol.Principals, pol.TrustedPublicKeys)
	}
	pol = d.load(t, minimal+"domains: [{name: ci, share: public}, {name: default, share: none}]\n")
	if !reflect.DeepEqual(pol.Domains, []Domain{{Name: "default"}, {Name: "ci", Share: SharePublic}}) {
		t.Errorf("domains %v", pol.Domains)
	}
	pol = d.load(t, minimal+"domains: [{name: default, share: public}]\n")
	if !reflect.DeepEqual(pol.Domains, []Domain{{Name: "default", Share: SharePublic}}) {
		t.Errorf("domains %v", pol.Domains)
	}
}

// Guards against a socket that is dialled as a host, or a program of the other
// protocol.
func TestBuildersAreReachedAsTheFileSays(t *testing.T) {
	d := newDir(t)
	pol := d.load(t, minimal+builderText("    protocol: ssh\n    remote_program: /opt/nix/bin/nix-store\n")+
		"  - {name: local, address: \"unix:///nix/var/nix/daemon-socket/socket\", systems: [i686-linux], max_jobs: 2, features: [kvm]}\n")
	if b := pol.Builders[0]; b.Protocol != ProtocolServe || b.RemoteProgram != "/opt/nix/bin/nix-store" || b.Socket != "" {
		t.Errorf("builder %+v", b)
	}
	want := Builder{
		Name: "local", Socket: "/nix/var/nix/daemon-socket/socket", Systems: map[string]float64{"i686-linux": 1}, Features: []string{"kvm"},
		MaxJobs: 2, SpeedFactor: 1, Domains: []string{"default"}, Content: ContentAccept, Load: defaultLoad(),
	}
	if !reflect.DeepEqual(pol.Builders[1], want) {
		t.Errorf("builder %+v, want %+v", pol.Builders[1], want)
	}
}

func TestBuilderAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"b1": "b1:22", "b1:2222": "b1:2222", "192.0.2.1": "192.0.2.1:22", "2001:db8::1": "[2001:db8::1]:22",
		"[2001:db8::1]": "[2001:db8::1]:22", "[2001:db8::1]:2222": "[2001:db8::1]:2222", "b1.example.org.": "b1.example.org.:22",
	} {
		if got, err := builderAddress(text); got != want || err != nil {
			t.Errorf("%s: got %s, %v", text, got, err)
		}
	}
}

// Guards against a wrong file name that fills memory, or hangs.
func TestFilesThatAreNoPoliciesAreRefusedUnread(t *testing.T) {
	d := newDir(t)
	pipe := d.path("pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		d.write("big.yaml", minimal+strings.Repeat("#", maxPolicyBytes), 0o644): "larger than 1MiB",
		pipe:                                 "not a regular file",
		string(d):                            "not a regular file",
		d.path("none.yaml"):                  "no such file",
		d.write("open.yaml", minimal, 0o666): "everybody may write this file",
	} {
		if pol, err := Load(name); err == nil || pol != nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: got %v, %v", filepath.Base(name), pol, err)
		}
	}
	if _, err := Load(d.write("most.yaml", minimal+strings.Repeat("#", maxPolicyBytes-len(minimal)), 0o644)); err != nil {
		t.Errorf("a policy of 1 MiB: %v", err)
	}
}

// The same for the files that a policy names. Whoever may write them decides who
// gets in.
func TestFilesOfKeysAreBoundedAndNotForEverybodyToWrite(t *testing.T) {
	d := newDir(t)
	large := d.write("large", strings.Repeat("#", maxKeysBytes+1), 0o644)
	open := d.write("open", "b1.example.org "+authorizedLine("b1")+"\n", 0o646)
	for file, want := range map[string]string{large: "larger than 4MiB", open: "everybody may write"} {
		for _, text := range []string{
			minimal + strings.Replace(builderText(""), "host_keys: ["+authorizedLine("b1")+"]", "known_hosts: "+file, 1),
			minimal + "principals: [{name: anna, role: full, authorized_keys: " + file + "}]\n",
		} {
			_, err := Load(d.write("policy.yaml", text, 0o644))
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v", text, err)
			}
		}
	}
}

// Guards against a flood of messages for a file of another kind.
func TestMistakesAreBounded(t *testing.T) {
	d := newDir(t)
	_, err := Load(d.write("policy.yaml", minimal+"builders:\n"+strings.Repeat("  - x\n", 1000), 0o644))
	m := err.(*Mistakes)
	if len(m.List) != maxMistakes || m.More != 1000-maxMistakes || !strings.HasSuffix(err.Error(), "\nand 800 more") {
		t.Errorf("%d mistakes and %d more", len(m.List), m.More)
	}
}

// Guards against samples that pass because of the umask of whoever ran the test.
func TestIdentityMayBeReadableByItsOwnerAlone(t *testing.T) {
	d := newDir(t)
	for mode, fine := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o640: false, 0o604: false, 0o610: false} {
		d.write("builder-key", privatePEM(testPrivateKey("builder")), mode)
		_, err := Load(d.write("policy.yaml", minimal+builderText(""), 0o644))
		if (err == nil) != fine {
			t.Errorf("mode %#o: %v", mode, err)
		}
	}
}

// Guards against mistakes that send the reader to another line than the one that is
// wrong: what the YAML parser counts from zero or does not count at all.
func TestWhatIsNoYAMLHasItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"state_dir: /x\nlog: {level: info\nlisten: [a]\n":     "2:1: not YAML: did not find expected ',' or '}'",
		"state_dir: /x\nlisten: [a\nlog: {}\n":                "2:1: not YAML: did not find expected ',' or ']'",
		"log: {level: info\nlisten: [a]\n":                    "2:1: not YAML: did not find expected ',' or '}'",
		"state_dir: /x\n- a\n":                                "2:1: not YAML: did not find expected key",
		"state_dir: /x\nfoo: |\n   a\n  b\n":                  "4:1: not YAML: did not find expected key",
		"state_dir: /x\nlisten:\n  - a\n  b: c\n":             "3:1: not YAML: did not find expected '-' indicator",
		"state_dir: /x\nlog: !foo!x bar\n":                    "2:1: not YAML: found undefined tag handle",
		"state_dir: /x\n...\nlog: 1\n":                        "3:1: not YAML: did not find expected <document start>",
		"state_dir: /x\nlog:\n  - [\n":                        "3:1: not YAML: did not find expected node content",
		"state_dir: /x\n  log: 3\n":                           "2:1: not YAML: mapping values are not allowed in this context",
		"state_dir: /x\nlog:\n\tlevel: info\n":                "3:1: not YAML: found character that cannot start any token",
		"state_dir: /x\r\nlog:\r\n\tlevel: info\r\n":          "3:1: not YAML: found character that cannot start any token",
		"\ufeffstate_dir: /x\nlog: \"abc\n":                   "2:1: not YAML: found unexpected end of stream",
		"state_dir: /x\nlog: {level: \xff}\n":                 "2:14: not YAML: invalid leading UTF-8 octet",
		"state_dir: /ä\r\nlog: {level: ä\xe4}\n":              "2:15: not YAML: invalid trailing UTF-8 octet",
		"state_dir: /x\nlog: {level: \x1b[1m}\n":              "2:14: not YAML: control characters are not allowed",
		"state_dir: /x\nlog: {level: \u009b}\n":               "2:14: not YAML: control characters are not allowed",
		"state_dir: /x\n# ä\x00\n":                            "2:4: not YAML: control characters are not allowed",
		"state_dir: /x\nlog: *level\n":                        "2:6: not YAML: unknown anchor 'level' referenced",
		"state_dir: /x\nlog: {}\n--- \nlog: {level: info\n\n": "4:1: not YAML: did not find expected ',' or '}'",
	} {
		_, err := parse("policy.yaml", []byte(text), fakeDisk{})
		if err == nil || !strings.HasPrefix(err.Error(), "policy.yaml:"+want+"\n") {
			t.Errorf("%q: got %.120v, want %s", text, err, want)
		}
	}
}
