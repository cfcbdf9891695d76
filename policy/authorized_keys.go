package policy

import (
	"bytes"
	"errors"
	"strings"

	"golang.org/x/crypto/ssh"
)

// authorized is a line of an authorized_keys file.
type authorized struct {
	key  ssh.PublicKey
	from fromList // nil: from anywhere
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
	for _, option := range options {
		if err := a.apply(option); err != nil {
			return authorized{}, err
		}
	}
	return a, nil
}

// noOps are options that take away what nobody has here.
var noOps = map[string]bool{
	"restrict": true, "no-agent-forwarding": true, "no-port-forwarding": true, "no-pty": true, "no-user-rc": true, "no-x11-forwarding": true,
}

// refusals say why an option is not accepted. Ignoring one would let somebody do
// what the line forbids.
var refusals = map[string]string{
	"command":           "command= is not accepted: the proxy runs no commands; what the key may do is the principal's role",
	"cert-authority":    "cert-authority is not accepted: certificates are not known here",
	"principals":        "principals= is not accepted: certificates are not known here",
	"environment":       "environment= is not accepted: the proxy starts no programs",
	"expiry-time":       "expiry-time= is not accepted: it is not checked here",
	"verify-required":   "verify-required is not accepted: it is not checked here",
	"no-touch-required": "no-touch-required is not accepted: security keys must be touched",
	"permitopen":        "permitopen= is not accepted: there is no forwarding here",
	"permitlisten":      "permitlisten= is not accepted: there is no forwarding here",
	"tunnel":            "tunnel= is not accepted: there is no forwarding here",
	"port-forwarding":   "port-forwarding is not accepted: there is no forwarding here",
	"agent-forwarding":  "agent-forwarding is not accepted: there is no forwarding here",
	"x11-forwarding":    "x11-forwarding is not accepted: there is no forwarding here",
	"pty":               "pty is not accepted: there are no terminals here",
	"user-rc":           "user-rc is not accepted: the proxy starts no programs",
}

const optionsHint = "options that are known: from=\"PATTERNS\", restrict, no-pty and the like; remove the others"

func (a *authorized) apply(option string) error {
	name, value, hasValue := strings.Cut(option, "=")
	name = strings.ToLower(name)
	switch {
	case noOps[name] && !hasValue:
		return nil
	case name == "from" && hasValue && a.from == nil:
		var err error
		a.from, err = parseFrom(unquoteOption(value))
		return err
	case name == "from" && hasValue:
		return refuse("put all patterns into one from=, with commas between them", "from= stands on the line twice")
	case refusals[name] != "":
		return refuse(optionsHint, "%s", refusals[name])
	}
	return refuse(optionsHint, "unknown option %s", quote(option))
}

// unquoteOption takes the quotes off the value of an option.
func unquoteOption(value string) string {
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = value[1 : len(value)-1]
	}
	return strings.ReplaceAll(value, `\"`, `"`)
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
