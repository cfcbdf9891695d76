package policy

import (
	"slices"
	"strings"
	"time"
	"unicode"
)

// keyOptions are what stands before a key in authorized_keys. All of it narrows
// what the key may do; the zero value narrows nothing.
type keyOptions struct {
	from       fromList     // nil: from anywhere
	expiry     time.Time    // zero: never
	noJump     bool         // restrict or no-port-forwarding, and nothing after it that gives it back
	permitOpen []JumpTarget // nil: whatever the principal may
	command    string       // as forcedCommand returns it, "" for none
	authority  bool         // the key logs nobody in; it signs certificates
	principals []string     // of the certificates that it signs
}

// flags are options without a value. As in sshd the last one counts where several
// are about the same.
var flags = map[string]func(*keyOptions){
	"restrict":            func(o *keyOptions) { o.noJump = true },
	"no-port-forwarding":  func(o *keyOptions) { o.noJump = true },
	"port-forwarding":     func(o *keyOptions) { o.noJump = false },
	"cert-authority":      func(o *keyOptions) { o.authority = true },
	"no-agent-forwarding": takesNothing,
	"no-pty":              takesNothing,
	"no-user-rc":          takesNothing,
	"no-x11-forwarding":   takesNothing,
}

// takesNothing is for options that take away what nobody has here.
func takesNothing(*keyOptions) {}

// valued are options with a value; again says that they may stand on a line
// several times.
var valued = map[string]struct {
	read  func(o *keyOptions, value string) error
	again bool
}{
	"from":        {read: (*keyOptions).readFrom},
	"expiry-time": {read: (*keyOptions).readExpiry},
	"command":     {read: (*keyOptions).readCommand},
	"permitopen":  {read: (*keyOptions).readPermitOpen, again: true},
	"principals":  {read: (*keyOptions).readPrincipals},
}

// refusals say why an option is not accepted. Ignoring one would let somebody do
// what the line forbids.
var refusals = map[string]string{
	"environment":       "environment= is not accepted: the proxy starts no programs",
	"verify-required":   "verify-required is not accepted: whether a PIN was given is not seen here",
	"no-touch-required": "no-touch-required is not accepted: security keys must be touched",
	"permitlisten":      "permitlisten= is not accepted: nobody can listen here",
	"tunnel":            "tunnel= is not accepted: there are no tunnels here",
	"agent-forwarding":  "agent-forwarding is not accepted: agents are not forwarded here",
	"x11-forwarding":    "x11-forwarding is not accepted: X11 is not forwarded here",
	"pty":               "pty is not accepted: there are no terminals here",
	"user-rc":           "user-rc is not accepted: the proxy starts no programs",
}

const optionsHint = `known options: from=, expiry-time=, restrict, port-forwarding, permitopen=, command=, cert-authority with principals=, ` +
	`no-pty and the like; remove the others`

// parseKeyOptions reads all options of a line.
func parseKeyOptions(options []string) (keyOptions, error) {
	var o keyOptions
	seen := map[string]bool{}
	for _, option := range options {
		name, value, hasValue := strings.Cut(option, "=")
		name = strings.ToLower(name)
		if err := o.apply(option, name, value, hasValue, seen[name]); err != nil {
			return keyOptions{}, err
		}
		seen[name] = true
	}
	return o, o.checkAuthority()
}

func (o *keyOptions) apply(option, name, value string, hasValue, again bool) error {
	if set := flags[name]; set != nil && !hasValue {
		set(o)
		return nil
	}
	v, known := valued[name]
	switch {
	case known && again && !v.again:
		return refuse("keep one of them; from= and principals= have commas between what they list", "%s= stands on the line twice", name)
	case known && hasValue:
		return v.read(o, unquoteOption(value))
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

// checkAuthority refuses an authority whose certificates would all be accepted,
// and names of certificates where none is looked at.
func (o *keyOptions) checkAuthority() error {
	switch {
	case o.authority && o.principals == nil:
		return refuse(`say which: cert-authority,principals="anna,anna-laptop" ssh-ed25519 AAAA...; certificates have them from ssh-keygen -n`,
			"cert-authority stands there without principals=, so every certificate of that authority would log in")
	case !o.authority && o.principals != nil:
		return refuse("write cert-authority too, or remove principals=", "principals= counts for the certificates of an authority, and this key is none")
	}
	return nil
}

func (o *keyOptions) readFrom(value string) (err error) {
	o.from, err = parseFrom(value)
	return err
}

func (o *keyOptions) readExpiry(value string) (err error) {
	o.expiry, err = parseExpiry(value)
	return err
}

const expiryHint = `write expiry-time="YYYYMMDD", "YYYYMMDDHHMM" or "YYYYMMDDHHMMSS", with Z behind it for UTC`

// parseExpiry reads a time as sshd does: without Z it is that of this machine's
// time zone.
func parseExpiry(text string) (time.Time, error) {
	digits, zone := text, time.Local
	if rest, utc := strings.CutSuffix(strings.ToUpper(text), "Z"); utc {
		digits, zone = rest, time.UTC
	}
	const layout = "20060102150405"
	if n := len(digits); n != 8 && n != 12 && n != 14 {
		return time.Time{}, refuse(expiryHint, "expiry-time: %s is not a time", quote(text))
	}
	at, err := time.ParseInLocation(layout[:len(digits)], digits, zone)
	if err != nil {
		return time.Time{}, refuse(expiryHint, "expiry-time: %s is not a time", quote(text))
	}
	return at, nil
}

func (o *keyOptions) readCommand(value string) error {
	command, ok := forcedCommand(value)
	if !ok {
		return refuse(`write command="nix-daemon --stdio", "nix-store --serve --write", or "nix-store --serve", which only reads`,
			"command=%s is not a command of Nix's protocols, and the proxy runs no others", quote(value))
	}
	o.command = command
	return nil
}

// readPermitOpen adds one target, which must be literal as in sshd. "none" leaves
// no target; with others it adds nothing.
func (o *keyOptions) readPermitOpen(value string) error {
	if o.permitOpen == nil {
		o.permitOpen = []JumpTarget{}
	}
	if value == "none" {
		return nil
	}
	target, err := parseJump(value)
	switch {
	case err == nil && target.Builder != "":
		return refuse(permitHint, "permitopen: %s has no port", quote(value))
	case err != nil:
		return refuse(permitHint, "permitopen: %v", err)
	case strings.Contains(target.Host, "*") || target.Net.IsValid() && !target.Net.IsSingleIP():
		return refuse(permitHint+"; without permitopen= the key may whatever jump: of its principal says", "permitopen: %s is a pattern", quote(value))
	}
	o.permitOpen = append(o.permitOpen, target)
	return nil
}

const permitHint = `write permitopen="HOST:PORT", once for each target, with "*" for every port, or permitopen="none"`

// readPrincipals reads the names that certificates must have one of. They are
// compared as they are.
func (o *keyOptions) readPrincipals(value string) error {
	o.principals = strings.Split(value, ",")
	for i, name := range o.principals {
		switch {
		case name == "" || name != strings.TrimSpace(name) || strings.ContainsAny(name, `*?!"`), strings.ContainsFunc(name, unicode.IsControl):
			return refuse(`write names as certificates have them, with commas alone between: principals="anna,anna-laptop"`, "principals=: %s is not a name", quote(name))
		case slices.Contains(o.principals[:i], name):
			return refuse("remove one of them", "principals=: %s stands there twice", quote(name))
		}
	}
	return nil
}
