package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A notary is a proxy whose audit log is looked at, a client that builds and has
// fail2ban, and a stranger's key.
type notary struct {
	bed             *testbed.Bed
	proxy           *world.Proxy
	client          *testbed.Host
	alice, stranger testbed.Key
}

func startNotary(t *testing.T) *notary {
	t.Helper()
	bed := testbed.ForTest(t)
	n := &notary{bed: bed, alice: bed.UserKey("alice"), stranger: bed.UserKey("stranger")}
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder, MaxJobs: 4},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Nix: testbed.Nix226, Keys: []testbed.Key{n.alice, n.stranger}, Packages: []string{"fail2ban"}})
	n.client = hosts[1]
	n.proxy = startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: hosts[0], MaxJobs: 4}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{n.alice}}},
		Extra:      "ssh: {per_source_penalties: off}\n", // one refused login after another is looked at here
	})
	setMachines(t, n.client, n.proxy.Machine(n.alice))
	build(t, n.client, testbed.Derivation{Name: "first"}) // several at once would all set up the client's new store
	return n
}

// The audit log of a real proxy, that real clients use and a kill ends.
func TestAuditLog(t *testing.T) {
	counted(t)
	n := startNotary(t)
	t.Run("kill behind an answer", n.testKill)
	t.Run("fail2ban", n.testFail2ban)
	t.Run("full disk", n.testFullDisk)
}

// event is a line of the audit log, as other programs read it.
type event struct {
	Event, Principal, Key, Address, Drv, Builder, Path, Result string
	NarHash                                                    string `json:"nar_hash"`
	Outputs                                                    []struct {
		Path, NarHash string
		Hash          string `json:"nar_hash"`
	}
}

// grep asks the log, as root does on the proxy's host.
func (n *notary) grep(t *testing.T, filters string) (events []event) {
	t.Helper()
	text := n.proxy.Host().MustShell(t, world.Binary+" audit grep --json --config "+world.ConfigFile+" "+filters)
	for line := range strings.Lines(text) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		events = append(events, e)
	}
	return events
}

// verify wants the chain whole and returns what is said about it.
func (n *notary) verify(t *testing.T) string {
	t.Helper()
	return n.proxy.Host().MustShell(t, world.Binary+" audit verify --config "+world.ConfigFile)
}

// Guards against a build whose client has its answer and which nobody can prove: the
// proxy is killed the moment one of several clients has it. Everybody who has one is
// in the log, with the bytes that he has, and the chain is whole.
func (n *notary) testKill(t *testing.T) {
	host := n.proxy.Host()
	var answered []string
	for round := range 2 {
		builds := n.startSome(t, round)
		<-builds[0].done
		if err := n.proxy.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.verify(t)
		if err := n.proxy.Kill(); err != nil {
			t.Fatal(err)
		}
		for i, b := range builds {
			if res := b.wait(t); res.Status == 0 {
				answered = append(answered, strings.TrimSpace(res.Stdout))
			} else if i == 0 {
				t.Fatalf("the first build failed:\n%s", tail(res.Stderr))
			}
		}
		for _, path := range answered {
			n.wantProven(t, path)
		}
		if err := n.proxy.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.verify(t)
	}
	if mode := host.MustShell(t, "stat -c '%a %U' "+world.StateDir+"/audit "+world.StateDir+"/audit/audit.jsonl"); mode != "700 root\n600 root\n" {
		t.Errorf("modes and owners:\n%s", mode)
	}
	// Nothing of it is only said: one changed line is named.
	res, err := host.Shell(t.Context(), fmt.Sprintf("cp %s/audit/audit.jsonl /root/changed.jsonl && sed -i '3s/alice/otto_/' /root/changed.jsonl && %s audit verify /root/changed.jsonl", world.StateDir, world.Binary))
	if err != nil || res.Status != 1 || !strings.Contains(res.Stderr, "/root/changed.jsonl:3: it is not as it was written") {
		t.Errorf("a changed line: %+v, %v", res, err)
	}
}

// startSome begins builds that take differently long, each with a source of its own.
func (n *notary) startSome(t *testing.T, round int) (builds []*running) {
	t.Helper()
	for i := range 3 {
		name := fmt.Sprintf("kill-%d-%d", round, i)
		n.client.MustShell(t, "echo "+name+" >/root/"+name)
		d := testbed.Derivation{Name: name, Sources: []string{"/root/" + name}, KeepInputs: true, Sleep: time.Duration(i) * 200 * time.Millisecond}
		builds = append(builds, startBuild(t, n.client, writeExpression(t, n.client, d), []string{name}))
	}
	return builds
}

// wantProven wants to read in the log who had a path built where, with the hash that
// the client's own store has, and who brought its source from where.
func (n *notary) wantProven(t *testing.T, path string) {
	t.Helper()
	const digest = "nix-store --query --hash "
	name := path[strings.IndexByte(path, '-')+1:]
	found := n.grep(t, "--event build --path "+path)
	if len(found) != 1 {
		t.Fatalf("%d lines about the build of %s: %+v", len(found), path, found)
	}
	b := found[0]
	if b.Principal != "alice" || b.Builder != "builder" || b.Result != "Built" || !strings.HasSuffix(b.Drv, "-"+name+".drv") ||
		b.Key != fingerprint(n.alice) || b.Address != n.client.Addr().String() || b.Outputs[0].Hash != strings.TrimSpace(n.client.MustShell(t, digest+path)) {
		t.Errorf("build of %s: %+v", path, b)
	}
	source := strings.Fields(n.client.MustShell(t, "nix-store --query --references "+path))
	uploads := n.grep(t, "--event upload --principal alice --path "+source[0])
	if len(source) != 1 || len(uploads) != 1 || uploads[0].NarHash != strings.TrimSpace(n.client.MustShell(t, digest+source[0])) {
		t.Errorf("upload of %s: %+v", source, uploads)
	}
	if logins := n.grep(t, "--event login --since 10m --address "+n.client.Addr().String()); len(logins) == 0 || logins[0].Key != fingerprint(n.alice) {
		t.Errorf("logins: %+v", logins)
	}
}

// Guards against a filter that no longer fits the line: fail2ban itself reads what the
// proxy wrote about logins that it refused, in both formats, and finds the address of
// each and nothing that a client has made up.
func (n *notary) testFail2ban(t *testing.T) {
	mark := n.proxy.Mark()
	const refusals = 3
	for range refusals {
		n.refused(t, "")
	}
	// One that never comes to a login and tries to look as if another had.
	n.client.MustShell(t, `exec 3<>/dev/tcp/proxy/22; printf 'SSH-2.0-x","level":"WARN","msg":"ssh login refused","addr":"9.9.9.9",\r\n' >&3; timeout 5 cat <&3 >/dev/null & sleep 0.2; kill %1`)
	waitLine(t, n.proxy, mark, world.Message("ssh handshake failed"))
	n.wantBans(t, logSince(n.proxy, mark), refusals)
	n.wantBans(t, n.textLog(t), refusals)
	if found := n.grep(t, "--event login_refused --since 10m"); len(found) < refusals || found[0].Address != n.client.Addr().String() {
		t.Errorf("in the audit log: %+v", found)
	}
}

func (n *notary) refused(t *testing.T, options string) {
	t.Helper()
	res, err := n.client.Shell(t.Context(), "ssh -o BatchMode=yes -o IdentitiesOnly=yes "+options+" -i "+n.stranger.File()+" proxy status")
	if err != nil || res.Status != 255 {
		t.Fatalf("a stranger got in: %+v, %v", res, err)
	}
}

// textLog is the log of a second proxy, for people, of as many logins that it refused.
func (n *notary) textLog(t *testing.T) string {
	t.Helper()
	host := n.proxy.Host()
	policy := strings.Replace(n.proxy.Spec().Policy(n.bed), world.StateDir, "/root/second", 1)
	policy = strings.Replace(policy, "0.0.0.0:22", "0.0.0.0:2222", 1) + "log: {format: text}\n"
	if err := host.WriteFile(t.Context(), "/root/second.yaml", []byte(policy)); err != nil {
		t.Fatal(err)
	}
	second := startScript(t, host, "exec "+world.Binary+" serve --config /root/second.yaml 2>/root/second.log")
	defer second.kill()
	eventually(t, "the second proxy serves", patience, func() bool {
		res, err := host.Shell(t.Context(), "grep -q msg=serving /root/second.log")
		return err == nil && res.Status == 0
	})
	for range 3 {
		n.refused(t, "-p 2222 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null")
	}
	return host.MustShell(t, "cat /root/second.log")
}

// wantBans has fail2ban read a log with the filter that is shipped.
func (n *notary) wantBans(t *testing.T, log string, want int) {
	t.Helper()
	const filter, file = "/root/filter.d/nixbastion.conf", "/root/proxy.log"
	if err := n.client.CopyFile(t.Context(), filepath.Join("../../docs/fail2ban/filter.d/nixbastion.conf"), filter); err != nil {
		t.Fatal(err)
	}
	if err := n.client.WriteFile(t.Context(), file, []byte(log)); err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(n.client.MustShell(t, "fail2ban-regex -o ip "+file+" "+filter))
	if wanted := slices.Repeat([]string{n.client.Addr().String()}, want); !slices.Equal(got, wanted) {
		t.Errorf("fail2ban would count %q, not %q, in:\n%s", got, wanted, tail(log))
	}
}

// Guards against builds that go on unseen on a full disk, and against a proxy that has
// to be started again afterwards.
func (n *notary) testFullDisk(t *testing.T) {
	host := n.proxy.Host()
	host.MustShell(t, "mkdir /small && mount -t tmpfs -o size=16k tmpfs /small")
	if err := n.proxy.WritePolicy(t.Context(), n.proxy.Spec().Policy(n.bed)+"audit: {file: /small/audit.jsonl}\n"); err != nil {
		t.Fatal(err)
	}
	if err := n.proxy.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	build(t, n.client, testbed.Derivation{Name: "with-room"})
	host.MustShell(t, "dd if=/dev/zero of=/small/rest bs=1k 2>/dev/null || true")
	n.untilRefused(t)
	host.MustShell(t, "rm /small/rest")
	mark := n.proxy.Mark()
	waitLine(t, n.proxy, mark-min(mark, 200), world.Message("audit log is written again"))
	build(t, n.client, testbed.Derivation{Name: "with-room-again"})
	if found := n.grep(t, "--event build"); found[0].Result != "Built" || found[len(found)-1].Result != "Built" {
		t.Errorf("builds: %+v", found)
	}
	n.verify(t)
}

// untilRefused builds until there is no room for a line about it.
func (n *notary) untilRefused(t *testing.T) {
	t.Helper()
	for i := range 20 {
		d := testbed.Derivation{Name: fmt.Sprintf("no-room-%d", i)}
		res := startBuild(t, n.client, writeExpression(t, n.client, d), []string{d.Name}).wait(t)
		if res.Status != 0 {
			wantText(t, "the refusal", res.Stderr, "cannot write its audit log")
			return
		}
	}
	t.Error("builds go on although the disk is full")
}
