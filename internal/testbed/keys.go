package testbed

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

// A Key is an ed25519 key pair for SSH.
type Key struct {
	// Name is what it was made for; the key file on a host is called so.
	Name string
	// PrivatePEM is the private key in OpenSSH's format, without passphrase.
	PrivatePEM []byte
	signer     ssh.Signer
}

// AuthorizedLine is the public key as a line of authorized_keys, without end
// of line.
func (k Key) AuthorizedLine() string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.signer.PublicKey())))
}

// MachinesField is the public key as field 8 of a line of a machines file.
func (k Key) MachinesField() string {
	return base64.StdEncoding.EncodeToString([]byte(k.AuthorizedLine()))
}

// Signer is the key for a client or server within this process.
func (k Key) Signer() ssh.Signer { return k.signer }

// File is where the key lies on a host that has it: in root's home.
func (k Key) File() string { return k.fileOf(people[0]) }

func (k Key) fileOf(a account) string { return filepath.Join(a.home, ".ssh", k.Name) }

// newKey panics on what cannot happen: the kernel always has random bytes.
func newKey(name string) Key {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		panic(err)
	}
	block, err := ssh.MarshalPrivateKey(private, name)
	if err != nil {
		panic(err)
	}
	return Key{Name: name, PrivatePEM: pem.EncodeToMemory(block), signer: signer}
}

// A keyring makes keys when they are first asked for.
type keyring struct {
	mu           sync.Mutex // guards the maps
	users, hosts map[string]Key
}

func newKeyring() *keyring {
	return &keyring{users: map[string]Key{}, hosts: map[string]Key{}}
}

func (r *keyring) get(m map[string]Key, name string) Key {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := m[name]
	if !ok {
		k = newKey(name)
		m[name] = k
	}
	return k
}

func (r *keyring) host(name string) Key { return r.get(r.hosts, name) }

// UserKey returns the key of that name, the same one whenever it is asked for.
// Whoever has no key yet gets one by HostSpec.Keys or (*Host).PlaceKey.
func (b *Bed) UserKey(name string) Key { return b.keys.get(b.keys.users, name) }

// HostKey returns the key by which a host of that name proves itself, before
// or after it was started.
func (b *Bed) HostKey(name string) Key { return b.keys.host(name) }

// AddKnownHost makes a host key known to all hosts of the bed. name is a host
// name, or "[NAME]:PORT" for another port than 22; key is a line of
// authorized_keys ("ssh-ed25519 AAAA...").
func (b *Bed) AddKnownHost(name, key string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.appendKnownHost([]string{name}, key)
}

// appendKnownHost is for those who hold b.mu.
func (b *Bed) appendKnownHost(names []string, key string) error {
	return appendLine(filepath.Join(b.dir, "known_hosts"), fmt.Sprintf("%s %s", strings.Join(names, ","), key))
}
