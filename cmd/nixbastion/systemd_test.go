package main

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

const unitFile = "../../systemd/nixbastion.service"

// readUnit returns the settings of the [Service] section: each line's value by
// its name, in order.
func readUnit(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	_, service, found := strings.Cut(string(text), "\n[Service]\n")
	if !found {
		t.Fatal("the unit has no section [Service]")
	}
	service, _, _ = strings.Cut(service, "\n[")
	settings := map[string][]string{}
	for line := range strings.Lines(service) {
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

// Guards against a unit that names a subcommand or flag which is no more, checks
// another file than it serves, or reloads without a check.
func TestUnitRunsTheCommandsThatExist(t *testing.T) {
	unit := readUnit(t)
	if want := []string{"NIXBASTION_CONFIG=/etc/nixbastion/config.yaml"}; !slices.Equal(unit["Environment"], want) {
		t.Errorf("Environment is %q, not %q", unit["Environment"], want)
	}
	variable := strings.NewReplacer("${NIXBASTION_CONFIG}", "/etc/nixbastion/config.yaml")
	name, c := parsed(t, variable.Replace(unit["ExecStart"][0]))
	if name != "serve" || c.Serve.Config != "/etc/nixbastion/config.yaml" {
		t.Errorf("ExecStart is %q of %q", name, c.Serve.Config)
	}
	for setting, want := range map[string]int{"ExecStartPre": 1, "ExecReload": 2} {
		if len(unit[setting]) != want {
			t.Fatalf("%s is %q", setting, unit[setting])
		}
		name, c := parsed(t, variable.Replace(unit[setting][0]))
		if name != "check" || c.Check.File != "/etc/nixbastion/config.yaml" {
			t.Errorf("%s is %q of %q", setting, name, c.Check.File)
		}
	}
	if reload := unit["ExecReload"][1]; reload != "/bin/kill -HUP $MAINPID" {
		t.Errorf("ExecReload ends with %q", reload)
	}
}

// Guards against a unit that kills the program before its own time-out, or
// starts it again and again with a policy that it refuses.
func TestUnitAgreesWithTheProgram(t *testing.T) {
	unit := readUnit(t)
	stop, err := time.ParseDuration(unit["TimeoutStopSec"][0])
	if err != nil || stop <= shutdownTimeout {
		t.Errorf("TimeoutStopSec is %v (%v), the program takes up to %v", stop, err, shutdownTimeout)
	}
	if got := unit["RestartPreventExitStatus"]; !slices.Equal(got, []string{strconv.Itoa(exitMistakes)}) {
		t.Errorf("RestartPreventExitStatus is %q", got)
	}
}

// Guards against hardening that gets lost. Each line was weighed: together they
// bring `systemd-analyze security` to 1.4.
func TestUnitStaysHardened(t *testing.T) {
	unit := readUnit(t)
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
		"AmbientCapabilities":     "CAP_NET_BIND_SERVICE",
		"CapabilityBoundingSet":   "CAP_NET_BIND_SERVICE",
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
