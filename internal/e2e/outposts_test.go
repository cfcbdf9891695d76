package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// Outposts are builders that were not set up by the book, each with a feature of
// its own name by which builds are aimed at it. They are common to the tests of
// what is at either end of the proxy's connections.
type outposts struct {
	proxy *world.Proxy
	key   testbed.Key

	// solo is a single-user installation that is not in anybody's PATH, entered by
	// a wrapper; elsewhere has Nix in a folder that nobody would guess.
	solo, elsewhere *testbed.Host
	// daemon and serve have a key each that can only start one program.
	daemon, serve *testbed.Host

	client *testbed.Host // with a daemon, used by a plain user too
	desk   *testbed.Host // where nobody has Nix for himself
}

var commonOutposts common[*outposts]

func startOutposts(t *testing.T) *outposts {
	t.Helper()
	return commonOutposts.get(t, func(t *testing.T, bed *testbed.Bed) (*outposts, *world.Proxy) {
		o := &outposts{key: bed.UserKey("alice")}
		var specs []testbed.HostSpec
		for _, name := range []string{"solo", "elsewhere", "daemon", "serve"} {
			specs = append(specs, testbed.HostSpec{Name: name, Kind: testbed.Builder, MaxJobs: 2, Features: []string{name}})
		}
		hosts := bed.MustStart(t, append(specs,
			testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{o.key}},
			testbed.HostSpec{Name: "desk", Keys: []testbed.Key{o.key}})...)
		o.solo, o.elsewhere, o.daemon, o.serve, o.client, o.desk = hosts[0], hosts[1], hosts[2], hosts[3], hosts[4], hosts[5]
		own := world.BuilderKey(bed, "proxy")
		makeSingleUser(t, o.solo, own)
		hideNix(t, o.elsewhere)
		forceCommand(t, o.daemon, own, "nix-daemon --stdio")
		forceCommand(t, o.serve, own, "nix-store --serve --write")
		giveToNobody(t, o.desk, o.key)

		spec := world.ProxySpec{Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{o.key}}}}
		extra := map[*testbed.Host][]string{o.serve: {"protocol: ssh"}, o.elsewhere: {"remote_program: " + hiddenNix + "/start-nix-daemon"}}
		for _, b := range hosts[:len(specs)] {
			spec.Builders = append(spec.Builders, world.Builder{Host: b, MaxJobs: 2, MandatoryFeatures: []string{b.Name()}, Extra: extra[b]})
		}
		o.proxy = startCommonProxy(t, bed, spec)
		setMachines(t, o.client, o.proxy.Machine(o.key))
		return o, o.proxy
	})
}

// forceCommand makes the proxy's key start one program, whatever it asks for.
func forceCommand(t *testing.T, builder *testbed.Host, key testbed.Key, command string) {
	t.Helper()
	line := fmt.Sprintf("command=%q,restrict %s\n", command, key.AuthorizedLine())
	if err := builder.WriteFile(t.Context(), "/etc/ssh/authorized_keys/"+testbed.TrustedAccount, []byte(line)); err != nil {
		t.Fatal(err)
	}
}

// soloWrapper is that of the NixOS wiki, but that no namespaces are needed to reach the
// store of a single user.
const soloWrapper = `#!/bin/sh
exec sh -c '
PATH=$HOME/.nix-profile/bin:$PATH
exec $SSH_ORIGINAL_COMMAND
'
`

// makeSingleUser takes the daemon away and gives the store to the account that
// the proxy uses, whose Nix only a wrapper finds.
func makeSingleUser(t *testing.T, builder *testbed.Host, key testbed.Key) {
	t.Helper()
	const home = "/home/" + testbed.TrustedAccount
	endDaemon(t, builder)
	if err := builder.WriteFile(t.Context(), home+"/bin/nix_wrapper.sh", []byte(soloWrapper)); err != nil {
		t.Fatal(err)
	}
	builder.MustShell(t, fmt.Sprintf(`set -e
mkdir -p %[1]s/.nix-profile/bin
mv /usr/bin/nix* %[1]s/.nix-profile/bin
chmod 755 %[1]s/bin/nix_wrapper.sh
chown -R %[2]s: %[1]s /nix
sed -i 's/^build-users-group.*/build-users-group =/' /etc/nix/nix.conf`, home, testbed.TrustedAccount))
	forceCommand(t, builder, key, home+"/bin/nix_wrapper.sh")
}

// endDaemon ends a host's nix-daemon and takes its socket away.
func endDaemon(t *testing.T, host *testbed.Host) {
	t.Helper()
	pids, err := host.PIDs("^nix-daemon")
	if err != nil || len(pids) == 0 {
		t.Fatalf("no daemon runs on %s: %v", host.Name(), err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	host.MustShell(t, "rm -rf /nix/var/nix/daemon-socket")
}

// hiddenNix is where elsewhere has its Nix.
const hiddenNix = "/srv/site/nix"

// hideNix moves Nix to where only the policy finds it, behind a program of
// another name.
func hideNix(t *testing.T, builder *testbed.Host) {
	t.Helper()
	builder.MustShell(t, fmt.Sprintf("mkdir -p %[1]s && mv /usr/bin/nix* %[1]s", hiddenNix))
	script := "#!/bin/sh\nexec " + hiddenNix + "/nix-daemon \"$@\"\n"
	if err := builder.WriteFile(t.Context(), hiddenNix+"/start-nix-daemon", []byte(script)); err != nil {
		t.Fatal(err)
	}
	builder.MustShell(t, "chmod 755 "+hiddenNix+"/start-nix-daemon")
}

// nobodysHome is where the account nobody may write.
const nobodysHome = "/srv/nobody"

// giveToNobody makes a single-user installation of the account nobody, with a key.
func giveToNobody(t *testing.T, desk *testbed.Host, key testbed.Key) {
	t.Helper()
	desk.MustShell(t, fmt.Sprintf(`set -e
mkdir -p %[1]s /nix/store /nix/var
cp %[2]s %[1]s/key
chmod 600 %[1]s/key
chown -R nobody:nobody %[1]s /nix`, nobodysHome, key.File()))
}

// asNobody makes a script for root that runs words as the account nobody.
func asNobody(words string) string {
	return "cd " + nobodysHome + " && exec setpriv --reuid=nobody --regid=nobody --clear-groups" +
		" env -i PATH=/usr/bin:/bin HOME=" + nobodysHome + " USER=nobody " + words
}

// All four rows of the NixOS wiki's table work: a client with a daemon or one of a
// single user, builders with a daemon or of a single user, whatever the remote
// user is called. Guards against anything that only root, or an account of a
// certain name, can do.
func TestS03AnyUserToAnyUser(t *testing.T) {
	o := startOutposts(t)
	for _, builder := range []*testbed.Host{o.daemon, o.solo} {
		for _, remote := range []string{"", "root@", "nixremote@", "nobody@"} {
			name := strings.TrimSuffix(remote, "@") + "to-" + builder.Name()
			t.Run("daemon's client "+name, func(t *testing.T) { o.testPlainUser(t, builder, remote, "multi-"+name) })
			t.Run("single user's client "+name, func(t *testing.T) { o.testNobody(t, builder, remote, "single-"+name) })
		}
	}
}

func (o *outposts) aimed(name string, at *testbed.Host) testbed.Derivation {
	return testbed.Derivation{Name: name, RequiredFeatures: []string{at.Name()}, Sources: []string{"/etc/hostname"}, KeepInputs: true, LogLines: 3}
}

// testPlainUser has a user build who has no key: the daemon has root's.
func (o *outposts) testPlainUser(t *testing.T, builder *testbed.Host, remote, name string) {
	machine := o.proxy.Machine(o.key)
	machine.Store = "ssh-ng://" + remote + "proxy"
	setMachines(t, o.client, machine)
	defer setMachines(t, o.client, o.proxy.Machine(o.key))
	const file = "/home/" + testbed.PlainAccount + "/expression.nix"
	o.write(t, o.client, file, name, builder)
	res, err := o.client.ShellAs(t.Context(), testbed.PlainAccount, buildScript(file, []string{name})+" -j0")
	o.wantBuilt(t, res, err, name, builder)
}

func (o *outposts) testNobody(t *testing.T, builder *testbed.Host, remote, name string) {
	fields := strings.Fields(o.proxy.Machine(o.key).Line())
	fields[0], fields[2] = "ssh-ng://"+remote+"proxy", nobodysHome+"/key"
	writeMachinesLine(t, o.desk, fields)
	const file = nobodysHome + "/expression.nix"
	o.write(t, o.desk, file, name, builder)
	res, err := o.desk.Shell(t.Context(), asNobody(strings.TrimPrefix(buildScript(file, []string{name}), "exec ")+" -j0"))
	o.wantBuilt(t, res, err, name, builder)
}

func (o *outposts) write(t *testing.T, host *testbed.Host, file, name string, builder *testbed.Host) {
	t.Helper()
	if err := host.WriteFile(t.Context(), file, []byte(testbed.Expression(o.aimed(name, builder)))); err != nil {
		t.Fatal(err)
	}
}

func (o *outposts) wantBuilt(t *testing.T, res testbed.Result, err error, name string, builder *testbed.Host) {
	t.Helper()
	if err != nil || res.Status != 0 {
		t.Fatalf("the build ended with status %d: %v\n%s", res.Status, err, tail(res.Stderr))
	}
	wantLogLines(t, "the client's log", res.Stderr, 3)
	o.wantBuiltOn(t, name, builder)
}

func (o *outposts) wantBuiltOn(t *testing.T, name string, builder *testbed.Host) {
	t.Helper()
	if got := builtOn(o.proxy, name); !slices.Equal(got, []string{builder.Name()}) {
		t.Errorf("%s was built on %q, want %s once", name, got, builder.Name())
	}
}

// A builder whose key can only start one program, a wrapper for a Nix that is
// hidden in a home, or a program that the policy names: each builds, and tells
// the failure of a build as any other. Guards against needing a shell on builders.
func TestS21WrappedBuildersBuild(t *testing.T) {
	o := startOutposts(t)
	for _, builder := range []*testbed.Host{o.solo, o.elsewhere, o.daemon, o.serve} {
		t.Run(builder.Name(), func(t *testing.T) { o.testWrapped(t, builder) })
	}
}

func (o *outposts) testWrapped(t *testing.T, builder *testbed.Host) {
	res, err := builder.Shell(t.Context(), "command -v nix-daemon")
	hidden := err == nil && res.Status != 0
	if want := builder == o.solo || builder == o.elsewhere; hidden != want {
		t.Fatalf("whether nix-daemon is hidden is %v, want %v: %v", hidden, want, err)
	}
	dep, top := o.aimed("dep-"+builder.Name(), builder), o.aimed("top-"+builder.Name(), builder)
	top.Inputs, top.Outputs = []string{dep.Name}, []string{"out", "foo"}
	run := startBuild(t, o.client, writeExpression(t, o.client, dep, top), []string{top.Name + ".all"})
	paths, _ := run.mustSucceed(t)
	o.wantBuiltOn(t, top.Name, builder)
	o.client.MustShell(t, "nix-store --verify-path "+strings.Join(paths, " "))

	failing := o.aimed("failing-"+builder.Name(), builder)
	failing.Script, failing.ExitStatus = "echo my last words >&2", 7
	log := startBuild(t, o.client, writeExpression(t, o.client, failing), []string{failing.Name}).mustFail(t)
	wantText(t, "the log of a failed build", log, "my last words", "exit code 7", builder.Name())
}
