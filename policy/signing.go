package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"nixbastion/internal/nix"
)

// Signing says which store paths a domain's keys sign. The zero value is none.
type Signing int

const (
	// SignNone signs nothing.
	SignNone Signing = iota
	// SignProven signs what is proven: by its content, by a trusted signature, or
	// by a build whose plan and inputs are.
	SignProven
	// SignDomain signs also what the domain vouches for: what was built for it.
	SignDomain
)

var signingWords = map[string]Signing{"none": SignNone, "proven": SignProven, "domain": SignDomain}

// String is the word of the policy file.
func (s Signing) String() string {
	for word, value := range signingWords {
		if value == s {
			return word
		}
	}
	return fmt.Sprintf("Signing(%d)", int(s))
}

// Signers are the keys that sign what belongs to the domain; nil if none does.
func (d *Domain) Signers() []nix.SigningKey {
	if d.Sign == SignNone {
		return nil
	}
	return d.SigningKeys
}

// PublicKeys are those by which clients know what the domain signs.
func (d *Domain) PublicKeys() []nix.PublicKey {
	var keys []nix.PublicKey
	for _, key := range d.Signers() {
		keys = append(keys, key.Public())
	}
	return keys
}

// SignersName is a name for what is signed with which keys: another one for every
// other answer, "" for a domain that signs nothing. It has no secrets.
func (d *Domain) SignersName() string {
	if len(d.Signers()) == 0 {
		return ""
	}
	keys := keyTexts(d.PublicKeys())
	slices.Sort(keys)
	return d.Sign.String() + " " + strings.Join(keys, " ")
}

func keyTexts(keys []nix.PublicKey) []string {
	texts := make([]string, len(keys))
	for i, key := range keys {
		texts[i] = key.String()
	}
	return texts
}

func keyNames(keys []nix.PublicKey) []string {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = key.Name()
	}
	return names
}

// DomainNamed returns the domain of a name, nil if there is none.
func (p *Policy) DomainNamed(name string) *Domain {
	at := slices.IndexFunc(p.Domains, func(d Domain) bool { return d.Name == name })
	if at < 0 {
		return nil
	}
	return &p.Domains[at]
}

// maxSigningKeyBytes is far above any key's.
const maxSigningKeyBytes = 4 << 10

// signer is a key that was read, and where the file names it.
type signer struct {
	key    nix.SigningKey
	domain string
	at     *yaml.Node
}

// signing reads what a domain signs with and what. With keys and nothing else said
// it is all that the domain vouches for.
func (d *decoder) signing(values map[string]*yaml.Node, dom *Domain, mode Signing) {
	dom.Sign = mode
	at := values["sign"]
	if len(dom.SigningKeys) > 0 {
		if at == nil {
			dom.Sign = SignDomain
		}
		return
	}
	dom.Sign = SignNone
	if at != nil && mode != SignNone && values["signing_keys"] == nil {
		d.mistake(at, "nixbastion key generate NAME --out FILE\nthen signing_keys: [FILE]", "%q needs signing_keys: without a key nothing is signed", "sign: "+mode.String())
	}
}

// signingKeys reads the secret keys of a domain.
func (d *decoder) signingKeys(n *yaml.Node, domain string) []nix.SigningKey {
	var keys []nix.SigningKey
	d.list(n, func(item *yaml.Node) {
		path, ok := d.keyFile(item)
		if !ok {
			return
		}
		key, err := d.signingKey(path)
		if err == nil {
			err = d.ownKey(signer{key, domain, item})
		}
		if err != nil {
			d.mistake(item, hintOf(err), "%v", err)
			return
		}
		keys = append(keys, key)
	})
	return keys
}

// signingKey reads a file as nix-store --generate-binary-cache-key writes it. No
// error has any of what is in it.
func (d *decoder) signingKey(path string) (nix.SigningKey, error) {
	text, file, err := d.disk.secret(path, maxSigningKeyBytes)
	if err == nil {
		err = d.checkSecret(path, file)
	}
	if err != nil {
		return nix.SigningKey{}, signingKeyRemark(path, err)
	}
	key, err := nix.ParseSigningKey(string(text))
	if err == nil {
		return key, nil
	}
	if _, err := nix.ParsePublicKey(string(text)); err == nil {
		return key, refuse("name the file of the secret key that it belongs to", "signing key %s is a public key", path)
	}
	return key, refuse("make one: "+generateHint(path+".new"), "signing key %s is not a secret key of Nix, one line NAME:BASE64", path)
}

func signingKeyRemark(path string, err error) error {
	switch {
	case hintOf(err) != "":
		return err
	case errors.Is(err, fs.ErrNotExist):
		return refuse(generateHint(path), "signing key %s does not exist", path)
	}
	return refuse("name a secret key that the account of the proxy can read", "signing key: %v", err)
}

func generateHint(path string) string { return "nixbastion key generate NAME --out " + path }

// secretFile is what a file system says of a file with a secret.
type secretFile struct {
	mode  fs.FileMode
	owner int
}

// checkSecret refuses a file that others than root and the proxy's account can
// read, or could have made. What systemd has put into the service's credentials is
// well kept, though its modes may say less.
func (d *decoder) checkSecret(path string, file secretFile) error {
	switch {
	case !file.mode.IsRegular():
		return refuse("name a file with a secret key", "signing key %s is not a regular file", path)
	case isCredential(path):
		return nil
	case file.mode.Perm()&0o077 != 0:
		return refuse("chmod 600 "+path+"; make a new key if others may have read it", "signing key %s may be used by others (mode %#o)", path, file.mode.Perm())
	case file.owner != 0 && file.owner != os.Geteuid() && file.owner != d.proxyAccount():
		return refuse("chown root "+path+", or the account that the proxy runs as; make a new key if its owner may know this one",
			"signing key %s belongs to another account (uid %d)", path, file.owner)
	}
	return nil
}

// proxyAccount is the owner of the state directory, who is the proxy's account
// also when somebody else checks the policy; 0 if there is none yet.
func (d *decoder) proxyAccount() int { return d.disk.owner(d.pol.StateDir) }

// credentialDirs is where systemd has the credentials of services.
const credentialDirs = "/run/credentials"

func isCredential(path string) bool {
	for _, dir := range []string{credentialDirs, os.Getenv("CREDENTIALS_DIRECTORY")} {
		if filepath.IsAbs(dir) && strings.HasPrefix(path, filepath.Clean(dir)+"/") {
			return true
		}
	}
	return false
}

// ownKey notes a key, or refuses one that two domains have: each would vouch for
// what the other does. Two of one name are refused too, since clients know one key
// of a name.
func (d *decoder) ownKey(s signer) error {
	for _, other := range d.signers {
		at := d.at(other.at, s.at)
		switch same := other.key.Secret() == s.key.Secret(); {
		case other.key.Name() != s.key.Name() && !sameSecret(other.key, s.key):
			continue
		case other.domain != s.domain:
			return refuse("each domain signs with keys of its own names: "+generateHint("FILE"),
				"domain %s signs with key %s already, %s, so that each of the two would vouch for what the other does", quote(other.domain), quote(other.key.Name()), at)
		case same:
			return refuse("remove one of them", "signing key %s stands here for the second time; the first is %s", quote(s.key.Name()), at)
		default:
			return refuse("make one with a name of its own: "+generateHint("FILE"), "signing key %s has the name or the secret of another, %s: %s",
				quote(s.key.Name()), at, quote(other.key.Name()))
		}
	}
	d.signers = append(d.signers, s)
	return nil
}

// sameSecret reports whether two keys are one but for their names.
func sameSecret(a, b nix.SigningKey) bool {
	return strings.TrimPrefix(a.Public().String(), a.Name()) == strings.TrimPrefix(b.Public().String(), b.Name())
}

// signersAreNotImpersonated refuses a trusted key that has the name of one that
// signs and is another: clients could not tell them apart.
func (d *decoder) signersAreNotImpersonated() {
	for _, s := range d.signers {
		for _, trusted := range d.pol.TrustedPublicKeys {
			if trusted.Name() == s.key.Name() && trusted.String() != s.key.Public().String() {
				d.mistake(s.at, "remove that one, or make a signing key of another name: "+generateHint("FILE"),
					"trusted_public_keys has another key of the name %s", quote(s.key.Name()))
			}
		}
	}
}
