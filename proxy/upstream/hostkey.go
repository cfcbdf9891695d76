package upstream

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/crypto/ssh"
)

// hostCheck is what a builder must show before it is spoken to. There is no way
// to make one that accepts any key.
type hostCheck struct {
	// algorithms are those of the keys on file: a builder that has others, too,
	// would else choose one of them and look like an impostor.
	algorithms []string
	check      ssh.HostKeyCallback
}

var errNoHostKey = errors.New("no host key is on file for it")

// hostCheck reads what is on file at this moment.
func (t *target) hostCheck() (*hostCheck, error) {
	if len(t.hostKeys) > 0 {
		return fixedKeys(t.hostKeys)
	}
	if t.knownHosts == "" {
		return nil, errNoHostKey
	}
	return knownKeys(t.knownHosts, t.address)
}

func fixedKeys(keys []ssh.PublicKey) (*hostCheck, error) {
	h := &hostCheck{check: func(_ string, _ net.Addr, shown ssh.PublicKey) error {
		for _, key := range keys {
			if sameKey(key, shown) {
				return nil
			}
		}
		return unknownKey(shown)
	}}
	for _, key := range keys {
		h.accept(key.Type())
	}
	return h.usable()
}

// accept adds what keys of a type sign with.
func (h *hostCheck) accept(keyType string) {
	for _, name := range algorithmsOf(keyType) {
		if !slices.Contains(h.algorithms, name) {
			h.algorithms = append(h.algorithms, name)
		}
	}
}

// algorithmsOf returns the safe signature algorithms of a type of key: for RSA
// those without SHA-1, for DSA none.
func algorithmsOf(keyType string) []string {
	switch keyType {
	case ssh.KeyAlgoRSA:
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	case ssh.CertAlgoRSAv01:
		return []string{ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01}
	case "ssh-dss", "ssh-dss-cert-v01@openssh.com":
		return nil
	}
	return []string{keyType}
}

// usable sorts the strongest first and refuses an empty list, which the ssh
// library would take for its own defaults.
func (h *hostCheck) usable() (*hostCheck, error) {
	slices.SortStableFunc(h.algorithms, func(a, b string) int { return strength(a) - strength(b) })
	if len(h.algorithms) == 0 {
		return nil, errNoHostKey
	}
	return h, nil
}

// strength is the place of an algorithm in our order of preference: ed25519 is
// also by far the cheapest to verify.
func strength(algorithm string) int {
	order := []string{ssh.CertAlgoED25519v01, ssh.KeyAlgoED25519}
	if i := slices.Index(order, algorithm); i >= 0 {
		return i
	}
	return len(order)
}

func unknownKey(shown ssh.PublicKey) error {
	return fmt.Errorf("it shows the %s key %s, which is not on file for it", shown.Type(), ssh.FingerprintSHA256(shown))
}
