package proxy

import (
	"bytes"
	"io"
	"net/netip"
	"strings"

	"golang.org/x/crypto/ssh"

	"nixbastion/policy"
)

// said is what a command came to.
type said struct {
	stdout, stderr string
	status         int
}

// run runs a command of a principal as the front would. Change may be nil.
func (l *lab) run(principal, command string, change func(*Exec)) said {
	l.Helper()
	var stdout, stderr bytes.Buffer
	x := &Exec{
		Identity: l.identity(principal), Command: command,
		Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, Stopping: make(chan struct{}),
	}
	if change != nil {
		change(x)
	}
	status := l.proxy.exec(l.Context(), x)
	return said{stdout.String(), stderr.String(), status}
}

// identity is who the front would say is at the other end.
func (l *lab) identity(principal string) *Identity {
	return &Identity{
		Grant:       Grant{Principal: principal, Data: &policy.Access{Principal: l.principal(principal)}},
		Fingerprint: ssh.FingerprintSHA256(testKey(principal).PublicKey()),
		User:        "nix", Remote: netip.MustParseAddrPort("192.0.2.7:40000"),
	}
}

// forced sets what the admin has for the key.
func forced(command string) func(*Exec) {
	return func(x *Exec) { accessOf(x).Command = command }
}

// reading is a client that sends these bytes.
func reading(text string) func(*Exec) {
	return func(x *Exec) { x.Stdin = io.NopCloser(strings.NewReader(text)) }
}
