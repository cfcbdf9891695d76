package policy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"
)

const (
	// credentialScheme is what a credential of systemd begins with, in the place of the
	// name of a file with keys.
	credentialScheme = "credential:"
	// unitCredentials is where the credentials of the running service are for who looks
	// at them from outside, as a check by the admin does.
	unitCredentials = credentialDirs + "/nixbastion.service"
)

// credentialName is what systemd takes: the name of a file.
var credentialName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.@-]{0,254}$`)

// keyFile reads the name of a file with keys that is only ever read, or of a
// credential, which stands for such a file.
func (d *decoder) keyFile(n *yaml.Node) (string, bool) {
	name, credential := strings.CutPrefix(n.Value, credentialScheme)
	if n.Kind != yaml.ScalarNode || !credential {
		return d.path(n)
	}
	file, err := d.credential(name)
	if err != nil {
		d.mistake(n, hintOf(err), "%v", err)
	}
	return file, err == nil
}

func (d *decoder) credential(name string) (string, error) {
	if !credentialName.MatchString(name) {
		return "", refuse("write credential:NAME, with the name that LoadCredential= has in the unit", "%s is not the name of a credential", quote(name))
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if !filepath.IsAbs(dir) {
		dir = unitCredentials
	}
	file := filepath.Join(dir, name)
	if _, _, err := d.disk.list(file, 0); err != nil {
		return "", refuse("LoadCredential="+name+":FILE in the unit of the service, which must run\nwhere it does not, CREDENTIALS_DIRECTORY=DIR in the environment names a directory with such files",
			"credential %s: %v", quote(name), err)
	}
	return file, nil
}

// notForCredentials refuses a credential where something else than a file with keys
// is named.
func notForCredentials(text string) error {
	if strings.HasPrefix(text, credentialScheme) {
		return refuse("write a path", "%s: only files with keys can be credentials", quote(text))
	}
	return nil
}
