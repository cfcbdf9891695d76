package policy

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Guards against a key that is found by something else than its whole fingerprint.
func TestReadKeyFindsAKeyByItsFingerprint(t *testing.T) {
	pol := newDir(t).certified(t, `cert-authority,principals="anna" `+authorizedLine("ca"), `from="10.0.0.0/8" `+authorizedLine("anna"))
	anna := Fingerprint(testKey("anna"))
	for _, text := range []string{anna, authorizedLine("anna"), authorizedLine("anna") + " anna@laptop\n"} {
		if key, err := pol.ReadKey(text); err != nil || Fingerprint(key) != anna {
			t.Errorf("%q: %v", text, err)
		}
	}
	if key, err := pol.ReadKey(string(ssh.MarshalAuthorizedKey(certificateOf(t, nil)))); err != nil || Fingerprint(key) != anna {
		t.Errorf("certificate: %v", err)
	}
	for text, says := range map[string]string{
		anna[:len(anna)-1]:                   "is not in the policy",
		"SHA256:":                            "is not in the policy",
		Fingerprint(testKey("stranger")):     "is not in the policy",
		Fingerprint(testKey("ca")):           "signs certificates",
		"anna":                               "not a public key",
		"":                                   "not a public key",
		"restrict " + authorizedLine("anna"): "options count where the policy has them",
	} {
		if key, err := pol.ReadKey(text); err == nil || key != nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v, %v; want %q", text, key, err, says)
		}
	}
}
