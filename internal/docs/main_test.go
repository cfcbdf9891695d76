package docs

import (
	"crypto/ed25519"
	"encoding/pem"

	"golang.org/x/crypto/ssh"
)

// privateKey is a key that opens nothing.
var privateKey = func() string {
	block, err := ssh.MarshalPrivateKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), "")
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(block))
}()
