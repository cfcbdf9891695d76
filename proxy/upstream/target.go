package upstream

import (
	"bytes"
	"os"
	"os/user"
	"slices"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/policy"
)

// target is how a builder is reached. It does not change.
type target struct {
	name string
	// socket is that of this machine's daemon, for a builder that is not reached
	// over ssh; all that follows up to program is about ssh then, and not used,
	// except address, the socket as a URL, and user, the account we run as.
	socket   string
	protocol policy.Protocol
	address  string // with port
	user     string
	identity *identity
	// hostKeys are those on file; with none, knownHosts is a file to look in.
	hostKeys   []ssh.PublicKey
	knownHosts string
	program    string // "" to look for it
	maxJobs    int
	load       loadWish // a change of it needs no new connection

	// traffic goes on when another target takes the place of this one; newBuilder sets
	// it.
	traffic *traffic
}

// loadWish is what the policy says about the probe of a builder's load.
type loadWish struct {
	off   bool
	every time.Duration // 0: as often as usual
}

func newTarget(b *policy.Builder) *target {
	if b.Socket != "" {
		return &target{name: b.Name, socket: b.Socket, address: "unix://" + b.Socket, user: ownAccount(),
			identity: &identity{}, maxJobs: b.MaxJobs, load: wishOf(b)}
	}
	return &target{
		name: b.Name, protocol: b.Protocol, address: b.Address, user: b.User,
		identity: &identity{file: b.IdentityFile},
		hostKeys: b.HostKeys, knownHosts: b.KnownHosts,
		program: b.RemoteProgram, maxJobs: b.MaxJobs, load: wishOf(b),
	}
}

func wishOf(b *policy.Builder) loadWish { return loadWish{off: b.Load.Off, every: b.Load.Every} }

// sameAs reports whether connections and sessions of one serve for the other.
func (t *target) sameAs(o *target) bool {
	return t.name == o.name && t.socket == o.socket && t.protocol == o.protocol && t.address == o.address && t.user == o.user &&
		t.identity.file == o.identity.file && t.knownHosts == o.knownHosts && t.program == o.program &&
		slices.EqualFunc(t.hostKeys, o.hostKeys, sameKey)
}

// ownAccount is the name of the account that the proxy runs as, or its number.
func ownAccount() string {
	uid := strconv.Itoa(os.Getuid())
	if account, err := user.LookupId(uid); err == nil {
		return account.Username
	}
	return uid
}

func sameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }
