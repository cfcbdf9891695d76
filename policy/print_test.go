package policy

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// printed returns what Print writes of a policy.
func (d dir) printed(t *testing.T, text string) string {
	t.Helper()
	var out bytes.Buffer
	if err := Print(d.write("policy.yaml", text, 0o644), &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// whole is a policy in which what is printed has much to get wrong.
const whole = `
state_dir: state
listen: ["192.0.2.1:22", ":2222"]
cache: {size: 3TiB}
admin: {users: [anna]}
load: {max_load: 2}
domains: [{name: ci, signing_keys: [ci-1.secret]}]
trusted_public_keys: ["plain-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=", {key: "mapped-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="}]
scheduling:
  linger: 0
  needs: [{name: "chromium-*", resources: {mem: 3}}, {attribute: x, value: "two\nlines: # x", resources: {mem: 1}}]
build_limits: [{timeout: 90m, max_log_size: 1GiB}]
builders:
  - {name: local, address: "unix:///nix/var/nix/daemon-socket/socket", systems: [i686-linux], load: off}
  - name: b1
    address: b1.example.org
    user: nix
    identity_file: builder-key
    host_keys: [HOSTKEY]
    systems: {x86_64-linux: 1, i686-linux: 0.25}
    resources: {mem: 8}
    domains: [ci]
    wake: {command: ["true", "#", "a: b", "010", "yes", "<<", "null", "2001-01-01"]}
    sleep: {command: ["true"], after: 1h}
principals:
  - {name: anna, role: full, domain: ci, authorized_keys: anna.keys, jump: [b1, "[2001:db8::/32]:*"], weight: 0.5}
  - name: otto
    role: read
    keys:
      - 'from="192.0.2.0/24",expiry-time="20990102",permitopen="none" OTTOKEY otto # not a comment'
`

func (d dir) whole() string {
	d.write("anna.keys", authorizedLine("anna")+"\ncert-authority,principals=\"a,b\" "+authorizedLine("ca")+"\n", 0o644)
	return strings.NewReplacer("HOSTKEY", authorizedLine("b1"), "OTTOKEY", authorizedLine("otto")).Replace(whole)
}

// Guards against a print that is not the policy: it loads again, from another
// directory, to an equal one, and prints the same values again.
func TestWhatIsPrintedLoadsToAnEqualPolicy(t *testing.T) {
	d, text := example(t)
	for name, text := range map[string]string{
		"example": text, "comments": commentedOut.ReplaceAllString(text, "$1$2"), "least": minimal,
		"whole": d.whole(), "off": minimal + "load: off\n" + builderText("    load: {min_disk: 1GiB}\n"),
		"long": "state_dir: /" + strings.Repeat("long/", 30) + "\n", "own default": minimal + "domains: [{name: ci}, {name: default, share: public}]\n",
		"empty":           minimal + "ssh: {}\nlog: {}\nscheduling: {}\n",
		"words off":       minimal + "audit: off\nssh: {per_source_penalties: off, max_startups: \"10:30:50\"}\n",
		"defaults beside": minimal + "audit: {}\nssh: {per_source_penalties: {}}\nreload: {}\nmetrics: {listen: \"[::1]:9822\"}\n",
		"nobody":          minimal + "trusted_public_keys: []\nprincipals: []\nscheduling: {needs: []}\n",
	} {
		want := d.load(t, text)
		first := d.printed(t, text)
		elsewhere := filepath.Join(t.TempDir(), "policy.yaml")
		if err := os.WriteFile(elsewhere, []byte(first), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := Load(elsewhere)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, first)
			continue
		}
		got.FileHash = want.FileHash // of other bytes
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: printed\n%s\ngot\n%+v\nwant\n%+v", name, first, got, want)
		}
	}
}

// Guards against a print without what nobody made a field of.
func TestWhatHasNoFieldIsPrintedAsItStands(t *testing.T) {
	d := newDecoder("/policy.yaml", fakeDisk{})
	d.decode([]byte(minimal + "include: []\nlog: {level: warn, format: text}\n"))
	p := printer{decoder: d}
	p.mapping(0, d.root, []field{{key: "state_dir", value: "x"}, {key: "log", value: []field{{key: "level", value: word("info")}}}}, "default")
	for i := range p.lines {
		p.lines[i].from = ""
	}
	if got, want := p.text(), minimal+"log:\n  level: warn\n  format: text\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
