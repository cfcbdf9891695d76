package policy

import (
	"strconv"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"

	"nixbastion/internal/nix"
)

// The words of the policy file.
var (
	remoteStoreWords   = map[string]RemoteStore{"refuse": RemoteStoreRefuse, "ignore": RemoteStoreIgnore}
	remoteProgramWords = map[string]bool{"accept": false, "refuse": true}
)

// commands reads what clients may put into the commands that they ask for.
func (d *decoder) commands(n *yaml.Node) {
	c := &d.pol.Commands
	d.mapping(n, "commands.",
		setting{"remote_store", func(n *yaml.Node) {
			c.RemoteStore, _ = choice(d, n, remoteStoreWords)
		}},
		setting{"remote_program", func(n *yaml.Node) {
			c.PlainProgram, _ = choice(d, n, remoteProgramWords)
		}},
	)
}

// trustedKeys reads the keys whose signatures prove store paths. There may be
// none: then no signature proves anything.
func (d *decoder) trustedKeys(n *yaml.Node) []TrustedKey {
	var keys []TrustedKey
	seen := names{}
	d.list(n, func(item *yaml.Node) {
		key, ok := d.trustedKey(item)
		if !ok {
			return
		}
		if first := seen[key.Name()]; first != nil {
			d.mistake(item, "Nix takes one key of a name; remove the other", "a key of the name %s stands %s already", quote(key.Name()), d.at(first, item))
			return
		}
		seen[key.Name()] = item
		keys = append(keys, key)
	})
	return keys
}

// trustedKey reads a key that stands alone, or with what is said about it.
func (d *decoder) trustedKey(n *yaml.Node) (key TrustedKey, ok bool) {
	if n.Kind != yaml.MappingNode {
		key.PublicKey, ok = d.publicKey(n)
		return key, ok
	}
	values := d.mapping(n, "trusted_public_keys.",
		setting{"key", func(n *yaml.Node) { key.PublicKey, ok = d.publicKey(n) }},
		setting{"public", func(n *yaml.Node) { key.Public, _ = d.truth(n) }},
	)
	d.require(n, values, "a trusted key", [2]string{"key", "name it: {key: " + strconv.Quote(defaultTrustedKey) + ", public: true}"})
	return key, ok
}

func (d *decoder) publicKey(n *yaml.Node) (nix.PublicKey, bool) {
	text, ok := d.checkedText(n, checkTrustedKey)
	key, _ := nix.ParsePublicKey(text) // it was checked
	return key, ok
}

func checkTrustedKey(text string) error {
	key, err := nix.ParsePublicKey(text)
	if err != nil || strings.ContainsFunc(key.Name(), func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return refuse("write it as in Nix's trusted-public-keys, one a list item: "+defaultTrustedKey, "%s is not a public key for store paths", quote(text))
	}
	if key.String() != text {
		return refuse("write "+clip(key.String()), "%s is not written as Nix writes keys", quote(text))
	}
	return nil
}

// admin reads where the proxy answers the admin, and whom.
func (d *decoder) admin(n *yaml.Node) {
	a := &d.pol.Admin
	d.mapping(n, "admin.",
		setting{"socket", func(n *yaml.Node) { a.Socket = d.adminSocket(n) }},
		setting{"users", func(n *yaml.Node) { a.Users = d.texts(n, checkLocalAccount) }},
	)
}

func (d *decoder) adminSocket(n *yaml.Node) string {
	path, ok := d.path(n)
	if !ok {
		return ""
	}
	if err := checkSocketPath(path); err != nil {
		d.mistake(n, hintOf(err), "%v", err)
	}
	return path
}

func checkLocalAccount(name string) error {
	if !accountGrammar.MatchString(name) {
		return refuse("write the name of an account on this machine, as anna", "%s is not the name of an account", quote(name))
	}
	return nil
}
