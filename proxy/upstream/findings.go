package upstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

const (
	// maxClockOff is how far a builder's clock may be from ours before it is worth a
	// word: a second or two of it is how long the question takes.
	maxClockOff = 30 * time.Second
	// lowDisk is what is little of a disk where the policy has no threshold.
	lowDisk = 1 << 30
)

// Finding is something about a builder that an admin should know.
type Finding struct {
	// Kind is what it is about: a Kind of an [Error], "trust", "system", "features",
	// "disk", "clock", "load", "settings" or "sandbox".
	Kind string `json:"kind"`
	// What says for people what is so, and Fix what to do about it; Fix may be empty
	// where nothing need be done.
	What string `json:"what"`
	Fix  string `json:"fix,omitempty"`
}

// FaultOf makes a finding of an error of [Pool.Check].
func FaultOf(b *policy.Builder, err error) Finding {
	var fault *Error
	switch {
	case errors.As(err, &fault):
	case errors.Is(err, context.DeadlineExceeded):
		return Finding{Unreachable.String(), "it answers, but too slowly to be checked in time", "see what it is busy with"}
	default:
		return Finding{"failed", wordsOf(err), ""}
	}
	f := Finding{fault.Kind.String(), wordsOf(fault.Err), fault.Hint}
	switch {
	case fault.Kind == HostKey:
		f.Fix += "; if that is its key, host_keys or known_hosts must have it"
	case f.Fix == "":
		f.Fix = usualFix(b, fault.Kind)
	}
	return f
}

// usualFix is what to do about an error that has no hint of its own.
func usualFix(b *policy.Builder, kind Kind) string {
	switch {
	case kind == TooOld:
		return "update its Nix"
	case kind == Untrusted && b.Socket == "":
		return fmt.Sprintf("add it there, as in: extra-trusted-users = %s, and restart its nix-daemon", b.User)
	case kind == Untrusted:
		return "add it there and restart the nix-daemon"
	case b.Socket != "":
		return "see that this machine's nix-daemon runs: nix store info --store daemon"
	case kind == Auth:
		return fmt.Sprintf("identity_file (%s) must be a private key without passphrase that the account of the proxy can read", b.IdentityFile)
	case kind == Unreachable && len(b.Wake.Command) > 0:
		return "it may be asleep: run its wake command and check again, or try " + sshCommand(b) + " true"
	case kind == Unreachable:
		return "see that it is up, that its sshd listens there and no firewall is between: " + sshCommand(b) + " true"
	}
	return "see what this says: " + sshCommand(b) + " nix-daemon --stdio </dev/null"
}

// sshCommand is what an admin types to go the proxy's way.
func sshCommand(b *policy.Builder) string {
	host, port, err := net.SplitHostPort(b.Address)
	if err != nil {
		host, port = b.Address, "22"
	}
	words := []string{"ssh", "-i", b.IdentityFile}
	if port != "22" {
		words = append(words, "-p", port)
	}
	return strings.Join(append(words, b.User+"@"+host), " ")
}

// Findings compares what a builder that answered is with what the policy says of it.
// With a problem some builds will not be built there, or none; notes are only worth
// knowing.
func (r *Report) Findings(b *policy.Builder) (problems, notes []Finding) {
	f := findings{b: b, r: r}
	f.trust()
	f.machine()
	if r.SettingsErr != nil {
		f.note("settings", "", "the settings of its Nix cannot be seen, so systems and features of the policy are believed: it %v", r.SettingsErr)
		return f.problems, f.notes
	}
	f.systems()
	f.features()
	f.sandbox()
	return f.problems, f.notes
}

// findings collects them.
type findings struct {
	b               *policy.Builder
	r               *Report
	problems, notes []Finding
}

func (f *findings) problem(kind, fix, format string, args ...any) {
	f.problems = append(f.problems, Finding{kind, fmt.Sprintf(format, args...), fix})
}

func (f *findings) note(kind, fix, format string, args ...any) {
	f.notes = append(f.notes, Finding{kind, fmt.Sprintf(format, args...), fix})
}

// trust looks at the settings where the protocol does not tell. A session is not had
// of a daemon that says that it does not trust us.
func (f *findings) trust() {
	s := &f.r.Settings
	switch {
	case f.r.Trust != nix.TrustUnknown:
	case f.r.SettingsErr != nil:
		f.note("trust", "see that it is in trusted-users of its nix.conf", "whether account '%s' is trusted there cannot be seen before it builds", f.r.User)
	case !s.trusts():
		f.problem("trust", fmt.Sprintf("add it to its nix.conf, as in: extra-trusted-users = %s, and restart its nix-daemon", s.Account),
			"account '%s' is not in trusted-users there (%s)", s.Account, listed(s.TrustedUsers))
	}
}

// machine looks at disk and clock.
func (f *findings) machine() {
	l := &f.r.Load
	if f.r.LoadErr != nil {
		if !f.b.Load.Off {
			f.note("load", "", "its load cannot be seen, so it is used by its slots alone: it %v", f.r.LoadErr)
		}
		return
	}
	least := f.b.Load.MinDisk
	switch {
	case !f.b.Load.Off && least > 0 && l.DiskFree < least:
		f.problem("disk", "collect garbage there (nix-collect-garbage), give it a larger disk, or lower load.min_disk",
			"%s are free on /nix/store, less than load.min_disk (%s): it gets no builds", Bytes(l.DiskFree), Bytes(least))
	case l.DiskFree < lowDisk:
		f.problem("disk", "collect garbage there (nix-collect-garbage), or give it a larger disk", "only %s are free on /nix/store", Bytes(l.DiskFree))
	}
	if off := l.ClockAhead; off.Abs() > maxClockOff {
		direction := "ahead of"
		if off < 0 {
			direction = "behind"
		}
		f.problem("clock", "have it keep time, by systemd-timesyncd or chrony; or this machine, if it is the one that is wrong",
			"its clock is %s %s this machine's", off.Abs().Round(time.Second), direction)
	}
}

func (f *findings) systems() {
	s := &f.r.Settings
	var wrong []string
	for _, system := range slices.Sorted(maps.Keys(f.b.Systems)) {
		if system != "builtin" && !s.builds(system) {
			wrong = append(wrong, system)
		}
	}
	if len(wrong) > 0 {
		f.problem("system", fmt.Sprintf("if it can run them, write into its nix.conf: extra-platforms = %s, and restart its nix-daemon; else remove them from systems in the policy",
			strings.Join(slices.Concat(s.ExtraPlatforms, wrong), " ")),
			"the policy says that it builds for %s; its Nix builds for %s", listed(wrong), listed(append([]string{s.System}, s.ExtraPlatforms...)))
	}
}

func (f *findings) features() {
	s := &f.r.Settings
	told := slices.Concat(f.b.Features, f.b.MandatoryFeatures)
	wrong := slices.DeleteFunc(slices.Clone(told), func(name string) bool { return slices.Contains(s.Features, name) })
	if i := slices.Index(wrong, "kvm"); i >= 0 && s.HiddenKVM && s.usualFeatures() {
		wrong = slices.Delete(wrong, i, i+1)
		f.note("features", "", "whether its daemon has the feature kvm cannot be seen: account '%s' may not open /dev/kvm, which is there", s.Account)
	}
	if len(wrong) > 0 {
		f.problem("features", fmt.Sprintf("add to its nix.conf: extra-system-features = %s, and restart its nix-daemon; or remove them from features in the policy", strings.Join(wrong, " ")),
			"the policy says that it has %s; its Nix has %s", listed(wrong), listed(s.Features))
	}
	more := slices.DeleteFunc(slices.Clone(s.Features), func(name string) bool { return slices.Contains(told, name) })
	if len(more) > 0 {
		f.note("features", "", "its Nix also has %s, for which it gets no builds as the policy does not say so", listed(more))
	}
}

func (f *findings) sandbox() {
	if s := &f.r.Settings; strings.HasSuffix(s.System, "-linux") && (s.Sandbox == "false" || s.Sandbox == "relaxed") {
		f.note("sandbox", "set sandbox = true in its nix.conf", "its sandbox is %s: what is built there can see the machine and the network", s.Sandbox)
	}
}

func listed(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
