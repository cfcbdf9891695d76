package policy

import (
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
	if m, ok := err.(*Mistakes); !ok || m.FileHash != fileHash([]byte("state_dri: x\n")) {
		t.Errorf("refused: %+v", err)
	}
}
