package e2e

import (
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// keysFile is an authorized_keys file on the proxy's host.
const keysFile = "/etc/nixbastion/filed.keys"

// Keys of every kind that ssh-keygen makes get in by an authorized_keys file with
// the options that admins know; what an option forbids is refused, and a file with
// one that nobody would enforce is not taken. Guards against options that are read
// and dropped.
func TestS10KeyOptionsAreEnforced(t *testing.T) {
	g := startGate(t)
	f := &keyFile{gate: g}
	f.write(t)
	withPolicy(t, g.proxy, func(spec *world.ProxySpec) {
		spec.Principals = append(spec.Principals, world.Principal{Name: "filed", Extra: []string{"authorized_keys: " + keysFile}})
	})
	for _, client := range g.clients() {
		t.Run("kinds of "+client.Nix(), func(t *testing.T) { f.testKinds(t, client) })
	}
	t.Run("from", f.testFrom)
	t.Run("expiry-time", f.testExpiry)
	t.Run("command", f.testCommand)
	t.Run("certificates", f.testCertificates)
	t.Run("what nobody enforces", f.testRefusedOptions)
}

// A keyFile is a principal whose keys are in a file on the proxy's host.
type keyFile struct{ *gate }

// write replaces the file.
func (f *keyFile) write(t *testing.T, lines ...string) {
	t.Helper()
	if err := f.proxy.Host().WriteFile(t.Context(), keysFile, []byte(strings.Join(lines, "\n")+"\n")); err != nil {
		t.Fatal(err)
	}
}

// set replaces the file and has the proxy read it.
func (f *keyFile) set(t *testing.T, lines ...string) {
	t.Helper()
	f.write(t, lines...)
	if err := f.reload(t); err != nil {
		t.Fatal(err)
	}
}

func (f *keyFile) reload(t *testing.T) error {
	t.Helper()
	return f.proxy.ReloadText(t.Context(), f.proxy.Spec().Policy(f.bed))
}

// make has a client's ssh-keygen make a key and returns its file and its line.
func (f *keyFile) make(t *testing.T, client *testbed.Host, kind string) (file, line string) {
	t.Helper()
	file = fmt.Sprintf("/root/keys/%d", expressions.Add(1))
	line = client.MustShell(t, fmt.Sprintf("mkdir -p /root/keys && ssh-keygen -q %s -N '' -f %s && cat %s.pub", kind, file, file))
	return file, strings.TrimSpace(line)
}

// ping asks the proxy over ssh-ng with a key file and returns what came of it.
func (f *keyFile) ping(t *testing.T, client *testbed.Host, file string) testbed.Result {
	t.Helper()
	return startScript(t, client, "nix store ping --store 'ssh-ng://proxy?ssh-key="+file+"'").wait(t)
}

func (f *keyFile) wantIn(t *testing.T, client *testbed.Host, file string) {
	t.Helper()
	mark := f.proxy.Mark()
	if res := f.ping(t, client, file); res.Status != 0 {
		t.Errorf("%s of %s does not get in:\n%s", file, client.Name(), res.Stderr)
		return
	}
	if login := waitLine(t, f.proxy, mark, world.Message("ssh login")); login.Text("principal") != "filed" {
		t.Errorf("it is somebody else: %s", login.Raw)
	}
}

// wantOut wants that nobody gets in with a key file, and that the log says why.
func (f *keyFile) wantOut(t *testing.T, client *testbed.Host, file, why string) {
	t.Helper()
	mark := f.proxy.Mark()
	if res := f.ping(t, client, file); res.Status == 0 {
		t.Errorf("%s of %s gets in", file, client.Name())
		return
	}
	refused := waitLine(t, f.proxy, mark, world.Message("ssh login refused"))
	wantText(t, "the refusal", refused.Raw, why)
}

func (f *keyFile) testKinds(t *testing.T, client *testbed.Host) {
	var files, lines []string
	for _, kind := range []string{"-t ed25519", "-t ecdsa -b 256", "-t ecdsa -b 521", "-t rsa -b 2048", "-t rsa -b 4096"} {
		file, line := f.make(t, client, kind)
		files, lines = append(files, file), append(lines, "restrict,no-pty "+line)
	}
	f.set(t, lines...)
	for _, file := range files {
		f.wantIn(t, client, file)
	}
}

func (f *keyFile) testFrom(t *testing.T) {
	here, hereLine := f.make(t, f.client, "-t ed25519")
	elsewhere, elsewhereLine := f.make(t, f.client, "-t ed25519")
	f.set(t, fmt.Sprintf("from=%q %s", f.client.Addr(), hereLine), `from="192.0.2.0/24" `+elsewhereLine)
	f.wantIn(t, f.client, here)
	f.wantOut(t, f.client, elsewhere, "must not be used from "+f.client.Addr().String())
	// The key itself, brought to another host.
	f.old.MustShell(t, fmt.Sprintf("mkdir -p /root/keys && (umask 077 && cat >%s) <<'END'\n%sEND", here, f.client.MustShell(t, "cat "+here)))
	f.wantOut(t, f.old, here, "must not be used from "+f.old.Addr().String())
}

func (f *keyFile) testExpiry(t *testing.T) {
	over, overLine := f.make(t, f.client, "-t ed25519")
	valid, validLine := f.make(t, f.client, "-t ed25519")
	f.set(t, `expiry-time="20200101" `+overLine, `expiry-time="20990101Z" `+validLine)
	f.wantIn(t, f.client, valid)
	f.wantOut(t, f.client, over, "expired")
}

// testCommand binds keys to one protocol: they get it whatever they ask for, and
// reading alone where that is what the line says.
func (f *keyFile) testCommand(t *testing.T) {
	daemon, daemonLine := f.make(t, f.client, "-t ed25519")
	reading, readingLine := f.make(t, f.client, "-t ed25519")
	f.set(t, `restrict,command="nix-daemon --stdio" `+daemonLine, `command="nix-store --serve" `+readingLine)
	f.wantIn(t, f.client, daemon)
	// A client of the other protocol meets the bound one, and nothing else.
	if res := startScript(t, f.client, "nix store ping --store 'ssh://proxy?ssh-key="+daemon+"'").wait(t); res.Status == 0 {
		t.Error("a key that is bound to nix-daemon gets the serve protocol")
	}
	added := strings.TrimSpace(f.client.MustShell(t, "echo bound >/root/bound && nix-store --add /root/bound"))
	res := startScript(t, f.client, "nix copy --no-check-sigs --to 'ssh://proxy?ssh-key="+reading+"' "+added).wait(t)
	if res.Status == 0 {
		t.Errorf("a key that is bound to reading has uploaded:\n%s", res.Stderr)
	}
	for _, file := range []string{daemon, reading} {
		res = startScript(t, f.client, "ssh -i "+file+" nix@proxy status </dev/null").wait(t)
		if strings.Contains(res.Stdout, "builder") {
			t.Errorf("a bound key gets an answer to status:\n%s", res.Stdout)
		}
	}
}

// testCertificates logs in with what OpenSSH's own authority signs.
func (f *keyFile) testCertificates(t *testing.T) {
	authority, authorityLine := f.make(t, f.client, "-t ed25519")
	user, _ := f.make(t, f.client, "-t ed25519")
	f.set(t, `cert-authority,principals="anna" `+authorityLine)
	sign := func(options string) {
		f.client.MustShell(t, "ssh-keygen -q -s "+authority+" -I the-id -z 7 "+options+" "+user+".pub")
	}
	f.wantOut(t, f.client, user, "not in the policy") // the bare key
	for _, good := range []string{"-n anna", "-n other,anna", "-n anna -V +1h", "-n anna -O source-address=" + f.client.Addr().String() + "/32"} {
		sign(good)
		mark := f.proxy.Mark()
		f.wantIn(t, f.client, user)
		login := waitLine(t, f.proxy, mark, world.Message("ssh login"))
		wantText(t, "the login", login.Raw, "the-id", "7")
	}
	for bad, why := range map[string]string{
		"":                                       "no principals",
		"-n somebody":                            "",
		"-n anna -V -2h:-1h":                     "",
		"-n anna -h":                             "not in the policy", // OpenSSH does not even offer that one
		"-n anna -O source-address=192.0.2.0/24": "must not be used from",
		"-n anna -O critical:unheard-of=1":       "unheard-of",
	} {
		sign(bad)
		f.wantOut(t, f.client, user, why)
	}
	// A forced command of another program is refused; one of ours is served.
	sign("-n anna -O force-command='nix-daemon --stdio'")
	f.wantIn(t, f.client, user)
	sign("-n anna -O force-command=/bin/sh")
	f.wantOut(t, f.client, user, "force-command")
}

// testRefusedOptions wants a mistake with its place, and the old keys to stay.
func (f *keyFile) testRefusedOptions(t *testing.T) {
	file, line := f.make(t, f.client, "-t ed25519")
	f.set(t, line)
	for _, option := range []string{`environment="A=b"`, `command="rm -rf /"`, "agent-forwarding", `tunnel="0"`, "verify-required", `from="host.example.org"`, "frm=\"192.0.2.1\"", "cert-authority"} {
		f.write(t, "# a comment", option+" "+line)
		err := f.reload(t)
		if err == nil || !strings.Contains(err.Error(), keysFile+":2") {
			t.Errorf("a line with %s gave: %v", option, err)
		}
		f.wantIn(t, f.client, file)
	}
	f.set(t)
	f.wantOut(t, f.client, file, "not in the policy")
}
