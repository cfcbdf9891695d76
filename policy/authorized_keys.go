package policy

import (
	"bytes"
	"errors"
	"strings"

	"golang.org/x/crypto/ssh"
)

// authorized is a line of an authorized_keys file.
type authorized struct {
	key ssh.PublicKey
	keyOptions
}

var errNotAKey = errors.New("not a public key")

// parseKeyLine takes one line apart. x/crypto skips lines that it does not
// understand, so it gets one at a time.
func parseKeyLine(line string) (ssh.PublicKey, []string, error) {
	line = strings.TrimSpace(line)
	if strings.ContainsAny(line, "\r\n") {
		return nil, nil, errNotAKey
	}
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, nil, errNotAKey
	}
	return key, options, nil
}

// parseAuthorized reads a line of authorized_keys with its options.
func parseAuthorized(line string) (authorized, error) {
	key, options, err := parseKeyLine(line)
	if err != nil {
		return authorized{}, refuse("write a line of an .pub file: ssh-ed25519 AAAA... comment", "not a public key: %s", quote(line))
	}
	if err := checkKey(key); err != nil {
		return authorized{}, err
	}
	a := authorized{key: key}
	a.keyOptions, err = parseKeyOptions(options)
	return a, err
}

// authorizedKeys reads an authorized_keys file and calls visit for each key. What
// is wrong in it is noted with its place there.
func (d *decoder) authorizedKeys(path string, visit func(a authorized, line int)) error {
	text, mode, err := d.disk.read(path, maxKeysBytes)
	switch {
	case err != nil:
		return refuse("make the file, with one public key a line; it may be empty", "authorized_keys: %v", err)
	case mode&othersMayWrite != 0:
		return refuse("chmod o-w "+path, "everybody may write %s (mode %#o), and so let himself in", path, mode)
	}
	if err := notPrivate(path, text); err != nil {
		return err
	}
	number := 0
	for raw := range bytes.Lines(text) {
		number++
		line := strings.TrimSpace(string(raw))
		if line == "" || line[0] == '#' {
			continue
		}
		a, err := parseAuthorized(line)
		if err != nil {
			d.mistakes.add(Mistake{File: path, Line: number, Column: 1, Text: err.Error(), Hint: hintOf(err)})
			continue
		}
		visit(a, number)
	}
	return nil
}
