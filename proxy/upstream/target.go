package upstream

import (
	"bytes"
	"slices"

	"golang.org/x/crypto/ssh"

	"nixbastion/policy"
)

// target is how a builder is reached. It does not change.
type target struct {
	name     string
	address  string // with port
	user     string
	identity *identity
	// hostKeys are those on file; with none, knownHosts is a file to look in.
	hostKeys   []ssh.PublicKey
	knownHosts string
	program    string // "" to look for it
	maxJobs    int
}

func newTarget(b *policy.Builder) *target {
	return &target{
		name: b.Name, address: b.Address, user: b.User,
		identity: &identity{file: b.IdentityFile},
		hostKeys: b.HostKeys, knownHosts: b.KnownHosts,
		program: b.RemoteProgram, maxJobs: b.MaxJobs,
	}
}

// sameAs reports whether connections and sessions of one serve for the other.
func (t *target) sameAs(o *target) bool {
	return t.name == o.name && t.address == o.address && t.user == o.user &&
		t.identity.file == o.identity.file && t.knownHosts == o.knownHosts && t.program == o.program &&
		slices.EqualFunc(t.hostKeys, o.hostKeys, sameKey)
}

func sameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }
