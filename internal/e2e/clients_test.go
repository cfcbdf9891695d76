package e2e

import (
	_ "embed" // the programs that use libraries
	"testing"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/testbed"
)

// otherClients are the packages of SSH clients that are not OpenSSH's.
var otherClients = []string{"dropbear-bin", "putty-tools", "python3-paramiko", "python3-asyncssh", "libssh-4"}

// These log in to proxy as HOST USER KEYFILE COMMAND say, print what the command
// says and end as it does.
var (
	//go:embed testdata/paramiko.py
	paramikoClient string
	//go:embed testdata/asyncssh.py
	asyncsshClient string
	//go:embed testdata/libssh.py
	libsshClient string
)

// Whatever speaks SSH logs in and reads what this host is for. Guards against a
// front that only OpenSSH understands, in its key exchange, its order of messages
// or the way it ends a session.
func TestOtherClientsLogInAndReadHelp(t *testing.T) {
	g := startGate(t)
	for _, client := range g.clients() {
		t.Run("OpenSSH beside Nix "+client.Nix(), func(t *testing.T) {
			g.testHelp(t, client, "ssh -i "+g.alice.File()+" nix@proxy")
		})
	}
	g.placePrograms(t)
	for name, command := range map[string]string{
		"dropbear": "cd /root/other && PATH=$PATH:/usr/lib/dropbear && dropbearconvert openssh dropbear " + g.alice.File() + " dropbear-key 2>/dev/null && dbclient -y -i dropbear-key nix@proxy",
		"PuTTY":    "cd /root/other && puttygen " + g.alice.File() + " -O private -o key.ppk && plink -batch -hostkey " + g.hostFingerprint(t) + " -i key.ppk nix@proxy",
		"paramiko": "python3 /root/other/paramiko.py proxy nix " + g.alice.File(),
		"asyncssh": "python3 /root/other/asyncssh.py proxy nix " + g.alice.File(),
		"libssh":   "python3 /root/other/libssh.py proxy nix " + g.alice.File(),
	} {
		t.Run(name, func(t *testing.T) { g.testHelp(t, g.mid, command) })
	}
}

// testHelp runs a client that is asked for help, then for what nobody runs here.
func (g *gate) testHelp(t *testing.T, host *testbed.Host, command string) {
	run := startScript(t, host, command+" help </dev/null")
	run.mustSucceed(t)
	wantText(t, "help", run.result.Stdout, "ssh HOST status", "ssh HOST why", "ssh HOST check", "ssh-ng://HOST")
	res := startScript(t, host, command+" no-such-command </dev/null").wait(t)
	if res.Status != 127 {
		t.Errorf("an unknown command ended with status %d, want 127:\n%s%s", res.Status, res.Stdout, res.Stderr)
	}
	wantText(t, "the answer to an unknown command", res.Stderr, "nixbastion:")
}

func (g *gate) placePrograms(t *testing.T) {
	t.Helper()
	for name, text := range map[string]string{
		"paramiko.py": paramikoClient, "asyncssh.py": asyncsshClient, "libssh.py": libsshClient,
		// Of several keys of a host paramiko looks at the first.
		"known_hosts": "proxy " + g.proxy.HostKey() + "\n",
	} {
		if err := g.mid.WriteFile(t.Context(), "/root/other/"+name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
}

// hostFingerprint is the proxy's host key as PuTTY wants it.
func (g *gate) hostFingerprint(t *testing.T) string {
	t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(g.proxy.HostKey()))
	if err != nil {
		t.Fatal(err)
	}
	return ssh.FingerprintSHA256(key)
}
