package policy

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Guards against keys with less than their principal's rights that look like the
// others, and against lines that open nothing without a word.
func TestDescribeSaysWhatEachKeyMay(t *testing.T) {
	d := newDir(t)
	d.write("revoked", authorizedLine("gone")+"\nserial: 1-3\nserial: 9\nca: "+authorizedLine("ca")+"\nid: x\n", 0o644)
	d.write("anna.keys", strings.Join([]string{
		authorizedLine("plain"),
		`restrict,command="nix-store --serve" ` + authorizedLine("reader"),
		`from="192.0.2.0/24",expiry-time="20200102030405Z",permitopen="b1:22",permitopen="[::1]:*" ` + authorizedLine("late"),
		`permitopen="none" ` + authorizedLine("gone"),
		`cert-authority,principals="anna,root",restrict,port-forwarding ` + authorizedLine("ca"),
		`from="192.0.2.7",cert-authority,principals="eva" ` + authorizedLine("ca"),
	}, "\n")+"\n", 0o644)
	got := describe(t, d.load(t, minimal+builderText("")+"revoked_keys: revoked\nprincipals: [{name: anna, role: full, authorized_keys: anna.keys}]\n"), "proxy")
	print := func(name string) string { return ssh.FingerprintSHA256(testKey(name)) }
	for _, want := range []string{
		d.path("revoked") + " revokes 1 key, 2 ranges of serials and 1 key id.",
		"    anna: 4 keys, 2 lines of authorities",
		"      its key " + print("reader") + " always gets nix-store --serve, without jumps",
		"      its key " + print("late") + " only from 192.0.2.0/24, only until 2020-01-02 03:04:05Z, with jumps only to b1:22, [::1]:*",
		"      its key " + print("gone") + " with jumps to nowhere",
		"      certificates of authority " + print("ca") + " with one of the principals anna, root",
		"      certificates of authority " + print("ca") + " with one of the principals eva, only from 192.0.2.7",
		"  Each of the 4 full keys of this domain, and each certificate for it, can plant any store path for everybody of this domain, and is as good as a trusted user of b1.",
		"warning: key " + print("late") + " of principal anna expired on 2020-01-02 03:04:05Z",
		"warning: key " + print("gone") + " of principal anna is revoked",
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("no line %q in:\n%s", want, got)
		}
	}
	if strings.Contains(got, print("plain")) || strings.Count(got, "warning: ") != 2 {
		t.Errorf("got:\n%s", got)
	}
}
