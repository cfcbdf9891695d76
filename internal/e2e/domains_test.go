package e2e

import (
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A border is two domains with a client and a builder each. Mallory, in the other
// domain, has everything that a stock client has, and root on her machine.
type border struct {
	proxy          *world.Proxy
	alice, mallory *testbed.Host
	// By whom each asks the proxy as a store.
	asAlice, asMallory string
	closureFrom        string // nix-copy-closure by mallory
}

func startBorder(t *testing.T) *border {
	t.Helper()
	bed := testbed.ForTest(t)
	alice, mallory := bed.UserKey("alice"), bed.UserKey("mallory")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "ours", Kind: testbed.Builder, MaxJobs: 2},
		testbed.HostSpec{Name: "theirs", Kind: testbed.Builder, MaxJobs: 2},
		testbed.HostSpec{Name: "alice", Kind: testbed.Client, Keys: []testbed.Key{alice}},
		testbed.HostSpec{Name: "mallory", Kind: testbed.Client, Keys: []testbed.Key{mallory}})
	b := &border{alice: hosts[2], mallory: hosts[3], asAlice: storeURI("ssh-ng", alice), asMallory: storeURI("ssh-ng", mallory),
		closureFrom: "NIX_SSHOPTS='-i " + mallory.File() + "' nix-copy-closure --from proxy "}
	const makeKey = "nix-store --generate-binary-cache-key company-1 /root/company.secret /root/company.public && cat /root/company.public"
	companyKey := strings.TrimSpace(b.alice.MustShell(t, makeKey))
	b.mallory.MustShell(t, makeKey) // another key of the same name
	b.proxy = startProxy(t, bed, world.ProxySpec{
		Extra: fmt.Sprintf("trusted_public_keys: [{key: %q, public: true}]\n", companyKey),
		Builders: []world.Builder{
			{Host: hosts[0], MaxJobs: 2, Extra: []string{"builder_content: match"}},
			{Host: hosts[1], MaxJobs: 2, Domains: []string{"theirs"}, Extra: []string{"builder_content: match"}},
		},
		Principals: []world.Principal{
			{Name: "alice", Keys: []testbed.Key{alice}},
			{Name: "mallory", Domain: "theirs", Keys: []testbed.Key{mallory}},
		},
	})
	setMachines(t, b.alice, b.proxy.Machine(alice))
	setMachines(t, b.mallory, b.proxy.Machine(mallory))
	return b
}

// Two domains on one proxy, with real clients. Guards against a path of one that the
// other sees, gets, lists or builds with, against bytes that are stored twice, and
// against one that plants for the other what it made itself.
func TestS28DomainsSeeNothingOfEachOther(t *testing.T) {
	b := startBorder(t)
	t.Run("an upload", b.testUpload)
	t.Run("equal bytes", b.testEqualBytes)
	t.Run("a planted path", b.testPlanted)
	t.Run("signed paths", b.testSigned)
	t.Run("a build", b.testBuild)
}

// builtAlone builds on a client itself and returns the output.
func builtAlone(t *testing.T, client *testbed.Host, d testbed.Derivation) string {
	t.Helper()
	file := writeExpression(t, client, d)
	return strings.TrimSpace(client.MustShell(t, "nix-build --no-out-link -j1 --builders '' "+file+" -A "+d.Name))
}

// mustNot wants a command to fail, and nothing of what is secret in what it says.
func mustNot(t *testing.T, host *testbed.Host, script string, secret ...string) {
	t.Helper()
	res, err := host.Shell(t.Context(), script)
	if err != nil {
		t.Fatal(err)
	}
	if res.Status == 0 {
		t.Errorf("%s: succeeded:\n%s%s", script, res.Stdout, res.Stderr)
	}
	for _, text := range secret {
		if strings.Contains(res.Stdout+res.Stderr, text) {
			t.Errorf("%s tells %q:\n%s%s", script, text, res.Stdout, res.Stderr)
		}
	}
}

func (b *border) testUpload(t *testing.T) {
	b.alice.MustShell(t, "mkdir /root/secret && echo the secret >/root/secret/file")
	source := strings.TrimSpace(b.alice.MustShell(t, "nix-store --add /root/secret"))
	out := builtAlone(t, b.alice, testbed.Derivation{Name: "private", Sources: []string{"/root/secret"}, KeepInputs: true})
	drv := strings.TrimSpace(b.alice.MustShell(t, "nix-store -q --deriver "+out))
	b.alice.MustShell(t, fmt.Sprintf("nix copy --no-check-sigs --to %s %s && nix copy --derivation --to %s %s", b.asAlice, out, b.asAlice, drv))
	b.alice.MustShell(t, fmt.Sprintf("nix path-info --store %s %s %s", b.asAlice, out, source))
	scripts := []string{
		"nix path-info --store %s %s", "nix copy --no-check-sigs --from %s %s", "nix store ls --store %s %s",
		"nix-store --store %s -q --size %s", "nix-store --store %s -q --references %s", "nix store verify --no-trust --store %s %s",
		"nix-store --store %s --realise %s",
	}
	for _, script := range scripts {
		b.alice.MustShell(t, fmt.Sprintf(script, b.asAlice, out)) // or the rest shows nothing
	}
	for _, path := range []string{out, source, drv} {
		for _, script := range scripts {
			mustNot(t, b.mallory, fmt.Sprintf(script, b.asMallory, path), "the secret")
		}
		hash := strings.TrimPrefix(path, "/nix/store/")[:32]
		mustNot(t, b.mallory, fmt.Sprintf("nix path-info --store %s /nix/store/%s", b.asMallory, hash), path)
		if got := b.mallory.MustShell(t, fmt.Sprintf("nix-store --store %s -q --referrers %s 2>/dev/null || true", b.asMallory, path)); strings.TrimSpace(got) != "" {
			t.Errorf("referrers of %s: %s", path, got)
		}
		mustNot(t, b.mallory, b.closureFrom+path, "the secret")
	}
	all := b.mallory.MustShell(t, "nix path-info --all --store "+b.asMallory)
	for _, path := range []string{out, source, drv} {
		if strings.Contains(all, path) {
			t.Errorf("mallory lists %s", path)
		}
	}
}

// nars are the NAR files on the proxy's disk, once all is published.
func (b *border) nars(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(b.proxy.Host().MustShell(t, "find "+world.StateDir+"/cache/nar -name '*.nar' | wc -l"))
}

// published waits until a path is in the binary cache of a domain on disk, and
// returns its narinfo.
func (b *border) published(t *testing.T, domain, path string) (narinfo string) {
	t.Helper()
	file := fmt.Sprintf("%s/cache/domain/%s/%s.narinfo", world.StateDir, domain, strings.TrimPrefix(path, "/nix/store/")[:32])
	eventually(t, path+" is published in "+domain, patience, func() bool {
		text, err := b.proxy.Host().ReadFile(t.Context(), file)
		narinfo = string(text)
		return err == nil
	})
	return narinfo
}

func (b *border) testEqualBytes(t *testing.T) {
	same := testbed.Derivation{Name: "same", OutputFiles: 3, OutputSize: 5000}
	ours := builtAlone(t, b.alice, same)
	b.alice.MustShell(t, "nix copy --no-check-sigs --to "+b.asAlice+" "+ours)
	b.published(t, "default", ours)
	before := b.nars(t)
	mustNot(t, b.mallory, "nix path-info --store "+b.asMallory+" "+ours)
	theirs := builtAlone(t, b.mallory, same)
	if theirs != ours {
		t.Fatalf("%s and %s", ours, theirs)
	}
	b.mallory.MustShell(t, fmt.Sprintf("nix copy --no-check-sigs --to %s %s && nix path-info --store %s %s", b.asMallory, theirs, b.asMallory, theirs))
	b.mallory.MustShell(t, b.closureFrom+theirs) // which she could not with alice's paths
	wantText(t, "narinfo", b.published(t, "theirs", theirs), "X-Nixbastion-Provenance: claimed")
	if after := b.nars(t); after != before {
		t.Errorf("there are %s NARs on disk, before the second upload %s", after, before)
	}
}

func (b *border) testPlanted(t *testing.T) {
	random := testbed.Derivation{Name: "openssl", OutputSize: 5000, Random: true} // two builds make two outputs of one path
	planted := builtAlone(t, b.mallory, random)
	b.mallory.MustShell(t, "nix copy --no-check-sigs --to "+b.asMallory+" "+planted)
	mustNot(t, b.alice, "nix path-info --store "+b.asAlice+" "+planted)
	mustNot(t, b.alice, "nix copy --no-check-sigs --from "+b.asAlice+" "+planted)
	ours := builtAlone(t, b.alice, random)
	if ours != planted {
		t.Fatalf("%s and %s", ours, planted)
	}
	b.alice.MustShell(t, "nix copy --no-check-sigs --to "+b.asAlice+" "+ours)
	for client, store := range map[*testbed.Host]string{b.alice: b.asAlice, b.mallory: b.asMallory} {
		client.MustShell(t, same(fmt.Sprintf("nix store cat --store %s %s", store, ours), "cat "+ours))
	}
}

// What a public key has signed is for everybody, and whoever only has a key of its
// name signs nothing.
func (b *border) testSigned(t *testing.T) {
	const sign = "nix store sign --key-file /root/company.secret "
	forged := builtAlone(t, b.mallory, testbed.Derivation{Name: "forged", Random: true, OutputSize: 5000})
	mustNot(t, b.mallory, sign+forged+" && nix copy --to "+b.asMallory+" "+forged)
	b.mallory.MustShell(t, "nix copy --no-check-sigs --to "+b.asMallory+" "+forged)
	mustNot(t, b.mallory, "nix store sign --key-file /root/company.secret --store "+b.asMallory+" "+forged)
	wantText(t, "narinfo", b.published(t, "theirs", forged), "X-Nixbastion-Provenance: claimed")
	mustNot(t, b.alice, "nix path-info --store "+b.asAlice+" "+forged)

	open := builtAlone(t, b.alice, testbed.Derivation{Name: "open"})
	b.alice.MustShell(t, sign+open+" && nix copy --to "+b.asAlice+" "+open)
	wantText(t, "narinfo", b.published(t, "default", open), "X-Nixbastion-Provenance: signed", "Deriver: ")
	b.mallory.MustShell(t, "nix copy --no-check-sigs --from "+b.asMallory+" "+open)
	info := b.mallory.MustShell(t, "nix path-info --sigs --store "+b.asMallory+" "+open)
	wantText(t, "what another domain reads", info, "company-1:")
	if got := b.mallory.MustShell(t, "nix-store --store "+b.asMallory+" -q --deriver "+open); !strings.Contains(got, "unknown-deriver") {
		t.Errorf("another domain reads which derivation made it: %s", got)
	}
}

// What each domain has built is its own, although both build the same. A plan that is
// here whole is proven, on a builder that was given our bytes; one of a build hook,
// which sends no .drv files, is not.
func (b *border) testBuild(t *testing.T) {
	dep := testbed.Derivation{Name: "dep"}
	top := testbed.Derivation{Name: "top", Inputs: []string{"dep"}, KeepInputs: true}
	for client, store := range map[*testbed.Host]string{b.alice: b.asAlice, b.mallory: b.asMallory} {
		file := writeExpression(t, client, dep, top)
		domain := map[*testbed.Host]string{b.alice: "default", b.mallory: "theirs"}[client]
		for _, name := range []string{dep.Name, top.Name} {
			out := strings.TrimSpace(client.MustShell(t, fmt.Sprintf("nix-build --no-out-link --store %s %s -A %s", store, file, name)))
			wantText(t, "narinfo of "+name, b.published(t, domain, out), "X-Nixbastion-Provenance: built")
		}
	}
	for name, builders := range map[string]string{"dep": "ours theirs", "top": "ours theirs"} {
		got := strings.Join(builtOn(b.proxy, name), " ")
		if got != builders && got != "theirs ours" {
			t.Errorf("%s was built on %s", name, got)
		}
	}
	paths, _ := build(t, b.alice, testbed.Derivation{Name: "hooked"})
	wantText(t, "narinfo of what a build hook sent", b.published(t, "default", paths[0]), "X-Nixbastion-Provenance: domain")
}
