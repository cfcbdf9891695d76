package nix

import (
	"strings"
	"testing"
)

// Guards against a signature that breaks the line it is written into: what
// follows would be a key of the narinfo file.
func TestSignatureIsOneLine(t *testing.T) {
	digest := ":" + strings.Repeat("A", 86) + "=="
	for _, name := range []string{"key\nCA", "key\rCA", "key\x00", "\n"} {
		if sig, err := ParseSignature(name + digest); err == nil {
			t.Errorf("accepted %q", sig.String())
		}
	}
	if _, err := ParseSignature("my key-1" + digest); err != nil {
		t.Error(err)
	}
}
