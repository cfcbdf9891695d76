package policy

import (
	"strings"
	"testing"
)

// credentialed is a policy in which every file with keys is a credential.
func (d dir) credentialed() string {
	d.write("credentials/builder-key", privatePEM(testPrivateKey("builder")), 0o440)
	d.write("credentials/ci-1.secret", signingKeyText("ci-1"), 0o440)
	d.write("credentials/known_hosts", "b1.example.org "+authorizedLine("b1")+"\n", 0o440)
	d.write("credentials/anna", authorizedLine("anna")+"\n", 0o440)
	d.write("credentials/revoked", "serial: 7\n", 0o440)
	return minimal + "domains: [{name: ci, signing_keys: [credential:ci-1.secret]}]\nrevoked_keys: credential:revoked\n" +
		"principals: [{name: anna, role: full, authorized_keys: credential:anna}]\n" +
		strings.NewReplacer("identity_file: builder-key", "identity_file: credential:builder-key",
			"host_keys: ["+authorizedLine("b1")+"]", "known_hosts: credential:known_hosts").Replace(builderText(""))
}

// Guards against credentials that are looked for elsewhere, or refused for the modes
// that systemd gives them.
func TestCredentialsStandForFilesWithKeys(t *testing.T) {
	d := newDir(t)
	text := d.credentialed()
	t.Setenv("CREDENTIALS_DIRECTORY", d.path("credentials"))
	pol := d.load(t, text)
	if b := pol.Builders[0]; b.IdentityFile != d.path("credentials/builder-key") || b.KnownHosts != d.path("credentials/known_hosts") {
		t.Errorf("builder %+v", b)
	}
	if len(pol.keys) != 1 || len(pol.DomainNamed("ci").SigningKeys) != 1 || pol.RevokedKeys != d.path("credentials/revoked") {
		t.Errorf("policy %+v", pol)
	}
	if out := d.printed(t, text); strings.Contains(out, d.path("credentials")) || !strings.Contains(out, "identity_file: credential:builder-key ") {
		t.Errorf("printed is where they are now, not what they are called:\n%s", out)
	}
}

// Guards against a credential that is another file, or one where nothing secret is
// read.
func TestOtherCredentialsAreRefused(t *testing.T) {
	d := newDir(t)
	d.write("credentials/key", signingKeyText("ci-1"), 0o440)
	d.write("key", signingKeyText("ci-1"), 0o600)
	t.Setenv("CREDENTIALS_DIRECTORY", d.path("credentials"))
	for text, want := range map[string]string{
		"revoked_keys: credential:../key": `"../key" is not the name of a credential`, "revoked_keys: 'credential:'": `"" is not the name of a credential`,
		"revoked_keys: credential:none": `credential "none": stat ` + d.path("credentials/none"), "revoked_keys: credential:..": `".." is not the name`,
		"admin: {socket: credential:key}": "only files with keys can be credentials", "scheduling: {history: credential:key}": "only files with keys can be credentials",
		"include: credential:key": "only files with keys can be credentials",
	} {
		_, err := Load(d.write("policy.yaml", minimal+text+"\n", 0o644))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", text, err)
			continue
		}
		checkForm(t, err)
	}
}

// Guards against a check by the admin that knows the service's credentials only in the
// service.
func TestCredentialsAreThoseOfTheUnitElsewhere(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	d := newDecoder("policy.yaml", fakeDisk{})
	if file, err := d.credential("key"); err != nil || file != "/run/credentials/nixbastion.service/key" {
		t.Errorf("got %s, %v", file, err)
	}
}
