package policy

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// revoking is a policy with anna's key, two authorities for her, and a file of
// revocations.
func (d dir) revoking(t testing.TB, revoked string) *Policy {
	t.Helper()
	d.write("revoked", revoked, 0o644)
	return d.load(t, minimal+"revoked_keys: revoked\nprincipals:\n  - name: anna\n    role: full\n    keys:\n      - "+authorizedLine("anna")+
		"\n      - "+authorizedLine("otto")+"\n      - cert-authority,principals=\"anna\" "+authorizedLine("ca")+
		"\n      - cert-authority,principals=\"anna\" "+authorizedLine("other")+"\n")
}

func signed(t testing.TB, authority string, serial uint64, id string) *ssh.Certificate {
	return certificateOf(t, func(c *ssh.Certificate) {
		c.Serial, c.KeyId = serial, id
		signBy(t, c, testSigner(authority))
	})
}

// Guards against revocations that are read and not kept, or that hit others.
func TestRevokedKeysOpenNothing(t *testing.T) {
	fingerprint := func(name string) string { return ssh.FingerprintSHA256(testKey(name)) }
	candidates := map[string]ssh.PublicKey{
		"anna": testKey("anna"), "otto": testKey("otto"),
		"ca 7": signed(t, "ca", 7, "seven"), "ca 12": signed(t, "ca", 12, "twelve"), "ca 0": signed(t, "ca", 0, "zero"),
		"other 7": signed(t, "other", 7, "seven"), "other max": signed(t, "other", 1<<64-1, "max"),
	}
	for revoked, gone := range map[string]string{
		"": "", "# " + authorizedLine("anna") + "\n\n \t\n": "",
		authorizedLine("anna") + " a comment # another":             "anna, ca 0, ca 12, ca 7, other 7, other max",
		authorizedLine("otto"):                                      "otto",
		"\t" + fingerprint("otto") + "\r\n":                         "otto",
		"hash: " + fingerprint("otto") + " # ssh-ed25519":           "otto",
		"hash:" + fmt.Sprintf("SHA256:%x", hashOf(testKey("otto"))): "otto",
		"key: " + authorizedLine("otto"):                            "otto",
		"KEY:" + authorizedLine("otto"):                             "otto",
		"sha1: " + authorizedLine("otto"):                           "otto",
		"sha256: " + authorizedLine("otto"):                         "otto",
		authorizedLine("ca"):                                        "ca 0, ca 12, ca 7",
		fingerprint("ca"):                                           "ca 0, ca 12, ca 7",
		"serial: 7":                                                 "ca 7, other 7",
		"serial: 0x7":                                               "ca 7, other 7",
		"serial: 8-11":                                              "",
		"serial: 1-7":                                               "ca 7, other 7",
		"serial: 7 - 12":                                            "ca 12, ca 7, other 7",
		"serial: 1-18446744073709551615":                            "ca 12, ca 7, other 7, other max",
		"serial: 1-100\nserial: 2-3\nserial: 200":                   "ca 12, ca 7, other 7",
		"id: seven":                                                 "ca 7, other 7",
		"id: Seven\nid: seve\nid: seven 7":                          "",
		"id:zero":                                                   "ca 0",
		"ca: " + authorizedLine("ca") + "\nserial: 7":               "ca 7",
		"ca: " + fingerprint("ca") + "\nid: seven\nserial: 12\nca: " + authorizedLine("other") + "\nserial: 18446744073709551615": "ca 12, ca 7, other max",
		"serial: 12\nca: " + authorizedLine("other") + "\nid: seven\nid: twelve\nca: " + fingerprint("ca"):                        "ca 12, other 7",
	} {
		pol := newDir(t).revoking(t, revoked)
		var got []string
		for name, key := range candidates {
			_, err := pol.Identify(key, anywhere)
			if offered := pol.Offered(key, anywhere); (offered == nil) != (err == nil) {
				t.Errorf("%q: %s: offered %v, login %v", revoked, name, offered, err)
			}
			if err != nil {
				got = append(got, name)
				if !strings.Contains(err.Error(), "revoked") {
					t.Errorf("%q: %s: %v", revoked, name, err)
				}
			}
		}
		if got := joined(got); got != gone {
			t.Errorf("%q: revoked are %s, want %s", revoked, got, gone)
		}
	}
}

func joined(names []string) string {
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// Guards against revocations that count only after a restart, and against a new
// file with a mistake that lets everybody in again.
func TestRevocationsFollowTheirFile(t *testing.T) {
	d := newDir(t)
	d.revoking(t, "")
	live, err := NewLive(d.path("policy.yaml"))
	if err != nil || !lets(live.Current(), "otto") {
		t.Fatal(err)
	}
	d.write("revoked", authorizedLine("otto")+"\n", 0o644)
	if err := live.Reload(); err != nil || lets(live.Current(), "otto") || !lets(live.Current(), "anna") {
		t.Errorf("after the reload: %v", err)
	}
	d.write("revoked", "serial: none\n", 0o644)
	if err := live.Reload(); err == nil || !strings.Contains(err.Error(), "revoked:1:1: ") || lets(live.Current(), "otto") {
		t.Errorf("after a mistake: %v", err)
	}
}

// Guards against a list that cannot be read and is taken for an empty one, or that
// others may empty.
func TestRevocationsThatCannotBeReadAreRefused(t *testing.T) {
	d := newDir(t)
	for name, want := range map[string]string{
		d.write("binary", krlMagic+"\x00\x00\x00\x01", 0o644):        "binary revocation list",
		d.write("open", authorizedLine("anna")+"\n", 0o646):          "everybody may write",
		d.write("large", strings.Repeat("#", maxKeysBytes+1), 0o644): "larger than 4MiB",
		d.path("missing"): "no such file",
		string(d):         "not a regular file",
	} {
		_, err := Load(d.write("policy.yaml", minimal+"revoked_keys: "+name+"\n", 0o644))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", filepath.Base(name), err)
		}
	}
}

// Guards against a text form of OpenSSH's own lists that means something else
// here: what ssh-keygen prints of one must read as what went into it.
func TestRevocationListPrintedBySSHKeygenReads(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skip("no ssh-keygen")
	}
	d := newDir(t)
	spec := "serial: 5-10\nserial: 0x20\nid: some id\nkey: " + authorizedLine("otto") + "\nhash: " + ssh.FingerprintSHA256(testKey("eva")) + "\n"
	d.write("spec", spec, 0o644)
	d.write("ca.pub", authorizedLine("ca")+"\n", 0o644)
	if out, err := exec.Command(keygen, "-k", "-f", d.path("krl"), "-s", d.path("ca.pub"), d.path("spec")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := exec.Command(keygen, "-Q", "-l", "-f", d.path("krl")).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{spec, string(text)} {
		r := d.revoking(t, text).revoked
		if !r.hasKey(testKey("otto")) || !r.hasKey(testKey("eva")) || len(r.keys) != 2 {
			t.Errorf("%d keys of\n%s", len(r.keys), text)
		}
		c := &r.certificates
		if !c.hasSerial(5) || !c.hasSerial(10) || !c.hasSerial(32) || c.hasSerial(4) || c.hasSerial(11) || !c.ids["some id"] || len(c.ids) != 1 {
			t.Errorf("certificates %+v of\n%s", c, text)
		}
	}
}

// Guards against time that grows with the length of the list: it is looked at for
// each key that anybody offers.
func TestManySerialsAreOneLookUp(t *testing.T) {
	var text strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&text, "serial: %d\n", 3*i+1)
	}
	r := newDir(t).revoking(t, text.String()).revoked
	if n := len(r.certificates.serials); n != 100_000 {
		t.Fatalf("%d ranges", n)
	}
	allocations := testing.AllocsPerRun(100, func() {
		if !r.certificates.hasSerial(3*99_999+1) || r.certificates.hasSerial(3*50_000) {
			t.Error("wrong answer")
		}
	})
	if allocations > 0 {
		t.Errorf("%v allocations", allocations)
	}
}
