package upstream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// fineBuilder is one that a report of fineReport is in line with.
func fineBuilder() *policy.Builder {
	return &policy.Builder{
		Name: "b1", Address: "b1.example.org:22", User: "nixremote", IdentityFile: "/id",
		Systems: map[string]float64{"x86_64-linux": 1, "i686-linux": 0.5, "builtin": 1}, Features: []string{"benchmark"}, MandatoryFeatures: []string{"kvm"},
	}
}

func fineReport() *Report {
	return &Report{
		User: "nixremote", Nix: "2.34.8", Trust: nix.Trusted, Load: Load{DiskFree: 100 << 30},
		Settings: NixSettings{System: "x86_64-linux", ExtraPlatforms: []string{"i686-linux"}, Features: []string{"benchmark", "kvm"},
			TrustedUsers: []string{"root"}, Sandbox: "true", Account: "nixremote", Groups: []string{"users"}},
	}
}

// Guards against a policy that promises what a builder does not have, or a builder in
// trouble, without a word; and against words about what is as it should be.
func TestFindingsSayWhatIsWrongAndHowToMendIt(t *testing.T) {
	unseen := errors.New("does not run a shell")
	for _, c := range []struct {
		change   func(b *policy.Builder, r *Report)
		problems string // kinds
		notes    string
		says     string
	}{
		{func(*policy.Builder, *Report) {}, "", "", ""},
		{func(b *policy.Builder, _ *Report) { b.Systems["aarch64-linux"] = 1 }, "system", "", "extra-platforms = i686-linux aarch64-linux"},
		{func(b *policy.Builder, _ *Report) { b.Features = []string{"big-parallel"} }, "features", "features", "extra-system-features = big-parallel"},
		{func(b *policy.Builder, _ *Report) { b.MandatoryFeatures = []string{"gpu"} }, "features", "features", "it has gpu; its Nix has benchmark, kvm"},
		{func(_ *policy.Builder, r *Report) { r.Settings.Features = []string{"benchmark"} }, "features", "", "it has kvm"},
		{func(_ *policy.Builder, r *Report) {
			r.Settings.Features, r.Settings.HiddenKVM = []string{"benchmark", "big-parallel", "nixos-test"}, true
		}, "", "features features", "may not open /dev/kvm"},
		{func(_ *policy.Builder, r *Report) {
			r.Settings.Features, r.Settings.HiddenKVM = []string{"benchmark"}, true
		}, "features", "", "it has kvm"},
		{func(_ *policy.Builder, r *Report) { r.Settings.Features = append(r.Settings.Features, "nixos-test") }, "", "features", "also has nixos-test"},
		{func(_ *policy.Builder, r *Report) { r.Trust = nix.TrustUnknown }, "trust", "", "extra-trusted-users = nixremote"},
		{func(_ *policy.Builder, r *Report) {
			r.Trust, r.Settings.TrustedUsers = nix.TrustUnknown, []string{"@users"}
		}, "", "", ""},
		{func(_ *policy.Builder, r *Report) {
			r.Trust, r.Settings.TrustedUsers = nix.TrustUnknown, []string{"*"}
		}, "", "", ""},
		{func(_ *policy.Builder, r *Report) { r.Trust, r.Settings.Account = nix.TrustUnknown, "root" }, "", "", ""},
		{func(_ *policy.Builder, r *Report) { r.Trust, r.SettingsErr = nix.TrustUnknown, unseen }, "", "trust settings", "before it builds"},
		{func(b *policy.Builder, r *Report) { b.Systems["aarch64-linux"], r.SettingsErr = 1, unseen }, "", "settings", "does not run a shell"},
		{func(b *policy.Builder, _ *Report) { b.Load.MinDisk = 101 << 30 }, "disk", "", "100.0 GiB are free on /nix/store, less than load.min_disk (101.0 GiB)"},
		{func(b *policy.Builder, _ *Report) { b.Load.MinDisk, b.Load.Off = 101<<30, true }, "", "", ""},
		{func(_ *policy.Builder, r *Report) { r.Load.DiskFree = 1 << 20 }, "disk", "", "only 1.0 MiB are free"},
		{func(_ *policy.Builder, r *Report) { r.Load.ClockAhead = -time.Minute }, "clock", "", "1m0s behind"},
		{func(_ *policy.Builder, r *Report) { r.Load.ClockAhead = time.Hour }, "clock", "", "1h0m0s ahead of"},
		{func(_ *policy.Builder, r *Report) { r.Load.ClockAhead = 2 * time.Second }, "", "", ""},
		{func(_ *policy.Builder, r *Report) { r.LoadErr, r.Load = unseen, Load{} }, "", "load", "by its slots alone"},
		{func(b *policy.Builder, r *Report) { r.LoadErr, r.Load, b.Load.Off = unseen, Load{}, true }, "", "", ""},
		{func(_ *policy.Builder, r *Report) { r.Settings.Sandbox = "false" }, "", "sandbox", "sandbox = true"},
	} {
		b, r := fineBuilder(), fineReport()
		c.change(b, r)
		problems, notes := r.Findings(b)
		said := fmt.Sprint(problems, notes)
		if kindsOf(problems) != c.problems || kindsOf(notes) != c.notes || !strings.Contains(said, c.says) {
			t.Errorf("want problems %q, notes %q, %q; got %s", c.problems, c.notes, c.says, said)
		}
		if slices.ContainsFunc(problems, func(f Finding) bool { return f.Fix == "" }) {
			t.Errorf("a problem without a way out: %s", said)
		}
	}
}

func kindsOf(all []Finding) string {
	var kinds []string
	for _, f := range all {
		kinds = append(kinds, f.Kind)
	}
	return strings.Join(kinds, " ")
}

// Guards against a builder that cannot be used without a word of what to do.
func TestEveryFaultOfABuilderHasAWayOut(t *testing.T) {
	b := fineBuilder()
	b.Address = "b1.example.org:2222"
	tgt := newTarget(b)
	sleepy := fineBuilder()
	sleepy.Wake.Command = []string{"wol"}
	own := &policy.Builder{Name: "b1", Socket: "/socket"}
	for _, c := range []struct {
		b    *policy.Builder
		err  error
		want []string
	}{
		{b, tgt.faultf(Unreachable, "", "refused"), []string{"unreachable", "refused", "ssh -i /id -p 2222 nixremote@b1.example.org true"}},
		{sleepy, tgt.faultf(Unreachable, "", "refused"), []string{"asleep"}},
		{own, tgt.faultf(Unreachable, "", "refused"), []string{"this machine's nix-daemon"}},
		{b, tgt.hostKeyFault(errNoHostKey), []string{"host key", "ssh-keyscan -p 2222 b1.example.org", "host_keys"}},
		{b, tgt.fault(Auth, errors.New("permission denied")), []string{"auth", "identity_file (/id)"}},
		{b, tgt.faultf(Auth, "ask somebody", "no"), []string{"ask somebody"}},
		{b, tgt.untrusted(), []string{"untrusted", "trusted-users", "restart"}},
		{b, tgt.faultf(TooOld, "", "2.3"), []string{"too old", "update its Nix"}},
		{b, tgt.faultf(Protocol, "", "gibberish"), []string{"protocol", "nix-daemon --stdio"}},
		{b, fmt.Errorf("check: %w", context.DeadlineExceeded), []string{"unreachable", "busy"}},
	} {
		f := FaultOf(c.b, c.err)
		for _, want := range c.want {
			if !strings.Contains(fmt.Sprint(f), want) {
				t.Errorf("%v: no %q in %+v", c.err, want, f)
			}
		}
		if f.Fix == "" || f.What == "" {
			t.Errorf("%v: %+v", c.err, f)
		}
	}
}

// Guards against words of a host that nobody has recognised yet, in which the terminal
// of whoever checks sees commands, or which fill it.
func TestWordsOfAStrangeHostAreFitForATerminal(t *testing.T) {
	fit := func(t testing.TB, err error) {
		for _, shown := range []string{FaultOf(&policy.Builder{Name: "b1"}, err).What, err.Error()} {
			if !strings.Contains(shown, "odd") || strings.ContainsFunc(shown, unicode.IsControl) || len(shown) > 10_000 {
				t.Errorf("got %d bytes: %.300q", len(shown), shown)
			}
		}
	}
	odd := "odd\x1b[2J\nline\u009b2J" + strings.Repeat("x", 30_000)
	// x/crypto/ssh says so of a host key, before it is looked at.
	fit(t, (&target{name: "b1"}).fault(Unreachable, fmt.Errorf("ssh: unknown key algorithm: %v", odd)))

	packet := func(payload []byte) []byte { // as before any key exchange
		padding := 4 + 8 - (4+1+len(payload)+4)%8
		return slices.Concat(binary.BigEndian.AppendUint32(nil, uint32(1+len(payload)+padding)), []byte{byte(padding)}, payload, make([]byte, padding))
	}
	text := func(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }
	for _, says := range [][]byte{
		slices.Concat([]byte{1, 0, 0, 0, 2}, text(odd), text("")),                                                               // a disconnect
		slices.Concat([]byte{20}, make([]byte, 16), text(odd), text("ssh-ed25519"), bytes.Repeat(text(""), 8), make([]byte, 5)), // algorithms
	} {
		inWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) {
			opts.Dial = func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go io.Copy(io.Discard, theirs)
				go theirs.Write(append([]byte("SSH-2.0-odd\r\n"), packet(says)...))
				return ours, nil
			}
		}, func(w *world) {
			_, err := w.pool.Check(w.Context(), "b1")
			fit(w, err)
		})
	}
}
