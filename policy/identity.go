package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"

	"golang.org/x/crypto/ssh"
)

// checkIdentity looks whether a file has a private key with which we can log in
// without anybody at the keyboard.
func (d *decoder) checkIdentity(path string, b *Builder) error {
	text, mode, err := d.disk.read(path, maxIdentityBytes)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse(keygenHint(path, b), "identity file %s does not exist", path)
	case err != nil:
		return refuse("name a private key that the account of the proxy can read", "identity file: %v", err)
	case mode&0o077 != 0 && !isCredential(path):
		return refuse("chmod 600 "+path+"; make a new key if others may have read it", "identity file %s may be read by others (mode %#o)", path, mode)
	}
	signer, err := ssh.ParsePrivateKey(text)
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		return refuse("make one without: "+keygenHint(path+"-proxy", b), "identity file %s needs a passphrase, and nobody is there to type it", path)
	case err != nil && strings.HasSuffix(path, ".pub"):
		return refuse("name the private key, without .pub", "identity file %s is the public half of a key", path)
	case err != nil:
		return refuse(keygenHint(path+"-proxy", b), "identity file %s is not a private key for SSH: %v", path, err)
	}
	if err := checkKey(signer.PublicKey()); err != nil {
		return refuse(hintOf(err), "identity file %s: %v", path, err)
	}
	return nil
}

// keygenHint says how to make the key of a builder and how to let it in there.
func keygenHint(path string, b *Builder) string {
	host, _, err := net.SplitHostPort(b.Address)
	if err != nil {
		host = "the builder"
	}
	user := b.User
	if user == "" {
		user = "USER"
	}
	return fmt.Sprintf("ssh-keygen -t ed25519 -N '' -C nixbastion -f %s\n"+
		"then on %s, one line in ~%s/.ssh/authorized_keys: restrict CONTENTS-OF-%s.pub", path, host, user, path)
}
