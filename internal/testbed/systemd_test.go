package testbed

import (
	"os"
	"testing"
)

// Guards against a systemd that does not come up, or that has its way with the machine.
func TestSystemdRunsAHost(t *testing.T) {
	before, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{Nix28, Nix226, Nix234} {
		t.Run(version, func(t *testing.T) {
			host := ForTest(t).MustStart(t, HostSpec{Name: "served", Kind: Systemd, Nix: version})[0]
			if got := host.MustShell(t, "cat /proc/1/comm; systemctl is-active multi-user.target"); got != "systemd\nactive\n" {
				t.Errorf("process 1 and its target are %q", got)
			}
			if got := host.MustShell(t, "systemctl show --property ControlGroup systemd-journald"); got != "ControlGroup=/system.slice/systemd-journald.service\n" {
				t.Errorf("a unit runs in %q", got)
			}
			t.Log(host.MustShell(t, "systemctl --version | head -1; systemctl list-units --failed --no-legend; systemd-analyze time || true; mount | grep -v overlay"))
		})
	}
	if after, err := os.ReadFile("/proc/sys/fs/nr_open"); err != nil || string(after) != string(before) {
		t.Errorf("the machine's fs.nr_open was %s and is %s, %v", before, after, err)
	}
}
