package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"nixbastion/internal/testbed"
)

const unitDir = "../../systemd"

// readUnit returns the settings of one section of a unit: each line's value by its
// name, in order.
func readUnit(t *testing.T, name, section string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(unitDir, name))
	if err != nil {
		t.Fatal(err)
	}
	_, part, found := strings.Cut(string(text), "\n["+section+"]\n")
	if !found {
		t.Fatalf("%s has no section [%s]", name, section)
	}
	part, _, _ = strings.Cut(part, "\n[")
	settings := map[string][]string{}
	for line := range strings.Lines(part) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("the unit has the line %q", line)
		}
		settings[name] = append(settings[name], value)
	}
	return settings
}

// parsed reads a command of the unit as the program itself would, without
// running it, and returns the name of the subcommand.
func parsed(t *testing.T, command string) (subcommand string, c cli) {
	t.Helper()
	words := strings.Fields(command)
	if words[0] != "/usr/local/bin/nixbastion" {
		t.Fatalf("the unit runs %q", command)
	}
	parser, err := kong.New(&c, kong.BindTo(os.Stdout, (*interface{ Write([]byte) (int, error) })(nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, err := parser.Parse(words[1:])
	if err != nil {
		t.Fatalf("the program refuses %q: %v", command, err)
	}
	return ctx.Selected().Name, c
}

// Guards against a unit that names a subcommand or flag which is no more, or checks
// another file than it serves.
func TestUnitRunsTheCommandsThatExist(t *testing.T) {
	const config = "/etc/nixbastion/config.yaml"
	variable := strings.NewReplacer("${NIXBASTION_CONFIG}", config)
	unit, upgrade := readUnit(t, "nixbastion.service", "Service"), readUnit(t, "nixbastion-upgrade.service", "Service")
	for _, u := range []map[string][]string{unit, upgrade} {
		if want := []string{"NIXBASTION_CONFIG=" + config}; !slices.Equal(u["Environment"], want) {
			t.Errorf("Environment is %q, not %q", u["Environment"], want)
		}
	}
	if name, c := parsed(t, variable.Replace(unit["ExecStart"][0])); name != "serve" || c.Serve.Config != config {
		t.Errorf("ExecStart is %q of %q", name, c.Serve.Config)
	}
	if name, c := parsed(t, variable.Replace(upgrade["ExecStart"][0])); name != "upgrade" || c.Upgrade.Config != config {
		t.Errorf("ExecStart of the upgrade is %q of %q", name, c.Upgrade.Config)
	}
}

// Guards against a unit that kills the program before its own time-outs, starts it again
// and again with a policy that it refuses, or expects of it what it does not tell.
func TestUnitAgreesWithTheProgram(t *testing.T) {
	unit := readUnit(t, "nixbastion.service", "Service")
	const defaultDrain = time.Minute
	stop, err := time.ParseDuration(unit["TimeoutStopSec"][0])
	if err != nil || stop < defaultDrain+shutdownTimeout+adminPatience {
		t.Errorf("TimeoutStopSec is %v (%v), the program takes up to %v", stop, err, defaultDrain+shutdownTimeout)
	}
	if extendBy <= extendEvery || extendBy >= stop {
		t.Errorf("every %v the program asks for %v more", extendEvery, extendBy)
	}
	for name, want := range map[string]string{
		"RestartPreventExitStatus": strconv.Itoa(exitMistakes), "Type": "notify-reload", "NotifyAccess": "main", "WatchdogSec": "30s",
	} {
		if got := strings.Join(unit[name], " "); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
	if unit["ExecReload"] != nil || unit["KillMode"] != nil {
		t.Error("reloads are by signal alone, and both processes of an upgrade are to be stopped")
	}
	if unit["ExecStartPre"] != nil {
		t.Error("what fails before the start is tried again, whatever its status")
	}
}

// unitCopies copies the units to where systemd's tools can read them: the program is at
// another place, and old versions do not know all there is.
func unitCopies(t *testing.T, analyze string) string {
	t.Helper()
	out, err := exec.Command(analyze, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	var version int
	if _, err := fmt.Sscanf(string(out), "systemd %d", &version); err != nil {
		t.Fatalf("version of systemd in %q: %v", out, err)
	}
	change := []string{"/usr/local/bin/nixbastion", "/bin/true"}
	if version < 253 {
		change = append(change, "Type=notify-reload", "Type=notify") // as override.conf says
	}
	dir := t.TempDir()
	for _, name := range []string{"nixbastion.service", "nixbastion.socket", "nixbastion-upgrade.service"} {
		text, err := os.ReadFile(filepath.Join(unitDir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.NewReplacer(change...).Replace(string(text))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Guards against units that systemd itself finds fault with, and against an override
// whose lines are no settings; and against more exposure than was weighed.
func TestSystemdAcceptsTheUnits(t *testing.T) {
	analyze := testbed.NeedTool(t, "systemd-analyze", "systemd")
	run := func(args ...string) {
		t.Helper()
		out, err := exec.Command(analyze, args...).CombinedOutput()
		if err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %v: %v\n%s", args, err, out)
		}
	}
	dir := unitCopies(t, analyze)
	units, err := filepath.Glob(dir + "/*")
	if err != nil || len(units) != 3 {
		t.Fatal(units, err)
	}
	run(append([]string{"verify", "--man=no"}, units...)...)
	run("security", "--offline=true", "--threshold=15", dir+"/nixbastion.service") // 1.5
	run("security", "--offline=true", "--threshold=15", dir+"/nixbastion-upgrade.service")

	override, err := os.ReadFile(filepath.Join(unitDir, "override.conf"))
	if err != nil {
		t.Fatal(err)
	}
	drop := filepath.Join(dir, "nixbastion.service.d")
	if err := os.Mkdir(drop, 0o755); err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^#([A-Z][A-Za-z]+=)`)
	if n := len(lines.FindAll(override, -1)); n < 10 {
		t.Errorf("override.conf has %d settings", n)
	}
	plain := strings.ReplaceAll(string(lines.ReplaceAll(override, []byte("$1"))), "/usr/local/bin/nixbastion", "/bin/true")
	if err := os.WriteFile(filepath.Join(drop, "override.conf"), []byte(plain), 0o644); err != nil {
		t.Fatal(err)
	}
	run("verify", "--man=no", dir+"/nixbastion.service")
}

// Guards against accounts and places that systemd's tools do not make.
func TestSystemdMakesAccountAndPlaces(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tool := range [][]string{
		{"systemd-sysusers", "sysusers.d"}, {"systemd-tmpfiles", "tmpfiles.d"},
	} {
		file, err := filepath.Abs(filepath.Join(unitDir, tool[1], "nixbastion.conf"))
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"--root=" + root, file}
		if tool[0] == "systemd-tmpfiles" {
			args = append([]string{"--create"}, args...)
		}
		if out, err := exec.Command(testbed.NeedTool(t, tool[0], "systemd"), args...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", tool, err, out)
		}
	}
	accounts, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil || !strings.Contains(string(accounts), "nixbastion:x:") || !strings.Contains(string(accounts), ":/var/lib/nixbastion:/usr/sbin/nologin") {
		t.Errorf("accounts: %q, %v", accounts, err)
	}
	if info, err := os.Stat(filepath.Join(root, "etc/nixbastion")); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("/etc/nixbastion: %v, %v", info, err)
	}
}

// Guards against hardening that gets lost. Each line was weighed: together they
// bring `systemd-analyze security` to 1.2.
func TestUnitStaysHardened(t *testing.T) {
	unit := readUnit(t, "nixbastion.service", "Service")
	for name, want := range map[string]string{
		"User":                    "nixbastion",
		"StateDirectory":          "nixbastion",
		"StateDirectoryMode":      "0700",
		"UMask":                   "0077",
		"ProtectSystem":           "strict",
		"ProtectHome":             "yes",
		"PrivateTmp":              "yes",
		"PrivateDevices":          "yes",
		"PrivateMounts":           "yes",
		"AmbientCapabilities":     "",
		"CapabilityBoundingSet":   "",
		"NoNewPrivileges":         "yes",
		"RestrictSUIDSGID":        "yes",
		"LockPersonality":         "yes",
		"RestrictRealtime":        "yes",
		"MemoryDenyWriteExecute":  "yes",
		"SystemCallArchitectures": "native",
		"SystemCallFilter":        "@system-service ~@privileged @resources",
		"RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
		"ProtectProc":             "invisible",
		"ProtectKernelTunables":   "yes",
		"ProtectKernelModules":    "yes",
		"ProtectKernelLogs":       "yes",
		"ProtectControlGroups":    "yes",
		"ProtectClock":            "yes",
		"ProtectHostname":         "yes",
		"RestrictNamespaces":      "yes",
		"RemoveIPC":               "yes",
		"KeyringMode":             "private",
		"LimitCORE":               "0",
	} {
		if got := strings.Join(unit[name], " "); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}
