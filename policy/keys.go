package policy

import (
	"crypto/rsa"
	"strings"

	"golang.org/x/crypto/ssh"
)

const (
	minRSABits = 2048
	maxRSABits = 8192 // checking larger ones costs CPU before anybody is known
)

// keyTypes are the types of plain public keys that are good enough, for users
// and for hosts.
var keyTypes = map[string]bool{
	ssh.KeyAlgoED25519: true, ssh.KeyAlgoSKED25519: true, ssh.KeyAlgoSKECDSA256: true, ssh.KeyAlgoRSA: true,
	ssh.KeyAlgoECDSA256: true, ssh.KeyAlgoECDSA384: true, ssh.KeyAlgoECDSA521: true,
}

// keyTypeDSA has keys of 1024 bits; OpenSSH 10 dropped it.
const keyTypeDSA = "ssh-dss"

const newKeyHint = "make a new one: ssh-keygen -t ed25519"

// checkKey refuses keys that prove too little.
func checkKey(key ssh.PublicKey) error {
	kind := key.Type()
	switch {
	case kind == keyTypeDSA:
		return refuse(newKeyHint, "DSA keys are too weak")
	case strings.Contains(kind, "-cert-"):
		return refuse("write the key that the certificate is for", "certificates are not accepted as keys")
	case !keyTypes[kind]:
		return refuse(newKeyHint, "keys of type %s are not known here", quote(kind))
	}
	if bits := rsaBits(key); bits != 0 && (bits < minRSABits || bits > maxRSABits) {
		return refuse(newKeyHint, "RSA keys must have %d to %d bits, this one has %d", minRSABits, maxRSABits, bits)
	}
	return nil
}

// rsaBits returns the size of an RSA key, 0 for others.
func rsaBits(key ssh.PublicKey) int {
	crypto, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return 0
	}
	pub, ok := crypto.CryptoPublicKey().(*rsa.PublicKey)
	if !ok {
		return 0
	}
	return pub.N.BitLen()
}

// parseHostKey reads the public key of a builder: type and base64, and perhaps a
// comment.
func parseHostKey(text string) (ssh.PublicKey, error) {
	const hint = "write it as in ssh_host_ed25519_key.pub of the builder: ssh-ed25519 AAAA..."
	key, options, err := parseKeyLine(text)
	switch {
	case err != nil:
		return nil, refuse(hint, "not a public key: %s", quote(text))
	case len(options) > 0:
		return nil, refuse("remove what stands before the type of the key: "+hint, "%s stands before the key", quote(strings.Join(options, ",")))
	}
	return key, checkKey(key)
}
