package e2e

import (
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// builderSigns is the key with which the builder of a signing world signs by
// itself.
const builderSigns = "builder-1"

// A signing world is a proxy with a key, a builder that signs too, a client that
// builds, and one of each version that only fetches.
type signingWorld struct {
	proxy   *world.Proxy
	maker   *testbed.Host
	readers []*testbed.Host
	reading testbed.Key
	app     string // has a library and a source in its closure
}

func startSigning(t *testing.T) *signingWorld {
	t.Helper()
	bed := testbed.ForTest(t)
	making := bed.UserKey("alice")
	w := &signingWorld{reading: bed.UserKey("reader")}
	specs := []testbed.HostSpec{
		{Name: "builder", Kind: testbed.Builder, MaxJobs: 1, NixConf: []string{"secret-key-files = /etc/nix/builder.secret"}},
		{Name: "maker", Kind: testbed.Client, Keys: []testbed.Key{making}},
	}
	for _, v := range versions {
		specs = append(specs, testbed.HostSpec{Name: "reader-" + word(v), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{w.reading}})
	}
	hosts := bed.MustStart(t, specs...)
	hosts[0].MustShell(t, "nix-store --generate-binary-cache-key "+builderSigns+" /etc/nix/builder.secret /etc/nix/builder.public")
	w.maker, w.readers = hosts[1], hosts[2:]
	w.proxy = startProxy(t, bed, world.ProxySpec{
		Builders: []world.Builder{{Host: hosts[0]}},
		Principals: []world.Principal{
			{Name: "alice", Keys: []testbed.Key{making}},
			{Name: "reader", Keys: []testbed.Key{w.reading}, Role: "read"},
		},
		Signing: map[string]world.Signing{"default": {Keys: []string{"proxy-1"}}},
	})
	setMachines(t, w.maker, w.proxy.Machine(making))
	w.maker.MustShell(t, "echo a source >/root/source")
	file := writeExpression(t, w.maker,
		testbed.Derivation{Name: "lib", Sources: []string{"/root/source"}, KeepInputs: true},
		testbed.Derivation{Name: "app", Inputs: []string{"lib"}, KeepInputs: true})
	paths, _ := startBuild(t, w.maker, file, []string{"app"}).mustSucceed(t)
	w.app = paths[0]
	// The client that asked for the build did not have to ask twice.
	w.maker.MustShell(t, "nix store verify --recursive --sigs-needed 1"+w.trust(t, "proxy-1")+w.app)
	return w
}

// store is the proxy as a client that only fetches writes it.
func (w *signingWorld) store(scheme string) string {
	return fmt.Sprintf("'%s://proxy?ssh-key=%s'", scheme, w.reading.File())
}

// trust is the option that has a command of Nix trust these keys and no others.
func (w *signingWorld) trust(t *testing.T, names ...string) string {
	t.Helper()
	var keys []string
	for _, name := range names {
		key, err := w.proxy.PublicKey(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	return " --option trusted-public-keys '" + strings.Join(keys, " ") + "' "
}

// forget has a client lose the whole closure.
func (w *signingWorld) forget(t *testing.T, client *testbed.Host) {
	t.Helper()
	client.MustShell(t, "nix-store --delete $(nix-store --query --requisites "+w.app+")")
}

// What is built by way of the proxy is signed with its key: clients of all
// versions take it with a check of signatures, over both protocols, and Nix
// itself takes it from the proxy's disk. Guards against signatures that only we
// believe in. S25.
func TestS25ClientsTakeWhatTheProxySigned(t *testing.T) {
	w := startSigning(t)
	ours, strange := w.trust(t, "proxy-1"), " --option trusted-public-keys 'cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=' "
	for _, reader := range w.readers {
		fetch := "nix-store --realise " + w.app + " --option substituters " + w.store("ssh-ng")
		if res := startScript(t, reader, fetch+strange).wait(t); res.Status == 0 {
			t.Errorf("%s takes what no key of its has signed", reader.Name())
		}
		reader.MustShell(t, fetch+ours)
		reader.MustShell(t, "nix store verify --recursive --sigs-needed 1"+ours+w.app)
		w.forget(t, reader)
		for _, scheme := range protocols {
			copying := "nix copy --from " + w.store(scheme) + " " + w.app
			reader.MustShell(t, copying+ours)
			w.forget(t, reader)
		}
	}
	// A verified path is usable at once and on disk soon.
	host := w.proxy.Host()
	eventually(t, "the path is published", patience, func() bool {
		res, err := host.Shell(t.Context(), "nix path-info --store "+cacheURI+" "+w.app)
		return err == nil && res.Status == 0
	})
	host.MustShell(t, "nix store verify --recursive --sigs-needed 1 --store "+cacheURI+ours+w.app)
	if res := startScript(t, host, "nix copy --from "+cacheURI+strange+w.app).wait(t); res.Status == 0 {
		t.Error("Nix copies from the disk what no key of its has signed")
	}
	host.MustShell(t, "nix copy --from "+cacheURI+ours+w.app)
	host.MustShell(t, "nix store verify --recursive --sigs-needed 1"+ours+w.app)

	t.Run("S26 both signatures", w.testBuilderSigns)
	t.Run("S27 another key", w.testNewKey)
}

// A builder that signs what it builds is heard beside the proxy. Guards against a
// path that one of the two signatures drives out. S26.
func (w *signingWorld) testBuilderSigns(t *testing.T) {
	for _, reader := range w.readers {
		reader.MustShell(t, "nix copy --from "+w.store("ssh-ng")+w.trust(t, "proxy-1")+w.app)
		wantText(t, "signatures on "+reader.Name(), reader.MustShell(t, "nix path-info --sigs "+w.app), builderSigns+":", "proxy-1:")
		w.forget(t, reader)
	}
}

// After a change of keys old paths are good for who trusts the new one alone, and
// a start with the same keys has nothing to do. Guards against paths that no
// client of tomorrow can check. S27.
func (w *signingWorld) testNewKey(t *testing.T) {
	withPolicy(t, w.proxy, func(s *world.ProxySpec) {
		s.Signing = map[string]world.Signing{"default": {Keys: []string{"proxy-2"}}}
	})
	last := w.readers[len(w.readers)-1]
	verify := "nix store verify --no-contents --recursive --sigs-needed 1 --store " + w.store("ssh-ng")
	eventually(t, "old paths have signatures of the new key", patience, func() bool {
		return startScript(t, last, verify+w.trust(t, "proxy-2")+w.app).wait(t).Status == 0
	})
	last.MustShell(t, verify+w.trust(t, "proxy-1")+w.app)
	for _, reader := range w.readers {
		reader.MustShell(t, "nix copy --from "+w.store("ssh-ng")+w.trust(t, "proxy-2")+w.app)
		w.forget(t, reader)
	}

	if err := w.proxy.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	mark := w.proxy.Mark()
	if err := w.proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	last.MustShell(t, verify+w.trust(t, "proxy-2")+w.app)
	for _, l := range w.proxy.LinesSince(mark) {
		if strings.HasPrefix(l.Msg, "what the store holds has signatures") {
			t.Errorf("signed again with the same key: %s", l.Raw)
		}
	}

	// Keys of clients are the policy's to know.
	w.maker.MustShell(t, "nix-store --generate-binary-cache-key maker-1 /root/maker.secret /root/maker.public")
	signing := "nix store sign --store 'ssh-ng://proxy?ssh-key=/root/.ssh/alice' --key-file /root/maker.secret " + w.app
	res := startScript(t, w.maker, signing).wait(t)
	if res.Status == 0 {
		t.Error("a signature is taken that nobody can verify")
	}
	wantText(t, "what nix store sign says", res.Stderr, "maker-1", "trusted_public_keys")
	public := strings.TrimSpace(w.maker.MustShell(t, "cat /root/maker.public"))
	withPolicy(t, w.proxy, func(s *world.ProxySpec) {
		s.Extra += fmt.Sprintf("trusted_public_keys: [%q]\n", public)
	})
	w.maker.MustShell(t, signing)
	wantText(t, "signatures", last.MustShell(t, "nix path-info --sigs --store "+w.store("ssh-ng")+" "+w.app), "maker-1:", "proxy-1:", "proxy-2:", builderSigns+":")
}
