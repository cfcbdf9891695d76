package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"
	"time"
)

// Guards against a proxy that keeps no record unless somebody thought of it, and
// against settings that mean something else.
func TestAuditIsOnUnlessItIsOff(t *testing.T) {
	d := newDir(t)
	const base = "state_dir: state\n"
	plain := d.load(t, base)
	if want := (Audit{File: d.path("state/audit/audit.jsonl"), RotateSize: 64 << 20, RotateAge: 720 * time.Hour, Keep: 16}); plain.Audit != want {
		t.Errorf("by default %+v", plain.Audit)
	}
	if off := d.load(t, base+"audit: off\n"); off.Audit != (Audit{}) || !strings.Contains(describeText(t, off), "is not kept (audit: off)") {
		t.Errorf("off: %+v", off.Audit)
	}
	other := d.load(t, base+"audit: {file: a.jsonl, sync: always, rotate_size: 1MiB, rotate_age: 24h, keep: 3, on_failure: continue}\n")
	if want := (Audit{File: d.path("a.jsonl"), SyncAlways: true, RotateSize: 1 << 20, RotateAge: 24 * time.Hour, Keep: 3, Continue: true}); other.Audit != want {
		t.Errorf("all set: %+v", other.Audit)
	}
	for _, part := range []string{"on disk before it is answered", "3 full files", "1MiB or after 24h", "everything goes on"} {
		if text := describeText(t, other); !strings.Contains(text, part) {
			t.Errorf("the description lacks %q:\n%s", part, text)
		}
	}
	if keys := plain.NeedsRestart(other); len(keys) != 1 || keys[0] != "audit" {
		t.Errorf("a change needs a restart: %v", keys)
	}
}

func describeText(t *testing.T, p *Policy) string {
	t.Helper()
	var text strings.Builder
	if err := p.Describe(&text, "nix.example.org"); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// Guards against a record of a policy that was not the one that counted.
func TestFileHashIsThatOfTheBytes(t *testing.T) {
	d := newDir(t)
	// sha256sum of the file's one line
	const want = "3a1d6764c03f974da47d4381945e9ee5acc1a3d053337750e46d2a3edfd6d419"
	pol := d.load(t, "state_dir: state\n")
	other := d.load(t, "state_dir: state\n# other\n")
	if pol.FileHash != want || other.FileHash == want {
		t.Errorf("%s, %s", pol.FileHash, other.FileHash)
	}
	_, err := Load(d.write("bad.yaml", "state_dri: x\n", 0o644))
	if m, ok := err.(*Mistakes); !ok || m.FileHash != sha256Of("state_dri: x\n") {
		t.Errorf("refused: %+v", err)
	}
}

func sha256Of(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// Guards against a record that stays the same while an included file changes.
func TestFileHashCoversIncludedFiles(t *testing.T) {
	d := newDir(t)
	const base = "state_dir: state\ninclude: policy.d\n"
	for _, included := range []string{"log: {level: warn}\n", "log: {level: debug}\n", "lgo: {}\n"} {
		d.write("policy.d/a.yaml", included, 0o644)
		d.write("policy.d/b.yaml", "listen: [\":23\"]\n", 0o644)
		pol, err := Load(d.write("policy.yaml", base, 0o644))
		var got string
		if mistakes, ok := err.(*Mistakes); ok {
			got = mistakes.FileHash
		} else {
			got = pol.FileHash
		}
		if want := sha256Of(base + included + "listen: [\":23\"]\n"); got != want {
			t.Errorf("%s: got %s, want %s", included, got, want)
		}
	}
}
