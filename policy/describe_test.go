package policy

import (
	"bytes"
	"encoding/base64"
	"os"
	"strings"
	"testing"
)

func describe(t *testing.T, pol *Policy, host string) string {
	t.Helper()
	var out bytes.Buffer
	if err := pol.Describe(&out, host); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// Guards against a description that leaves out what somebody may do. Read the
// golden file as an admin would.
func TestDescribeSaysWhatThePolicyMeans(t *testing.T) {
	d, text := example(t)
	d.write("state/"+hostKeyFile, authorizedLine("proxy")+" nixbastion host key\n", 0o644)
	got := strings.ReplaceAll(describe(t, d.load(t, text), "nix.example.org"), string(d), "DIR")
	const golden = "testdata/describe.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// Guards against settings that open a door without a word about it.
func TestDescribeNamesEveryDoor(t *testing.T) {
	d := newDir(t)
	got := describe(t, d.load(t, minimal+builderText("    protocol: ssh\n")+
		"  - {name: local, address: \"unix:///daemon\", systems: [i686-linux]}\n"+
		"principals:\n  - {name: anna, role: full, keys: ["+authorizedLine("anna")+"], check_builds: refuse, repair_builds: allow, "+
		`jump: [b1, "git:22", "*:22", "*.example.org:*", "192.0.2.0/24:22", "[2001:db8::1]:22"]}`+"\n"+
		"commands: {remote_store: ignore, remote_program: refuse}\ntrusted_public_keys: []\nadmin: {socket: /run/x, users: [anna, otto]}\n"), "proxy")
	for _, want := range []string{
		"Builder b1, reached as nix@b1.example.org:22 and spoken to by nix-store --serve (protocol: ssh)",
		"Builder local, the daemon of this machine at /daemon; the proxy's own account must be in its trusted-users",
		"    anna: 1 key, no builds to check outputs (check_builds), may have outputs built again and replaced (repair_builds)",
		"      may jump through the proxy to builder b1 (b1.example.org:22), git:22, *:22 (any name without a dot), *.example.org at every port, 192.0.2.0/24:22, [2001:db8::1]:22",
		"Clients that ask for another store (remote-store) get this one all the same.",
		"Clients that name a program with its directory (remote-program) are refused.",
		"No signature proves a store path.",
		"The admin asks on /run/x: root, the proxy's own account and anna, otto.",
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("no line %q in:\n%s", want, got)
		}
	}
	long := "state_dir: /" + strings.Repeat("x", maxSocketPath) + "\n"
	if got := describe(t, d.load(t, long), "proxy"); !strings.Contains(got, "warning: the path of the admin's socket is longer than 107 bytes") {
		t.Errorf("got:\n%s", got)
	}
}

// Guards against an audience that the admin does not see: who reads what of whom,
// and for whom a key can plant.
func TestDescribeSaysWhoReadsWhat(t *testing.T) {
	d := newDir(t)
	principals := "principals:\n  - {name: anna, role: full, keys: [" + authorizedLine("anna") + "]}\n" +
		"  - {name: release, role: full, domain: ci, publish: true, keys: [" + authorizedLine("release") + "]}\n"
	closed := describe(t, d.load(t, minimal+"domains: [{name: ci}]\n"+principals), "proxy")
	if n := strings.Count(closed, "  Nobody else can read what this domain has.\n"); n != 2 {
		t.Errorf("%d domains are closed:\n%s", n, closed)
	}
	open := describe(t, d.load(t, minimal+"domains: [{name: ci, share: public}]\ntrusted_public_keys: [{key: "+trustedText("nixos-1")+", public: true}]\n"+principals), "proxy")
	for _, want := range []string{
		"A path with a signature of nixos-1 is shown to every domain, once somebody has brought it (public).",
		"  Nobody else can read what this domain has, but for what nixos-1 has signed: every domain sees that.",
		"  It reads and builds with what domain ci shows to everybody.",
		"    release: 1 key, the domain vouches for what it uploads (publish)",
		"  The one full key of this domain can plant any store path for everybody of every domain (share: public).",
		"  Every domain can read what this one has built and what proves itself, its sources and .drv files included (share: public).",
		"  What its keys upload and nothing proves stays its own, unless release sent it (publish).",
	} {
		if !strings.Contains(open, want+"\n") {
			t.Errorf("no line %q in:\n%s", want, open)
		}
	}
}

// Guards against lines that clients cannot use as they are: Nix decodes the last
// field and puts it behind the host's name.
func TestMachinesLineHasTheUnionAndTheHostKey(t *testing.T) {
	d := newDir(t)
	d.write("state/"+hostKeyFile, authorizedLine("proxy")+" nixbastion host key\n", 0o644)
	text := "state_dir: state\n" + builderText("    features: [kvm]\n    max_jobs: 20\n") +
		strings.Replace(strings.TrimPrefix(builderText("    mandatory_features: [big, kvm]\n"), "builders:\n"), "name: b1", "name: b2", 1) +
		"principals: [{name: anna, role: full, keys: [" + authorizedLine("anna") + "]}]\n"
	text = strings.Replace(text, "systems: [x86_64-linux]", "systems: [x86_64-linux, aarch64-linux]", 1)
	key := base64.StdEncoding.EncodeToString([]byte(authorizedLine("proxy")))
	for host, line := range map[string]string{
		"proxy":       "ssh-ng://proxy aarch64-linux,x86_64-linux /root/.ssh/id_ed25519 84 1 big,kvm - " + key,
		"2001:db8::1": "ssh-ng://[2001:db8::1] aarch64-linux,x86_64-linux /root/.ssh/id_ed25519 84 1 big,kvm - " + key,
	} {
		got := describe(t, d.load(t, text), host)
		for _, want := range []string{line, host + " " + authorizedLine("proxy")} {
			if !strings.Contains(got, "\n  "+want+"\n") {
				t.Errorf("no line %q in:\n%s", want, got)
			}
		}
	}
	for _, host := range []string{"", "a b", "proxy\nother ssh-ed25519 AAAA"} {
		if err := d.load(t, text).Describe(&bytes.Buffer{}, host); err == nil {
			t.Errorf("host %q: accepted", host)
		}
	}
}

// Guards against lines for a port that most versions of Nix cannot be told in a URL.
func TestAnotherPortComesWithItsSSHConfig(t *testing.T) {
	d := newDir(t)
	principals := "principals: [{name: anna, role: full, keys: [" + authorizedLine("anna") + "]}]\n"
	got := describe(t, d.load(t, minimal+`listen: [":2222"]`+"\n"+principals), "proxy")
	if !strings.Contains(got, "\n  Host proxy\n    Port 2222\n    HostKeyAlias proxy\n") {
		t.Errorf("got:\n%s", got)
	}
	got = describe(t, d.load(t, minimal+`listen: [":2222", ":22"]`+"\n"+principals), "proxy")
	if strings.Contains(got, "Port") {
		t.Errorf("got:\n%s", got)
	}
}

// Guards against policies that are valid and hardly meant.
func TestDescribeWarns(t *testing.T) {
	d := newDir(t)
	d.write("no.keys", "", 0o644)
	for text, want := range map[string]string{
		minimal:                   "warning: there is no principal: nobody can log in\nwarning: there is no builder: nothing can be built\n",
		minimal + builderText(""): "warning: there is no principal: nobody can log in\n",
		minimal + builderText("") + "principals: [{name: board, role: read, keys: [" + authorizedLine("board") + "]}]\n": "warning: builder b1 is for domains where nobody may build\n",
		minimal + "domains: [{name: ci}]\n" + builderText("") +
			"principals: [{name: ci, role: full, domain: ci, authorized_keys: no.keys}]\n": "warning: principal ci has no key: nobody can log in as it\n" +
			"warning: principal ci may build, but no builder is for domain ci\nwarning: builder b1 is for domains where nobody may build\n",
	} {
		got := describe(t, d.load(t, text), "proxy")
		if _, warnings, _ := strings.Cut(got, "\nwarning: "); "warning: "+warnings != want {
			t.Errorf("%s\ngot:\n%s\nwant the warnings:\n%s", text, got, want)
		}
	}
	full := minimal + builderText("") + "principals: [{name: anna, role: full, keys: [" + authorizedLine("anna") + "]}]\n"
	if got := describe(t, d.load(t, full), "proxy"); strings.Contains(got, "warning") {
		t.Errorf("got:\n%s", got)
	}
}
