package policy

import (
	"encoding/pem"
	"strings"
	"testing"
)

// Guards against a secret key that stands where a public one belongs, or the name of its
// file where that of a file of public keys belongs, and gets into the log, and to all who
// may ask how the proxy is.
func TestMistakesShowNoSecretKeys(t *testing.T) {
	d := newDir(t)
	signing := signingKeyText("ci-1")
	private := privatePEM(testPrivateKey("builder"))
	block, _ := pem.Decode([]byte(private))
	secrets := []string{signing[8:40], signing[60:]}
	for line := range strings.Lines(string(pem.EncodeToMemory(block))) {
		if !strings.HasPrefix(line, "-----") {
			secrets = append(secrets, line[:20], line[len(line)-20:len(line)-1])
		}
	}
	named := func(key string) string { return minimal + key + ": [" + strings.TrimSpace(signing) + "]\n" }
	indented := "\n        " + strings.ReplaceAll(strings.TrimSpace(private), "\n", "\n        ") + "\n"
	hosts := strings.Replace(builderText(""), "host_keys: ["+authorizedLine("b1")+"]", "known_hosts: FILE", 1)
	for what, text := range map[string]string{
		"signing_keys":             minimal + "domains: [{name: ci, signing_keys: [\"" + signing + "\"]}]\n",
		"trusted_public_keys":      named("trusted_public_keys"),
		"a key":                    named(signing),
		"listen":                   named("listen"),
		"include":                  named("include"),
		"history":                  minimal + "scheduling: {history: \"" + signing + "\"}\n",
		"identity_file":            strings.Replace(minimal+builderText(""), "identity_file: builder-key", "identity_file: |"+indented, 1),
		"keys":                     minimal + "principals:\n  - name: a\n    role: full\n    keys:\n      - |" + indented,
		"authorized_keys":          minimal + "principals: [{name: a, role: full, authorized_keys: builder-key}]\n",
		"authorized_keys, signing": minimal + "principals: [{name: a, role: full, authorized_keys: ci-1.secret}]\n",
		"revoked_keys":             minimal + "revoked_keys: builder-key\n",
		"revoked_keys, signing":    minimal + "revoked_keys: ci-1.secret\n",
		"host_certificate":         minimal + "ssh: {host_certificate: builder-key}\n",
		"known_hosts":              minimal + strings.Replace(hosts, "FILE", "builder-key", 1),
		"known_hosts, signing":     minimal + strings.Replace(hosts, "FILE", "ci-1.secret", 1),
		"an included key":          minimal + "include: builder-key\n",
		"an included signing key":  minimal + "include: ci-1.secret\n",
	} {
		_, err := Load(d.write("policy.yaml", text, 0o644))
		if err == nil {
			t.Errorf("%s: no mistake", what)
			continue
		}
		for _, secret := range secrets {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %q is in\n%v", what, secret, err)
				break
			}
		}
	}
	_, err := Load(d.write("policy.yaml", minimal+"principals: [{name: a, role: full, authorized_keys: builder-key}]\n", 0o644))
	if want := d.path("policy.yaml") + ":2:53: " + d.path("builder-key") + " has a private key\n  hint: name the file of the public half"; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v", err)
	}
}
