package policy

import "regexp"

// secretLooking is what secret keys look like, of Nix and of SSH. Mistakes are read by
// more people than keys are for.
var secretLooking = regexp.MustCompile(`(^|:)[A-Za-z0-9+/]{86}==|PRIVATE KEY-----`)

const secretShown = "(a secret key, not shown)"

// notSecret refuses a secret key in the place of the name of a file.
func notSecret(text string) error {
	if secretLooking.MatchString(text) {
		return refuse("put the key into a file that nobody else can read, and write its name; make a new key if others may have read this file", "a secret key stands where the name of a file belongs")
	}
	return nil
}

// notPrivate refuses a file of a private key, whose lines would be shown as mistakes.
func notPrivate(path string, text []byte) error {
	if secretLooking.Match(text) {
		return refuse("name the file of the public half, as "+path+".pub", "%s has a private key", path)
	}
	return nil
}
