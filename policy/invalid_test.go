package policy

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what is found into testdata/invalid, to be read before it is committed")

// Guards against policies that mean something else than their author thinks: each
// sample has one idea of what may go wrong, and is refused with exactly these
// places and sentences.
func TestEveryInvalidSampleIsRefusedWithItsPlace(t *testing.T) {
	samples, err := filepath.Glob("testdata/invalid/*.txtar")
	if err != nil || len(samples) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, sample := range samples {
		t.Run(strings.TrimSuffix(filepath.Base(sample), ".txtar"), func(t *testing.T) {
			t.Parallel()
			testInvalid(t, sample)
		})
	}
}

func testInvalid(t *testing.T, sample string) {
	archive, err := txtar.ParseFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	dir := newDir(t)
	want := (*txtar.File)(nil)
	for i, file := range archive.Files {
		if file.Name == "want" {
			want = &archive.Files[i]
			continue
		}
		dir.write(file.Name, string(file.Data), 0o644)
	}
	pol, err := Load(dir.path("policy.yaml"))
	if err == nil || pol != nil {
		t.Fatalf("accepted: %+v", pol)
	}
	got := strings.ReplaceAll(err.Error(), string(dir)+"/", "DIR/") + "\n"
	got = strings.ReplaceAll(got, string(dir), "DIR")
	if *update {
		want.Data = []byte(got)
		if err := os.WriteFile(sample, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != string(want.Data) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want.Data)
	}
	checkForm(t, err)
}

// checkForm guards against messages without a place or without help, and against
// those that could write a line of their own into a log.
func checkForm(t *testing.T, err error) {
	t.Helper()
	for _, m := range err.(*Mistakes).List {
		if m.Line < 1 || m.Column < 1 || m.Hint == "" || m.Text == "" {
			t.Errorf("incomplete: %+v", m)
		}
		if strings.ContainsFunc(m.Text, unicode.IsControl) {
			t.Errorf("control characters in %q", m.Text)
		}
	}
}
