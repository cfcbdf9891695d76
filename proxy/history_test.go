package proxy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/tracefile"
)

// Guards what nixbastion simulate is given: each wish of a client for something that
// was built, as the reader of traces takes it, and nothing of what failed or was
// there already.
func TestHistoryHasWhatWasBuilt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "history.jsonl")
	b := newLabBuilder("b1")
	l := newLabOf(t, labPolicy{extra: fmt.Sprintf("\nscheduling: {startup_grace: 0s, history: %s}\n", file)}, b)
	alice := l.client("alice")
	for range 2 { // the second time it is there already
		result, err := alice.build(t.Context(), nix.Discard, "hello")
		mustSucceed(t, result, err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := tracefile.NewReader(file, f)
	wish, _, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	if wish.Principal != "alice" || wish.Name != "hello" || wish.Seconds <= 0 || wish.Ended.Before(wish.Asked) ||
		len(wish.Outputs) != 1 || wish.Outputs[0].Path != labPath("hello").String() || wish.Outputs[0].Size == 0 {
		t.Errorf("recorded %+v", wish)
	}
	if more, _, err := r.Next(); err == nil {
		t.Errorf("recorded also %+v", more)
	}
	if info, _ := f.Stat(); info.Mode().Perm() != 0o600 || strings.Contains(l.log.String(), "missing in the history") {
		t.Errorf("mode %s, log %s", info.Mode(), l.log)
	}
}
