package testbed

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Names of the accounts of every host, besides root.
const (
	// TrustedAccount is a trusted user of the host's nix-daemon.
	TrustedAccount = "nix"
	// GuestAccount may use the nix-daemon and is not trusted by it.
	GuestAccount = "guest"
	// PlainAccount is a person who works on a client; not trusted either.
	PlainAccount = "user"
)

// An account is a line of passwd; its group has the same name and number.
type account struct {
	name  string
	id    int
	home  string
	shell string
}

// people are the accounts that a key may open.
var people = []account{
	{"root", 0, "/root", "/bin/bash"},
	{TrustedAccount, 1000, "/home/nix", "/bin/sh"},
	{GuestAccount, 1001, "/home/guest", "/bin/sh"},
	{PlainAccount, 1002, "/home/user", "/bin/bash"},
}

func lookupAccount(name string) (account, error) {
	i := slices.IndexFunc(people, func(a account) bool { return a.name == name })
	if i < 0 {
		return account{}, fmt.Errorf("testbed: hosts have no account %q", name)
	}
	return people[i], nil
}

// Build users: nix-daemon runs each build as one of them. Sixteen is more than
// any builder of ours runs at once.
const (
	buildUsers      = 16
	buildUsersGroup = 30000
)

// accountFiles writes passwd, group and shadow. The password "*" is none that
// fits; "!" would make sshd refuse the account's keys too.
func accountFiles(root string) error {
	all := append(slices.Clone(people),
		account{"sshd", 100, "/run/sshd", "/usr/sbin/nologin"},
		account{"nobody", 65534, "/nonexistent", "/usr/sbin/nologin"})
	var passwd, group, shadow, members strings.Builder
	for _, a := range all {
		fmt.Fprintf(&passwd, "%s:x:%d:%d::%s:%s\n", a.name, a.id, a.id, a.home, a.shell)
		fmt.Fprintf(&group, "%s:x:%d:\n", a.name, a.id)
		fmt.Fprintf(&shadow, "%s:*:19000:0:99999:7:::\n", a.name)
	}
	for n := 1; n <= buildUsers; n++ {
		fmt.Fprintf(&passwd, "nixbld%d:x:%d:%d::/var/empty:/usr/sbin/nologin\n", n, buildUsersGroup+n, buildUsersGroup)
		fmt.Fprintf(&shadow, "nixbld%d:*:19000:0:99999:7:::\n", n)
		fmt.Fprintf(&members, ",nixbld%d", n)
	}
	fmt.Fprintf(&group, "tty:x:5:\nnixbld:x:%d:%s\n", buildUsersGroup, members.String()[1:])
	for name, text := range map[string]*strings.Builder{"passwd": &passwd, "group": &group, "shadow": &shadow} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text.String()), 0o644); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(root, "etc/shadow"), 0o600)
}
