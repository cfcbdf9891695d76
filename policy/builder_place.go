package policy

import (
	"path"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"
)

// socketScheme is what the address of a daemon on this machine begins with.
const socketScheme = "unix://"

// maxSocketPath is the longest path that a socket can have, in bytes: the kernel's
// field has 108, of which one ends it.
const maxSocketPath = 107

// place reads where a builder is: another host, or the daemon of this one.
func (d *decoder) place(n *yaml.Node, b *Builder) {
	text, ok := d.text(n)
	if !ok {
		return
	}
	if rest, local := strings.CutPrefix(text, socketScheme); local {
		b.Socket = text // a mistake keeps the builder from being taken for another kind
		socket, err := socketPath(rest)
		if err != nil {
			d.mistake(n, hintOf(err), "%v", err)
			return
		}
		b.Socket = socket
		return
	}
	address, err := builderAddress(text)
	if err != nil {
		d.mistake(n, hintOf(err), "%v", err)
		return
	}
	b.Address = address
}

func socketPath(text string) (string, error) {
	const hint = "write the full path of the daemon's socket and nothing else: unix:///nix/var/nix/daemon-socket/socket"
	switch {
	case !filepath.IsAbs(text):
		return "", refuse(hint, "%s has no full path behind %s", quote(socketScheme+text), socketScheme)
	case strings.ContainsAny(text, "?#%"):
		return "", refuse(hint, "%s is more than the path of a socket", quote(text))
	case filepath.Clean(text) != text:
		return "", refuse("write "+socketScheme+clip(filepath.Clean(text)), "%s is not the plain path of a socket", quote(text))
	}
	return text, checkSocketPath(text)
}

func checkSocketPath(text string) error {
	if len(text) > maxSocketPath {
		return refuse("choose a shorter path", "%s has %d bytes, and the path of a socket has at most %d", quote(text), len(text), maxSocketPath)
	}
	return nil
}

// remoteOnly are the settings that make no sense for the daemon of this machine,
// and why.
var remoteOnly = []struct{ key, why string }{
	{"user", "nobody logs in; the daemon sees the proxy's own account, which must be in trusted-users of this machine's nix.conf"},
	{"identity_file", "nobody logs in"},
	{"host_keys", "there is no other host"},
	{"known_hosts", "there is no other host"},
	{"remote_program", "the daemon runs already"},
	{"protocol", "a daemon's socket has one protocol only"},
}

// refuseRemoteOnly notes what a builder has that is not reached over SSH.
func (d *decoder) refuseRemoteOnly(values map[string]*yaml.Node, what string) {
	for _, r := range remoteOnly {
		if at := values[r.key]; at != nil {
			d.mistake(at, "remove it: "+r.why, "%s is a socket of this machine and cannot have %q", what, r.key)
		}
	}
}

// overSSH makes a reader of settings that do not count for a socket; what is
// wrong there is that they are there.
func overSSH(b *Builder, read func(*yaml.Node)) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if b.Socket == "" {
			read(n)
		}
	}
}

// remotePrograms are the programs that answer each protocol.
var remotePrograms = map[Protocol]string{ProtocolWorker: "nix-daemon", ProtocolServe: "nix-store"}

// String is the word of the policy file.
func (p Protocol) String() string {
	if p == ProtocolServe {
		return "ssh"
	}
	return "ssh-ng"
}

// remoteProgram reads the program to run on a builder, which follows from the
// protocol.
func (d *decoder) remoteProgram(n *yaml.Node, b *Builder) {
	program, ok := d.checkedText(n, func(text string) error { return checkProgram(text, b.Protocol) })
	if !ok {
		return
	}
	for protocol, name := range remotePrograms {
		if protocol != b.Protocol && path.Base(program) == name {
			d.mistake(n, "write the full path of "+remotePrograms[b.Protocol]+", or change protocol to "+protocol.String(),
				"%s does not speak the protocol of this builder, which is %s", quote(program), b.Protocol)
			return
		}
	}
	b.RemoteProgram = program
}
