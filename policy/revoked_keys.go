package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
	"gopkg.in/yaml.v3"
)

// revokedKeys reads the name of a file of revocations, and the file.
func (d *decoder) revokedKeys(n *yaml.Node) {
	path, ok := d.keyFile(n)
	if !ok {
		return
	}
	d.pol.RevokedKeys = path
	text, mode, err := d.disk.read(path, maxKeysBytes)
	private := notPrivate(path, text)
	switch {
	case err != nil:
		d.mistake(n, "make the file; it may be empty", "revoked_keys: %v", err)
	case mode&othersMayWrite != 0:
		d.mistake(n, "chmod o-w "+path, "everybody may write %s (mode %#o), and so let revoked keys in again", path, mode)
	case bytes.HasPrefix(text, []byte(krlMagic)):
		d.mistake(n, "ssh-keygen -Q -l -f "+path+" prints it as text; take the output of that, with a line \"ca: KEY\" for each \"# CA key\"",
			"%s is a binary revocation list, which is not read here", path)
	case private != nil:
		d.mistake(n, hintOf(private), "%v", private)
	default:
		d.pol.revoked = d.revocations(path, text)
	}
}

// krlMagic is what OpenSSH's binary lists begin with.
const krlMagic = "SSHKRL\n\x00"

// revocations reads a file of revocations. It has one of these on a line, the
// first two as in sshd's RevokedKeys, the others as in the specification of a list
// in ssh-keygen(1):
//
//	ssh-ed25519 AAAA...   this key, certificates for it, and those that it signed
//	SHA256:...            the same, by the fingerprint
//	key: ssh-ed25519 ...  the same; sha1: and sha256: too
//	hash: SHA256:...      the same
//	serial: 7             certificates with that serial
//	serial: 7-12          and those between
//	id: anna@laptop       certificates with that key id
//	ca: ssh-ed25519 ...   serials and ids below are those of this authority alone
//
// Serials and ids above any ca: are those of every authority.
func (d *decoder) revocations(path string, text []byte) *revocations {
	r := &revocationReader{list: newRevocations()}
	r.of = &r.list.certificates
	number := 0
	for raw := range bytes.Lines(text) {
		number++
		if err := r.line(strings.TrimSpace(string(raw))); err != nil {
			d.mistakes.add(Mistake{File: path, Line: number, Column: 1, Text: err.Error(), Hint: hintOf(err)})
		}
	}
	r.list.seal()
	return r.list
}

type revocationReader struct {
	list *revocations
	of   *revokedCertificates // those that serials and ids are added to
}

const revokedHint = "write a public key, its fingerprint SHA256:..., or one of key:, hash:, serial:, id: and ca: as config.example.yaml has them"

// droppedHash is how ssh-keygen -Q -l shows what its own text form has no word
// for: as a comment, so that it would be lost.
const droppedHash = "# hash SHA1:"

func (r *revocationReader) line(text string) error {
	if strings.HasPrefix(text, droppedHash) {
		return refuse("find the key that it stands for and write key: in its place, or remove the line", "a hash with SHA-1 revokes nothing here")
	}
	text = withoutComment(text)
	if text == "" {
		return nil
	}
	if isFingerprint(text) {
		return r.fingerprint(text)
	}
	word, value, found := strings.Cut(text, ":")
	read := revocationWords[strings.ToLower(word)]
	switch {
	case found && read != nil:
		return read(r, strings.TrimSpace(value))
	case found && !strings.Contains(word, " "):
		return refuse(revokedHint, "%s: is not known here", quote(word))
	}
	return r.key(text)
}

// withoutComment takes off what begins with a "#" at the start or behind a space.
func withoutComment(text string) string {
	for i := range len(text) {
		if text[i] == '#' && (i == 0 || text[i-1] == ' ' || text[i-1] == '\t') {
			return strings.TrimSpace(text[:i])
		}
	}
	return text
}

var revocationWords = map[string]func(*revocationReader, string) error{
	"key":    (*revocationReader).key,
	"sha1":   (*revocationReader).key, // these say how a binary list would keep the key
	"sha256": (*revocationReader).key,
	"hash":   (*revocationReader).fingerprint,
	"serial": (*revocationReader).serial,
	"id":     (*revocationReader).id,
	"ca":     (*revocationReader).authority,
}

func (r *revocationReader) key(text string) error {
	key, err := parseRevoked(text)
	if err != nil {
		return err
	}
	r.list.keys[hashOf(key)] = true
	return nil
}

// parseRevoked reads a public key, however weak it is.
func parseRevoked(text string) (ssh.PublicKey, error) {
	key, options, err := parseKeyLine(text)
	switch {
	case err != nil:
		return nil, refuse(revokedHint, "not a revocation: %s", quote(text))
	case len(options) > 0:
		return nil, refuse("remove what stands before the type of the key", "%s stands before the key", quote(strings.Join(options, ",")))
	}
	if cert, ok := key.(*ssh.Certificate); ok {
		return nil, refuse("write what is to be revoked: its serial ("+strconv.FormatUint(cert.Serial, 10)+"), its key id, or the key that it is for",
			"a certificate stands here, and it would not be clear how much of it is revoked")
	}
	return key, nil
}

var (
	fingerprintGrammar    = regexp.MustCompile(`^SHA256:[A-Za-z0-9+/]{43}$`)
	hexFingerprintGrammar = regexp.MustCompile(`^SHA256:[0-9a-f]{64}$`) // as ssh-keygen -Q -l of OpenSSH 9 prints some
)

func isFingerprint(text string) bool {
	return strings.HasPrefix(text, "SHA256:") && !strings.Contains(text, " ")
}

func (r *revocationReader) fingerprint(text string) error {
	hash, err := parseFingerprint(text)
	if err != nil {
		return err
	}
	r.list.keys[hash] = true
	return nil
}

func parseFingerprint(text string) (hash keyHash, err error) {
	digits := strings.TrimPrefix(text, "SHA256:")
	var raw []byte
	switch {
	case fingerprintGrammar.MatchString(text):
		raw, err = base64.RawStdEncoding.Strict().DecodeString(digits)
	case hexFingerprintGrammar.MatchString(text):
		raw, err = hex.DecodeString(digits)
	}
	if err != nil || len(raw) != sha256.Size {
		return hash, refuse("write it as ssh-keygen -l prints it: SHA256: and 43 letters", "%s is not a fingerprint", quote(text))
	}
	return keyHash(raw), nil
}

func (r *revocationReader) serial(text string) error {
	first, last, ranged := strings.Cut(text, "-")
	low, err := parseSerial(strings.TrimSpace(first))
	if err != nil {
		return err
	}
	high := low
	if ranged {
		if high, err = parseSerial(strings.TrimSpace(last)); err != nil {
			return err
		}
	}
	if high < low {
		return refuse("write the smaller one first", "serial: %s has no serial in it", quote(text))
	}
	r.of.serials = append(r.of.serials, serialRange{low, high})
	return nil
}

var serialGrammar = regexp.MustCompile(`^(0|[1-9][0-9]*|0x[0-9a-fA-F]+)$`)

// parseSerial refuses 0, which is that of all certificates that were made without
// a serial.
func parseSerial(text string) (uint64, error) {
	const hint = "write a number from 1 to 18446744073709551615, or two with a hyphen between"
	if !serialGrammar.MatchString(text) {
		return 0, refuse(hint, "serial: %s is not a serial", quote(text))
	}
	serial, err := strconv.ParseUint(text, 0, 64)
	switch {
	case err != nil:
		return 0, refuse(hint, "serial: %s is too large", quote(text))
	case serial == 0:
		return 0, refuse("revoke such certificates by id: or by their key", "serial: 0 is that of every certificate that was made without one")
	}
	return serial, nil
}

func (r *revocationReader) id(text string) error {
	switch {
	case text == "":
		return refuse("write the id that ssh-keygen -I gave: id: anna@laptop", "id: has no key id")
	case strings.Contains(text, "#"):
		return refuse("revoke these certificates by serial: or by their key", "id: %s has a %q, at which ssh-keygen would cut it", quote(text), "#")
	}
	r.of.revokeID(text)
	return nil
}

// authority says whose serials and ids follow.
func (r *revocationReader) authority(text string) error {
	hash, err := parseAuthority(text)
	if err != nil {
		return err
	}
	if r.list.byAuthority[hash] == nil {
		r.list.byAuthority[hash] = &revokedCertificates{}
	}
	r.of = r.list.byAuthority[hash]
	return nil
}

func parseAuthority(text string) (keyHash, error) {
	if isFingerprint(text) {
		return parseFingerprint(text)
	}
	key, err := parseRevoked(text)
	if err != nil {
		return keyHash{}, err
	}
	return hashOf(key), nil
}
