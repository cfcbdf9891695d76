package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"nixbastion/internal/docs"
	"nixbastion/internal/testbed"
)

// A served is a proxy that was installed as docs/install.md says, under a systemd of its
// own, with a builder and a client.
type served struct {
	*pageReader
	t                    *testing.T
	proxy, builder, host *testbed.Host
	// old says that its systemd is older than 253.
	old bool
}

// sourceFolder is where the host has what an admin has built.
const sourceFolder = "/src"

// The keys that stand in the pages for those of others.
const (
	pageBuilderKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
	pageClientKey  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICAhIiMkJSYnKCkqKywtLi8wMTIzNDU2Nzg5Ojs8PT4/"
)

// Whoever does what docs/install.md says has a service of systemd that builds, that takes
// its keys as credentials, and that reload, upgrade, restart, watchdog and stop find as
// docs/operations.md says. Guards against units and commands that only look right.
func TestServiceOfSystemd(t *testing.T) {
	for _, version := range []string{testbed.Nix28, testbed.Nix226, testbed.Nix234} { // whose Debian has another systemd
		t.Run(version, func(t *testing.T) {
			s := startService(t, version)
			s.followAll("install.md")
			build(t, s.host, testbed.Derivation{Name: "first"})
			s.followAll("audit.md")
			t.Run("credential", func(t *testing.T) { s.with(t).takesACredential() })
			t.Run("reload", func(t *testing.T) { s.with(t).reloads() })
			t.Run("upgrade", func(t *testing.T) { s.with(t).upgrades() })
			t.Run("restart", func(t *testing.T) { s.with(t).restarts() })
			t.Run("mistakes", func(t *testing.T) { s.with(t).doesNotStartWithMistakes() })
			t.Run("watchdog", func(t *testing.T) { s.with(t).isWatched() })
			t.Run("stop", func(t *testing.T) { s.with(t).stops() })
		})
	}
}

func (s served) with(t *testing.T) served {
	s.t, s.pageReader = t, &pageReader{t: t, hosts: s.hosts, said: s.said}
	return s
}

func startService(t *testing.T, version string) served {
	t.Helper()
	bed := testbed.ForTest(t)
	key := bed.UserKey("anna")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "nix", Kind: testbed.Systemd, Nix: version,
			Binds: map[string]string{sourceFolder + "/bin/nixbastion": os.Getenv("NIXBASTION_BIN")}},
		testbed.HostSpec{Name: "builder1", Kind: testbed.Builder, MaxJobs: 8, Features: []string{"kvm", "big-parallel"},
			SSHD: []string{"AuthorizedKeysFile .ssh/authorized_keys"}},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	s := served{t: t, old: version == testbed.Nix28, proxy: hosts[0], builder: hosts[1], host: hosts[2], pageReader: &pageReader{t: t,
		hosts: map[string]*testbed.Host{"nix": hosts[0], "builder1": hosts[1]},
		said: map[string]string{
			pageBuilderKey: bed.HostKey("builder1").AuthorizedLine(),
			pageClientKey:  key.AuthorizedLine(),
		}}}
	t.Cleanup(func() {
		if t.Failed() {
			res, err := s.proxy.Shell(context.WithoutCancel(t.Context()), "journalctl -o short-precise --no-hostname -u 'nixbastion*' | grep -v -e goroutine -e 0x | tail -n 200")
			t.Logf("the journal, %v:\n%s", err, res.Stdout)
		}
	})
	s.copyUnits()
	// A page has no step for what is done on other hosts.
	machine := testbed.Machine{Store: "ssh-ng://nix", Key: key, MaxJobs: 8}
	setMachines(t, s.host, machine)
	s.host.MustShell(t, "mkdir -p /root/.ssh && printf 'Host *\\n\\tStrictHostKeyChecking accept-new\\n\\tGlobalKnownHostsFile /dev/null\\n' >/root/.ssh/config")
	return s
}

// copyUnits puts the units where the source is.
func (s served) copyUnits() {
	s.t.Helper()
	const dir = "../../systemd"
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return s.proxy.WriteFile(s.t.Context(), filepath.Join(sourceFolder, "systemd", name), text)
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.proxy.MustShell(s.t, "mkdir -p /usr/local/bin") // as every Debian has
	if s.old {
		s.shell(`mkdir -p /etc/systemd/system/nixbastion.service.d
			{ echo '[Service]'; sed -n '/before 253/,/^$/ s/^#\([A-Z]\)/\1/p' /src/systemd/override.conf; } >/etc/systemd/system/nixbastion.service.d/override.conf
			grep -q ExecReload=.*reload /etc/systemd/system/nixbastion.service.d/override.conf`)
	}
}

// followAll does what a page says for the proxy's host, and lets the builder's admin do
// what is theirs when the key is there.
func (s served) followAll(page string) {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join("../../docs", page))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, b := range docs.Blocks(string(text)) {
		if !b.Has("on") {
			continue
		}
		s.follow(b)
		if strings.Contains(b.Text, "ssh-keygen") {
			public := s.proxy.MustShell(s.t, "cat /etc/nixbastion/builder-key.pub")
			if err := s.builder.WriteFile(s.t.Context(), "/home/nix/.ssh/authorized_keys", []byte("restrict "+public)); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// shell runs a script where the service is.
func (s served) shell(script string) string {
	s.t.Helper()
	return s.proxy.MustShell(s.t, script)
}

// property is what systemd knows of the service.
func (s served) property(name string) string {
	s.t.Helper()
	return strings.TrimSpace(s.shell("systemctl show --value --property " + name + " nixbastion.service"))
}

func (s served) mainPID() int {
	s.t.Helper()
	pid, err := strconv.Atoi(s.property("MainPID"))
	if err != nil || pid == 0 {
		s.t.Fatalf("the service has the process %d, %v", pid, err)
	}
	return pid
}

// The key is root's alone, and its file is nowhere that the account could look.
func (s served) takesACredential() {
	s.shell(`mv /etc/nixbastion/builder-key /etc/credstore/nixbastion.builder-key
		chown root: /etc/credstore/nixbastion.builder-key && chmod 600 /etc/credstore/nixbastion.builder-key
		sed -i 's|identity_file: .*|identity_file: credential:nixbastion.builder-key|' /etc/nixbastion/config.yaml
		systemctl restart nixbastion
		nixbastion check /etc/nixbastion/config.yaml >/dev/null`)
	build(s.t, s.host, testbed.Derivation{Name: "by-credential"})
}

func (s served) reloads() {
	before := s.mainPID()
	s.shell("cp /etc/nixbastion/config.yaml /tmp/good && sed -i 's/max_jobs: 8/maxjobs: 8/' /etc/nixbastion/config.yaml")
	if s.old { // which can be told only by failing
		if got := s.shell("systemctl reload nixbastion; echo $?"); got != "1\n" {
			s.t.Errorf("a reload with a mistake ends with %s", got)
		}
	} else {
		s.shell("systemctl reload nixbastion")
		if got := s.property("StatusText"); !strings.Contains(got, "policy refused") || !strings.Contains(got, `unknown key "maxjobs"`) {
			s.t.Errorf("after a mistake systemd shows %q", got)
		}
	}
	s.shell("sed 's/max_jobs: 8/max_jobs: 3/' /tmp/good >/etc/nixbastion/config.yaml && systemctl reload nixbastion")
	if got := s.property("StatusText"); got != "policy loaded" {
		s.t.Errorf("after a reload systemd shows %q", got)
	}
	if got := s.shell("nixbastion status"); !strings.Contains(got, "0/3 busy") {
		s.t.Errorf("the new policy does not count:\n%s", got)
	}
	if after := s.mainPID(); after != before || s.property("ActiveState") != "active" {
		s.t.Errorf("the process was %d and is %d, %s", before, after, s.property("ActiveState"))
	}
}

// The pages' own upgrade, while something is built.
func (s served) upgrades() {
	name := "upgraded"
	run, log := startWatched(s.t, s.host, gated(name))
	awaitText(s.t, s.host, log, "before the gate")
	before := s.mainPID()
	paths, _ := build(s.t, s.host, testbed.Derivation{Name: "before-upgrade"})
	s.said["/nix/store/..."] = paths[0]
	s.followAll("operations.md")
	delete(s.said, "/nix/store/...")
	if after := s.mainPID(); after == before {
		s.t.Errorf("the main process is still %d", after)
	}
	build(s.t, s.host, testbed.Derivation{Name: "while-both-run"})
	openGate(s.t, s.builder, name)
	run.mustSucceed(s.t)
	eventually(s.t, "the old process has ended", patience, func() bool {
		return s.shell("pgrep -c -f '^/usr/local/bin/nixbastion serve'") == "1\n"
	})
	if got := s.property("ActiveState") + " " + s.property("NRestarts"); got != "active 0" {
		s.t.Errorf("the service is %s", got)
	}
	s.shell("systemctl reload nixbastion")
	if got := s.property("StatusText"); got != "policy loaded" {
		s.t.Errorf("after a reload of the new process systemd shows %q", got)
	}
	s.shell("kill -SEGV " + strconv.Itoa(s.mainPID()))
	eventually(s.t, "systemd has started anew what took another's place and crashed", patience, func() bool {
		return s.property("NRestarts") == "1" && s.property("ActiveState") == "active"
	})
	s.shell("systemctl start nixbastion-upgrade") // and what follows is of a process that took another's place
}

// What runs ends, and who comes meanwhile waits at the socket.
func (s served) restarts() {
	run, log := startWatched(s.t, s.host, gated("restarted"))
	awaitText(s.t, s.host, log, "before the gate")
	restarted := startScript(s.t, s.proxy, "systemctl restart nixbastion")
	awaitText(s.t, s.host, log, "this host restarts; the build goes on")
	waiting := startScript(s.t, s.host, "ssh -i /root/.ssh/anna nix status")
	openGate(s.t, s.builder, "restarted")
	run.mustSucceed(s.t)
	if res := restarted.wait(s.t); res.Status != 0 {
		s.t.Fatalf("restart ends with status %d\n%s", res.Status, res.Stderr)
	}
	if res := waiting.wait(s.t); res.Status != 0 || !strings.Contains(res.Stdout, "builder1") {
		s.t.Errorf("who came meanwhile: status %d\n%s%s", res.Status, res.Stdout, res.Stderr)
	}
	if n := timesRun(s.t, s.builder, "restarted"); n != 1 {
		s.t.Errorf("the build ran %d times", n)
	}
}

// A start with mistakes fails once, and says where they are; mended, it starts at once.
func (s served) doesNotStartWithMistakes() {
	s.shell("systemctl stop nixbastion.socket nixbastion && cp /etc/nixbastion/config.yaml /tmp/good && echo 'nonsense: 1' >>/etc/nixbastion/config.yaml")
	if got := s.shell("systemctl start nixbastion 2>/dev/null; echo $?"); got != "1\n" {
		s.t.Errorf("it starts with a mistake: %s", got)
	}
	s.shell("sleep 3") // three times RestartSec
	if got := s.property("NRestarts") + " " + s.property("ActiveState") + " " + s.property("ExecMainStatus"); got != "0 failed 78" {
		s.t.Errorf("after a start with a mistake: %s", got)
	}
	if got := s.shell("journalctl -u nixbastion -o cat -n 20"); !strings.Contains(got, `unknown key "nonsense"`) {
		s.t.Errorf("the journal says:\n%s", got)
	}
	s.shell("cp /tmp/good /etc/nixbastion/config.yaml && systemctl start nixbastion.socket nixbastion")
	build(s.t, s.host, testbed.Derivation{Name: "after-mistakes"})
}

// A process that stands still is ended and started anew; one that works is not.
func (s served) isWatched() {
	if err := s.proxy.WriteFile(s.t.Context(), "/etc/systemd/system/nixbastion.service.d/watchdog.conf",
		[]byte("[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n")); err != nil {
		s.t.Fatal(err)
	}
	s.shell("systemctl daemon-reload && systemctl restart nixbastion && sleep 5") // two intervals and a half
	if got := s.property("NRestarts"); got != "0" {
		s.t.Fatalf("a proxy that works was started anew %s times", got)
	}
	before := s.mainPID()
	s.shell("kill -STOP " + strconv.Itoa(before))
	eventually(s.t, "systemd has started the proxy anew", patience, func() bool {
		return s.property("NRestarts") == "1" && s.property("ActiveState") == "active"
	})
	build(s.t, s.host, testbed.Derivation{Name: "after-watchdog"})
}

func (s served) stops() {
	s.shell("systemctl stop nixbastion.socket nixbastion")
	if got := s.property("ActiveState") + " " + s.property("Result"); got != "inactive success" {
		s.t.Errorf("after a stop the service is %s\n%s", got, s.shell("journalctl -u nixbastion -o cat -n 20"))
	}
	res, err := s.proxy.Shell(context.WithoutCancel(s.t.Context()), "pgrep -f /usr/local/bin/nixbastion")
	if err != nil || res.Status != 1 {
		s.t.Errorf("left behind: %s, %v", res.Stdout, err)
	}
}
