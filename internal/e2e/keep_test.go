package e2e

import (
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A pantry is a proxy without builders, and a client that has brought a library and
// a tool which refers to it.
type pantry struct {
	*testing.T
	proxy     *world.Proxy
	host      *testbed.Host // of the proxy
	client    *testbed.Host
	store     string // the proxy, as the client names it
	lib, tool string
}

func startPantry(t *testing.T) *pantry {
	t.Helper()
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t, testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	p := &pantry{T: t, client: hosts[0], store: "'ssh-ng://proxy?ssh-key=" + key.File() + "'"}
	p.proxy = startProxy(t, bed, world.ProxySpec{Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}}})
	p.host = p.proxy.Host()
	file := writeExpression(t, p.client, testbed.Derivation{Name: "lib", OutputSize: 200_000, OutputFiles: 5, Random: true},
		testbed.Derivation{Name: "tool", Inputs: []string{"lib"}, KeepInputs: true})
	p.tool = strings.TrimSpace(p.client.MustShell(t, "nix-build --no-out-link -j1 --builders '' "+file+" -A tool"))
	for _, path := range strings.Fields(p.client.MustShell(t, "nix-store --query --references "+p.tool)) {
		if strings.HasSuffix(path, "-lib") {
			p.lib = path
		}
	}
	p.bring()
	return p
}

// bring uploads the two and waits until they are on disk.
func (p *pantry) bring() {
	p.Helper()
	p.client.MustShell(p.T, "nix copy --no-check-sigs --to "+p.store+" "+p.tool)
	eventually(p.T, "the paths are published", patience, func() bool {
		res, err := p.host.Shell(p.Context(), "nix path-info --store "+cacheURI+" "+p.tool)
		return err == nil && res.Status == 0
	})
}

// admin runs nixbastion cache on the proxy's host.
func (p *pantry) admin(args string) string {
	p.Helper()
	return p.host.MustShell(p.T, world.Binary+" cache "+args+" --config "+world.ConfigFile)
}

// fails runs a script that must fail, and returns what it said.
func (p *pantry) fails(host *testbed.Host, script string) string {
	p.Helper()
	res, err := host.Shell(p.Context(), script)
	if err != nil {
		p.Fatal(err)
	}
	if res.Status == 0 {
		p.Errorf("%s ends well:\n%s", script, tail(res.Stdout+res.Stderr))
	}
	return res.Stdout + res.Stderr
}

func TestTheStoreKeepsItself(t *testing.T) {
	p := startPantry(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *pantry)
	}{{"Nix judges the admin", testNixJudges}, {"a NAR rots", testRottenNAR}} {
		t.Run(part.name, func(t *testing.T) {
			q := *p
			q.T = t
			part.test(t, &q)
		})
	}
}

// What the admin does with the store is judged by Nix itself, on the files, with
// none of our code in the way. Guards against an export that Nix cannot read, an
// import of what Nix would refuse, and a removal that leaves half.
func testNixJudges(t *testing.T, p *pantry) {
	verify := func(store string) {
		t.Helper()
		p.host.MustShell(t, "nix store verify --no-trust --all --store "+store)
	}
	wantText(t, "cache verify", p.admin("verify"), "all are right")
	wantText(t, "cache ls", p.admin("ls"), p.tool)
	wantText(t, "cache info", p.admin("info "+p.tool), p.lib)
	p.admin("export /root/out " + p.tool)
	verify("file:///root/out")
	p.host.MustShell(t, "nix copy --no-check-sigs --from file:///root/out "+p.tool+" && nix store verify --no-trust --recursive "+p.tool)

	wantText(t, "cache rm", p.fails(p.host, world.Binary+" cache rm "+p.lib+" --config "+world.ConfigFile), "--referrers")
	p.admin("rm --referrers " + p.lib)
	verify(cacheURI)
	for _, path := range []string{p.lib, p.tool} {
		wantText(t, "nix path-info", p.fails(p.client, "nix path-info --store "+p.store+" "+path), "is not valid")
		p.fails(p.host, "nix path-info --store "+cacheURI+" "+path)
	}

	// A cache that Nix made is taken like one of ours, on a stopped store too.
	p.host.MustShell(t, "nix copy --no-check-sigs --to 'file:///root/made?compression=none' "+p.tool)
	wantText(t, "cache import", p.fails(p.host, world.Binary+" cache import /root/made --config "+world.ConfigFile), "--vouch")
	if err := p.proxy.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.admin("import --vouch file:///root/made")
	verify(cacheURI)
	p.admin("pin " + p.tool)
	if err := p.proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.fails(p.host, world.Binary+" cache gc --size 0B --config "+world.ConfigFile)
	p.client.MustShell(t, "nix-store --delete "+p.tool+" "+p.lib+" && nix copy --no-check-sigs --from "+p.store+" "+p.tool+
		" && nix store verify --no-trust --recursive "+p.tool)
	p.host.MustShell(t, "nix copy --no-check-sigs --to 'file:///root/packed?compression=xz' "+p.tool)
	wantText(t, "cache import", p.fails(p.host, world.Binary+" cache import /root/packed --config "+world.ConfigFile), "compressed with xz")
}

// A NAR that rotted on the proxy's disk, at equal length and with the time of its
// file, reaches no client, and is gone afterwards; brought again, it is served.
// Guards against a disk that is believed.
func testRottenNAR(t *testing.T, p *pantry) {
	if err := p.proxy.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.host.MustShell(t, `
		cd `+world.StateDir+`/cache
		nar=$(sed -n 's/^URL: //p' domain/default/$(basename `+p.lib+` | cut -c1-32).narinfo)
		size=$(stat -c %s $nar); cp -p $nar /root/whole
		printf '\377' | dd of=$nar bs=1 seek=$((size / 2)) conv=notrunc status=none
		cmp -s $nar /root/whole && printf '\376' | dd of=$nar bs=1 seek=$((size / 2)) conv=notrunc status=none
		touch -r /root/whole $nar
		test $(stat -c %s $nar) = $size && ! cmp -s $nar /root/whole`)
	if err := p.proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.client.MustShell(t, "nix-store --export "+p.lib+" "+p.tool+" >/root/kept && nix-store --delete "+p.tool+" "+p.lib)
	fetch := "nix copy --no-check-sigs --from " + p.store + " " + p.lib
	said := p.fails(p.client, fetch)
	wantText(t, "nix copy", said, "damaged on the proxy's disk")
	p.fails(p.client, "nix-store --verify-path "+p.lib)
	wantText(t, "the second try", p.fails(p.client, fetch), "is not valid")
	p.fails(p.host, "nix path-info --store "+cacheURI+" "+p.lib)
	p.host.MustShell(t, "test $(ls "+world.StateDir+"/cache/quarantine | wc -l) = 1")
	wantText(t, "cache info", p.admin("info"), "1 damaged NAR, 1 path dropped")
	wantText(t, "cache verify", p.admin("verify"), "all are right")

	p.client.MustShell(t, "nix-store --import </root/kept")
	p.bring()
	p.client.MustShell(t, "nix-store --delete "+p.tool+" "+p.lib+" && "+fetch+" && nix-store --verify-path "+p.lib)
	p.client.MustShell(t, "nix-store --import </root/kept")
}
