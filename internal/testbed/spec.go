package testbed

import (
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// Kind says which daemons a host runs.
type Kind int

const (
	// Plain runs none: a host for the proxy, HAProxy or a relay.
	Plain Kind = iota
	// Builder runs sshd and nix-daemon, and builds with build users.
	Builder
	// Client runs nix-daemon, and never builds by itself (max-jobs = 0).
	Client
	// Systemd runs systemd as its first process, with the units of its Debian, and
	// no other daemon: a host for the proxy as a service. Where the machine has no
	// hierarchy of control groups of version 2 mounted, empty ones of its stay behind.
	Systemd
)

// NativeSystem is what builders can build for: the machine's own system in
// Nix's words. A builder may claim any other; the scripts run all the same.
var NativeSystem = map[string]string{"amd64": "x86_64-linux", "arm64": "aarch64-linux"}[runtime.GOARCH]

// HostSpec describes a host. Only Name is needed.
type HostSpec struct {
	// Name is the host name, known to all hosts of the bed.
	Name string
	Kind Kind
	// Nix is the version; "" is Nix234. A Plain host has it too, as it has all
	// of that Debian (Nix234: with haproxy).
	Nix string
	// Packages are more packages of that Debian, which the host has besides what
	// every host has. The first host that names them waits for their download.
	Packages []string
	// System and ExtraPlatforms are what nix-daemon says it builds for; "" is
	// NativeSystem.
	System         string
	ExtraPlatforms []string
	// Features are the system-features, all of them; nil is none.
	Features []string
	// MaxJobs is the builder's own max-jobs, which Nix does not enforce across
	// connections; 0 is 1. Clients always have 0.
	MaxJobs int
	// Slots is how many builds of [Derivation].Work run at once here; the
	// others wait for them. 0 is MaxJobs.
	Slots int
	// Speed divides the time that a Derivation's Work takes; 0 is 1.
	Speed float64
	// NixConf and SSHD are lines for nix.conf, where a later line wins, and for
	// sshd_config, where these come first and the first wins.
	NixConf, SSHD []string
	// Authorize says which keys open which account; see also (*Host).Authorize.
	Authorize map[string][]Key
	// Keys are put into root's home, at Key.File.
	Keys []Key
	// Machines are the lines of /etc/nix/machines; see also SetMachines.
	Machines []Machine
	// OnDisk are folders that are kept on disk instead of in memory, for what
	// is larger than a few GiB: "/nix", or a proxy's state directory.
	OnDisk []string
	// Binds are files of the machine that the host sees, read-only, by their
	// place on the host: {"/usr/local/bin/proxy": "/tmp/build/proxy"}.
	Binds map[string]string
}

func (s HostSpec) withDefaults() HostSpec {
	if s.Nix == "" {
		s.Nix = Nix234
	}
	if s.System == "" {
		s.System = NativeSystem
	}
	if s.MaxJobs == 0 {
		s.MaxJobs = 1
	}
	if s.Kind == Client {
		s.MaxJobs = 0
	}
	if s.Kind == Systemd {
		s.Packages = append(slices.Clone(s.Packages), "systemd")
	}
	if s.Slots == 0 {
		s.Slots = max(s.MaxJobs, 1)
	}
	if s.Speed == 0 {
		s.Speed = 1
	}
	return s
}

var hostName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,40}$`)

func (s HostSpec) check() error {
	if !hostName.MatchString(s.Name) {
		return fmt.Errorf("%q is no host name (small letters, digits and -)", s.Name)
	}
	// The bed's folder has files of these names beside the hosts' folders.
	if s.Name == "hosts" || s.Name == "lock" {
		return errors.New("the name is reserved")
	}
	for _, path := range s.OnDisk {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("folder on disk %q is no absolute path", path)
		}
	}
	for inner := range s.Binds {
		if !strings.HasPrefix(inner, "/") {
			return fmt.Errorf("bound file %q is no absolute path", inner)
		}
	}
	return nil
}

// String is the word that the host's init knows.
func (k Kind) String() string {
	switch k {
	case Plain:
		return "plain"
	case Builder:
		return "builder"
	case Client:
		return "client"
	case Systemd:
		return "systemd"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}
