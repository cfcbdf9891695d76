package e2e

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A gate is a proxy with a full key, a key that may read, and somebody else's. It
// is common to the tests of what clients do before they build.
type gate struct {
	bed              *testbed.Bed
	proxy            *world.Proxy
	builder          *testbed.Host
	client, mid, old *testbed.Host // of Nix 2.34, 2.26 and 2.8

	// All clients have these.
	alice, reader, stranger testbed.Key
}

var commonGate common[*gate]

// startGate returns the common gate.
func startGate(t *testing.T) *gate {
	t.Helper()
	return commonGate.get(t, func(t *testing.T, bed *testbed.Bed) (*gate, *world.Proxy) {
		g := &gate{bed: bed, alice: bed.UserKey("alice"), reader: bed.UserKey("reader"), stranger: bed.UserKey("stranger")}
		keys := []testbed.Key{g.alice, g.reader, g.stranger}
		hosts := bed.MustStart(t,
			testbed.HostSpec{Name: "builder", Kind: testbed.Builder, MaxJobs: 4},
			testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: keys},
			testbed.HostSpec{Name: "mid", Kind: testbed.Client, Nix: testbed.Nix226, Keys: keys, Packages: otherClients},
			testbed.HostSpec{Name: "old", Kind: testbed.Client, Nix: testbed.Nix28, Keys: keys})
		g.builder, g.client, g.mid, g.old = hosts[0], hosts[1], hosts[2], hosts[3]
		g.proxy = startCommonProxy(t, bed, world.ProxySpec{
			Builders: []world.Builder{{Host: g.builder, MaxJobs: 4}},
			Principals: []world.Principal{
				{Name: "alice", Keys: []testbed.Key{g.alice}},
				{Name: "reader", Keys: []testbed.Key{g.reader}, Role: "read"},
			},
			Extra: "ssh: {per_source_penalties: off}\n", // one refused login after another is tried here
		})
		return g, g.proxy
	})
}

// clients are one of each version of Nix, and of OpenSSH.
func (g *gate) clients() []*testbed.Host { return []*testbed.Host{g.old, g.mid, g.client} }

// machine is the proxy by either scheme, for a machines file.
func (g *gate) machine(scheme string, key testbed.Key) testbed.Machine {
	m := g.proxy.Machine(key)
	m.Store = scheme + "://proxy"
	return m
}

func TestS02OnlyKnownKeysGetIn(t *testing.T) {
	g := startGate(t)
	t.Run("refused", g.testRefused)
	t.Run("under any user name", g.testUserNames)
	t.Run("another user's key offered first", g.testOfferedKey)
	t.Run("a key that may read", g.testReader)
	t.Run("broken policy", g.testBrokenPolicy)
	t.Run("revoked key", g.testRevokedKey)
	t.Run("removed key", g.testRemovedKey)
}

// ssh runs OpenSSH's client against the proxy and returns what it said.
func (g *gate) ssh(t *testing.T, options string) testbed.Result {
	t.Helper()
	res, err := g.client.Shell(t.Context(), "exec ssh -v -o BatchMode=yes -o IdentitiesOnly=yes "+options+" proxy nix-daemon --stdio </dev/null")
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// wantRefused wants that nobody gets in, and that the log says who tried it from
// where. prints are the fingerprints that it names.
func (g *gate) wantRefused(t *testing.T, options string, prints ...string) {
	t.Helper()
	mark := g.proxy.Mark()
	res := g.ssh(t, options)
	if res.Status != 255 || !strings.Contains(res.Stderr, "Permission denied (publickey)") {
		t.Fatalf("ssh %s ended with status %d:\n%s", options, res.Status, res.Stderr)
	}
	line := waitLine(t, g.proxy, mark, world.Message("ssh login refused"))
	if line.Text("addr") != g.client.Addr().String() {
		t.Errorf("the refusal does not name the address %s: %s", g.client.Addr(), line.Raw)
	}
	for _, print := range prints {
		wantText(t, "the refusal", line.Text("keys"), print)
	}
	for _, l := range g.proxy.LinesSince(mark) {
		if l.Msg == "ssh login" {
			t.Errorf("somebody got in: %s", l.Raw)
		}
	}
}

func fingerprint(key testbed.Key) string { return ssh.FingerprintSHA256(key.Signer().PublicKey()) }

func (g *gate) testRefused(t *testing.T) {
	t.Run("unknown key", func(t *testing.T) { g.wantRefused(t, "-i "+g.stranger.File(), fingerprint(g.stranger)) })
	t.Run("no key", func(t *testing.T) { g.wantRefused(t, "-o IdentityFile=none") })
	// The client does not even get to ask for one: the method is not offered.
	t.Run("password", func(t *testing.T) {
		g.wantRefused(t, "-o PubkeyAuthentication=no -o BatchMode=no -o NumberOfPasswordPrompts=1 -o PreferredAuthentications=password,keyboard-interactive")
	})
}

// Guards against rights that come with a name: any name will do, and says nothing.
func (g *gate) testUserNames(t *testing.T) {
	for _, client := range g.clients() {
		for _, user := range []string{"root", "nix", "nixremote", "alice", "no-such.user"} {
			mark := g.proxy.Mark()
			store := "'ssh-ng://" + user + "@proxy?ssh-key=" + g.reader.File() + "'"
			client.MustShell(t, "nix store ping --store "+store)
			login := waitLine(t, g.proxy, mark, world.Message("ssh login", "user", user))
			if login.Text("principal") != "reader" {
				t.Errorf("%s of %s is somebody else: %s", user, client.Name(), login.Raw)
			}
		}
	}
}

// placeOffer puts the public half of a key on the client, so that ssh can offer
// the key and cannot sign with it.
func (g *gate) placeOffer(t *testing.T, key testbed.Key) (file string) {
	t.Helper()
	file = "/root/offer/" + key.Name
	for name, text := range map[string]string{file + ".pub": key.AuthorizedLine(), file: "the private half is elsewhere"} {
		if err := g.client.WriteFile(t.Context(), name, []byte(text+"\n")); err != nil {
			t.Fatal(err)
		}
	}
	g.client.MustShell(t, "chmod 600 "+file)
	return file
}

// Guards against an identity that comes from a key which was merely offered.
func (g *gate) testOfferedKey(t *testing.T) {
	offer := g.placeOffer(t, g.alice)
	t.Run("then none", func(t *testing.T) { g.wantRefused(t, "-i "+offer, fingerprint(g.alice)) })
	t.Run("then a stranger's", func(t *testing.T) {
		g.wantRefused(t, "-i "+offer+" -i "+g.stranger.File(), fingerprint(g.alice), fingerprint(g.stranger))
	})
	t.Run("then a reader's", func(t *testing.T) {
		mark := g.proxy.Mark()
		res := g.ssh(t, "-i "+offer+" -i "+g.reader.File())
		wantText(t, "ssh -v", res.Stderr, "Server accepts key: "+offer)
		login := waitLine(t, g.proxy, mark, world.Message("ssh login"))
		if login.Text("principal") != "reader" || login.Text("key") != fingerprint(g.reader) {
			t.Errorf("logged in as somebody else: %s", login.Raw)
		}
	})
}

// A key that may read can read what is there; what it may not do, the client's
// user reads in a sentence.
func (g *gate) testReader(t *testing.T) {
	setMachines(t, g.client, g.proxy.Machine(g.alice))
	paths, _ := build(t, g.client, testbed.Derivation{Name: "readable"})
	setMachines(t, g.client, g.proxy.Machine(g.reader))
	store := "'ssh-ng://proxy?ssh-key=" + g.reader.File() + "'"
	wantText(t, "nix path-info", g.client.MustShell(t, "nix path-info --store "+store+" "+paths[0]), paths[0])
	g.client.MustShell(t, "nix-store --delete "+paths[0]+" && nix copy --no-check-sigs --from "+store+" "+paths[0]+" && nix-store --verify-path "+paths[0])

	// New clients see that they are not trusted and upload the derivation itself;
	// old ones ask for the build all the same.
	setMachines(t, g.old, g.proxy.Machine(g.reader))
	g.wantNotAllowed(t, g.client, testbed.Derivation{Name: "not-for-readers"}, "upload")
	g.wantNotAllowed(t, g.old, testbed.Derivation{Name: "not-for-readers"}, "build")
	g.wantNotAllowed(t, g.old, testbed.Derivation{Name: "not-for-readers-either", Sources: []string{"/etc/hostname"}}, "upload")
	setMachines(t, g.client, g.proxy.Machine(g.alice))
}

// wantNotAllowed has a reader ask for a build and wants the sentence that says
// what its key may not do.
func (g *gate) wantNotAllowed(t *testing.T, client *testbed.Host, derivation testbed.Derivation, what string) {
	t.Helper()
	file := writeExpression(t, client, derivation)
	log := startBuild(t, client, file, []string{derivation.Name}).mustFail(t)
	if !lineWith(log, `"reader"`, "role read", "may not "+what) {
		t.Errorf("no line says that the key may not %s:\n%s", what, log)
	}
	if got := builtOn(g.proxy, derivation.Name); len(got) != 0 {
		t.Errorf("%s was built on %q", derivation.Name, got)
	}
}

// Guards against a typing error that locks everybody out, or lets anybody in.
func (g *gate) testBrokenPolicy(t *testing.T) {
	good := g.proxy.Spec().Policy(g.bed)
	lines := strings.Split(good, "\n")
	for i, line := range lines {
		if strings.Contains(line, "role: full") {
			lines[i] = strings.Replace(line, "role: full", "role: everything", 1)
			err := g.proxy.ReloadText(t.Context(), strings.Join(lines, "\n"))
			at := fmt.Sprintf("config.yaml:%d:%d", i+1, strings.Index(line, "full")+1)
			if err == nil || !strings.Contains(err.Error(), at) {
				t.Errorf("SIGHUP with a mistake at %s gave: %v", at, err)
			}
		}
	}
	g.wantRefused(t, "-i "+g.stranger.File(), fingerprint(g.stranger))
	build(t, g.client, testbed.Derivation{Name: "under-the-old-policy"})
	if err := g.proxy.ReloadText(t.Context(), good); err != nil {
		t.Fatal(err)
	}
}

// A list of revocations, as ssh-keygen -l writes fingerprints, takes a key away
// that the policy still has. Guards against one that counts after a restart only.
func (g *gate) testRevokedKey(t *testing.T) {
	const file = "/etc/nixbastion/revoked"
	revoke := func(text string) {
		if err := g.proxy.Host().WriteFile(t.Context(), file, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	revoke("")
	withPolicy(t, g.proxy, func(spec *world.ProxySpec) { spec.Extra += "revoked_keys: " + file + "\n" })
	ping := "nix store ping --store " + storeURI("ssh-ng", g.alice)
	g.client.MustShell(t, ping)
	revoke(fingerprint(g.alice) + "\n")
	if err := g.proxy.ReloadText(t.Context(), g.proxy.Spec().Policy(g.bed)); err != nil {
		t.Fatal(err)
	}
	g.wantRefused(t, "-i "+g.alice.File(), fingerprint(g.alice))
	g.client.MustShell(t, "nix store ping --store "+storeURI("ssh-ng", g.reader))
}

// Guards against keys that live on after the admin took them away: in new
// connections, and on one that was open before.
func (g *gate) testRemovedKey(t *testing.T) {
	script := "exec ssh -M -N -S /root/master -i " + g.alice.File() + " proxy"
	master := startScript(t, g.client, script)
	eventually(t, "the master is there", patience, func() bool {
		res, err := g.client.Shell(t.Context(), "ssh -S /root/master -O check proxy")
		return err == nil && res.Status == 0
	})
	// Over the master's connection: the store's URI names no key that could open
	// another one.
	const ping = "NIX_SSHOPTS='-S /root/master -o IdentityFile=none' nix store ping --store ssh-ng://proxy"
	g.client.MustShell(t, ping)
	withPolicy(t, g.proxy, func(spec *world.ProxySpec) { spec.Principals = spec.Principals[1:] })
	g.wantRefused(t, "-i "+g.alice.File(), fingerprint(g.alice))
	res, err := g.client.Shell(t.Context(), ping)
	if err != nil {
		t.Fatal(err)
	}
	if res.Status == 0 {
		t.Errorf("a removed key has a session on its old connection: %+v", res)
	}
	master.kill()
}
