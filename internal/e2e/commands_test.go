package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A storeCommand is what a user runs against the proxy as a store.
type storeCommand struct {
	name string
	// script has shell variables: S is the store, by scheme and key; lib, tool,
	// which refers to it, and its derivation tooldrv are on the client; expr is a
	// file with the derivations aloneName, otherName and, over one that is not
	// built, topName, of which alone and other are the outputs; secret is the file
	// of a key that the proxy trusts, strange that of another.
	script string
	// over is the only scheme for which Nix has the command; "" is both.
	over string
	// since is the first version that has it; "" is every one.
	since string
	// fails says that it must not succeed.
	fails bool
	// says are parts of what it prints, with $lib and the like replaced.
	says []string
}

const overNG, overSSH = "ssh-ng", "ssh"

// commands are run in this order.
var commands = []storeCommand{
	{name: "nix store ping", script: "nix store ping --store $S", says: []string{"Store URL: "}},
	{name: "nix store info", script: "nix store info --store $S", since: testbed.Nix226, over: overNG,
		says: []string{"nixbastion", "Trusted: 1"}},

	{name: "nix copy --to, unsigned", script: "nix copy --to $S $tool", over: overNG, fails: true,
		says: []string{"cannot add path '$lib' because it lacks a signature by a trusted key", "trusted_public_keys", "--no-check-sigs"}},
	{name: "nix copy --to, signed by a stranger", script: "nix store sign --key-file $strange $lib && nix copy --to $S $lib", over: overNG, fails: true,
		says: []string{"lacks a signature by a trusted key"}},
	{name: "nix copy --to, signed", script: "nix store sign --key-file $secret $lib && nix copy --to $S $lib && nix path-info --sigs --store $S $lib",
		over: overNG, says: []string{"$lib", "trusted-1:"}},
	{name: "nix copy --to --no-check-sigs", script: "nix copy --no-check-sigs --to $S $tool && nix path-info --sigs --store $S $lib $tool",
		says: []string{"$lib", "$tool"}},
	{name: "nix copy --to of derivations", script: "nix copy --derivation --to $S $tooldrv && nix-store --query --hash --store $S $tooldrv",
		says: []string{"sha256:"}},
	{name: "nix-copy-closure --to", script: copyClosure("--to"), over: overSSH},
	{name: "nix-copy-closure --to --use-substitutes", script: copyClosure("--to -s"), over: overSSH},
	{name: "nix-copy-closure --to --gzip", script: copyClosure("--to --gzip"), over: overSSH},
	{name: "nix-copy-closure --from", script: "nix-store --delete $tool && nix-copy-closure --from proxy $tool && nix-store --verify-path $tool", over: overSSH},

	{name: "nix path-info", script: "nix path-info --store $S $tool", says: []string{"$tool"}},
	{name: "nix path-info --recursive", script: "nix path-info --recursive --size --store $S $tool", says: []string{"$lib", "$tool"}},
	{name: "nix path-info of nothing", script: "nix path-info --store $S " + nobodysPath, fails: true, says: []string{"is not valid"}},
	{name: "nix path-info --all", script: "nix path-info --all --store $S", over: overNG, says: []string{"$lib", "$tool", "$tooldrv"}},

	{name: "nix-store -q --references", script: "nix-store -q --references --store $S $tool", says: []string{"$lib"}},
	{name: "nix-store -q --requisites", script: "nix-store -q --requisites --store $S $tool", says: []string{"$lib", "$tool"}},
	{name: "nix-store -q --referrers", script: "nix-store -q --referrers --store $S $lib", over: overNG, says: []string{"$tool"}},
	{name: "nix-store -q --referrers-closure", script: "nix-store -q --referrers-closure --store $S $lib", over: overNG, says: []string{"$lib", "$tool"}},
	{name: "nix-store -q --referrers of none", script: "test -z \"$(nix-store -q --referrers --store $S $tool)\"", over: overNG},
	{name: "nix-store -q --deriver", script: "nix-store -q --deriver --store $S $tool", says: []string{"$tooldrv"}},
	{name: "nix-store -q --valid-derivers", script: "nix-store -q --valid-derivers --store $S $tool", over: overNG, since: testbed.Nix226, says: []string{"$tooldrv"}},
	{name: "nix-store -q --outputs", script: "nix-store -q --outputs --store $S $tooldrv", over: overNG, says: []string{"$tool"}},
	{name: "nix-store -q --hash", script: same("nix-store -q --hash --store $S $tool", "nix-store -q --hash $tool")},
	{name: "nix-store -q --size", script: same("nix-store -q --size --store $S $tool", "nix-store -q --size $tool")},
	{name: "nix-store -q --tree", script: "nix-store -q --tree --store $S $tool", says: []string{"$lib", "$tool"}},
	{name: "nix derivation show", script: "nix derivation show --store $S $tool", over: overNG, since: testbed.Nix226, says: []string{"tool-"}},
	{name: "nix why-depends", script: "nix why-depends --store $S $tool $lib", over: overNG, says: []string{"$lib"}},

	{name: "nix store verify", script: "nix store verify --no-trust --recursive --store $S $tool"},
	{name: "nix store verify --all", script: "nix store verify --no-trust --all --store $S", over: overNG},
	{name: "nix-store --verify-path", script: "nix-store --verify-path --store $S $tool"},
	{name: "nix store sign, a strange key", script: "nix store sign --key-file $strange --store $S $tool", over: overNG, fails: true,
		says: []string{"strange-1", "trusted_public_keys", "trusted-1"}},
	{name: "nix store sign", script: "nix store sign --key-file $secret --store $S $tool && nix path-info --sigs --store $S $tool && " +
		"nix store verify --trusted-public-keys \"$public\" --store $S $tool", over: overNG, says: []string{"trusted-1:"}},

	{name: "nix store ls", script: "nix store ls --store $S $tool/file1", over: overNG},
	{name: "nix store cat", script: same("nix store cat --store $S $tool/file1", "cat $tool/file1"), over: overNG},
	{name: "nix store dump-path", script: same("nix store dump-path --store $S $tool", "nix-store --dump $tool")},
	{name: "nix-store --export", script: same("nix-store --export --store $S $tool", "nix-store --export $tool")},
	{name: "nix-store --add", script: fresh + same("nix-store --add --store $S /root/fresh", "nix-store --add /root/fresh"), over: overNG},
	{name: "nix-store --add-fixed", script: fresh + same("nix-store --add-fixed --store $S sha256 /root/fresh", "nix-store --add-fixed sha256 /root/fresh")},
	{name: "nix store add-path", script: fresh + "nix path-info --store $S $(nix store add-path --store $S /root/fresh)"},
	{name: "nix store add-file", script: fresh + "nix path-info --store $S $(nix store add-file --store $S /root/fresh)"},
	{name: "nix store add", script: fresh + "nix path-info --store $S $(nix store add --store $S /root/fresh)", since: testbed.Nix226},

	{name: "nix copy --from, whose signer the client does not trust", script: "nix-store --delete $tool && nix copy --from $S $tool",
		fails: true, says: []string{"signature"}},
	{name: "nix copy --from", script: "nix-store --delete $tool; nix copy --no-check-sigs --from $S $tool && nix-store --verify-path $tool"},
	{name: "nix-store --realise", script: "nix-store --realise --store $S $tool", says: []string{"$tool"}},
	{name: "nix-store --realise of nothing", script: "nix-store --realise --store $S " + nobodysPath, fails: true, says: []string{"not valid here"}},

	{name: "nix build", script: "nix build --no-link --store $S -f $expr $aloneName && nix path-info --store $S $alone", over: overNG, says: []string{"$alone"}},
	{name: "nix build --eval-store", script: "nix build --no-link --store $S --eval-store auto -f $expr $otherName && nix path-info --store $S $other", over: overNG, says: []string{"$other"}},
	{name: "nix build of a graph", script: "nix build --no-link --store $S -f $expr $topName", over: overNG, fails: true,
		says: []string{"needs", "unbuilt-", "one derivation at a time"}},
	{name: "nix build --rebuild", script: "nix build --no-link --store $S --rebuild -f $expr $aloneName", over: overNG, says: []string{"checking outputs of"}},
	{name: "nix-build", script: "nix-build --no-out-link --store $S $expr -A $aloneName", over: overNG, says: []string{"$alone"}},
	{name: "nix-build of a graph", script: "nix-build --no-out-link --store $S $expr -A $topName", over: overNG, fails: true,
		says: []string{"needs", "unbuilt-", "one derivation at a time"}},
	{name: "nix-build --check", script: "nix-build --no-out-link --store $S --check $expr -A $aloneName", over: overNG, says: []string{"checking outputs of", "$alone"}},
	{name: "nix-build --repair", script: "nix-build --no-out-link --store $S --repair $expr -A $aloneName", over: overNG, fails: true,
		says: []string{"repair_builds: allow"}},

	{name: "nix-store --gc", script: "nix-store --gc --store $S", over: overNG, fails: true, says: []string{"makes space by itself"}},
	{name: "nix store gc", script: "nix store gc --store $S", over: overNG, fails: true, says: []string{"makes space by itself"}},
	{name: "nix-store --gc --print-roots", script: "nix-store --gc --print-roots --store $S", over: overNG, fails: true, says: []string{"no garbage collector roots"}},
	{name: "nix-store -q --roots", script: "nix-store -q --roots --store $S $lib", over: overNG, fails: true, says: []string{"no garbage collector roots"}},
	{name: "nix-store --delete", script: "nix-store --delete --store $S $tool", over: overNG, fails: true, says: []string{"nothing is deleted on request"}},
	{name: "nix store delete", script: "nix store delete --store $S $tool", over: overNG, fails: true, says: []string{"nothing is deleted on request"}},
	{name: "nix store optimise", script: "nix store optimise --store $S", over: overNG, fails: true, says: []string{"nothing to optimise"}},
	{name: "nix-store --verify", script: "nix-store --verify --check-contents --store $S", over: overNG, fails: true, says: []string{"nix store verify --all"}},
	{name: "nix-store --verify --repair", script: "nix-store --verify --check-contents --repair --store $S", over: overNG, fails: true, says: []string{"nothing is repaired on request"}},
	{name: "nix store repair", script: "nix store repair --store $S $tool", fails: true, says: []string{"repairPath"}},
	{name: "nix log", script: "nix log --store $S $tool", fails: true},
	{name: "nix store copy-log", script: "nix store copy-log --to $S $tool", over: overNG, fails: true, says: []string{"keeps no build logs"}},
}

// nobodysPath is a path that no store has.
const nobodysPath = "/nix/store/00000000000000000000000000000000-nobody-has-this"

// copyClosure copies a new file to the proxy, which always speaks the serve
// protocol, and has it looked for.
func copyClosure(options string) string {
	return fresh + "copied=$(nix-store --add /root/fresh) && nix-copy-closure " + options + " proxy $copied && nix path-info --store $S $copied"
}

// fresh makes a file that no store has.
const fresh = "echo $RANDOM$RANDOM$RANDOM >/root/fresh && "

// same wants the same output of two commands.
func same(a, b string) string {
	return `test "$(` + a + ` | sha256sum)" = "$(` + b + ` | sha256sum)"`
}

// A counter is where clients of every version ask the proxy as a store.
type counter struct {
	proxy   *world.Proxy
	clients map[string]*testbed.Host // by version
	key     testbed.Key
	// trustedKey is the public half of /root/trusted.secret on every client.
	trustedKey string
}

func startCounter(t *testing.T) *counter {
	t.Helper()
	bed := testbed.ForTest(t)
	c := &counter{clients: map[string]*testbed.Host{}, key: bed.UserKey("alice")}
	specs := []testbed.HostSpec{{Name: "builder", Kind: testbed.Builder, MaxJobs: 2}}
	for _, v := range versions {
		specs = append(specs, testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{c.key}})
	}
	hosts := bed.MustStart(t, specs...)
	for i, v := range versions {
		c.clients[v] = hosts[1+i]
	}
	c.makeKeys(t)
	c.proxy = startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: hosts[0], MaxJobs: 2}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{c.key}}},
		Extra:      fmt.Sprintf("trusted_public_keys: [%q]\n", c.trustedKey),
	})
	return c
}

// makeKeys gives all clients the same two signing keys.
func (c *counter) makeKeys(t *testing.T) {
	t.Helper()
	first := c.clients[versions[0]]
	first.MustShell(t, "for k in trusted strange; do nix-store --generate-binary-cache-key $k-1 /root/$k.secret /root/$k.public; done")
	for _, name := range []string{"trusted.secret", "trusted.public", "strange.secret"} {
		text, err := first.ReadFile(t.Context(), "/root/"+name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "trusted.public" {
			c.trustedKey = strings.TrimSpace(string(text))
		}
		for _, client := range c.clients {
			if err := client.WriteFile(t.Context(), "/root/"+name, text); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Every command that a user runs against the store of a builder works against the
// proxy, or ends with the reason: each version of Nix runs each over each scheme for
// which it has it. Guards against commands of which nobody thought, which end with
// the name of an operation or a connection that broke.
func TestEveryCommandWorksOrSaysWhyNot(t *testing.T) {
	c := startCounter(t)
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			t.Parallel() // each version has a client of its own
			for _, scheme := range []string{overNG, overSSH} {
				t.Run(scheme, func(t *testing.T) { c.testCommands(t, v, scheme) })
			}
		})
	}
}

func (c *counter) testCommands(t *testing.T, version, scheme string) {
	client := c.clients[version]
	variables := c.prepare(t, version, scheme)
	for _, cmd := range commands {
		if cmd.over != "" && cmd.over != scheme || slices.Index(versions, version) < slices.Index(versions, cmd.since) {
			continue
		}
		t.Run(cmd.name, func(t *testing.T) { cmd.test(t, client, variables) })
	}
}

// prepare makes what the commands are about, on the client alone, and returns the
// variables of their scripts.
func (c *counter) prepare(t *testing.T, version, scheme string) map[string]string {
	t.Helper()
	client, name := c.clients[version], scheme+"-"+word(version)
	lib, tool, alone, other := "lib-"+name, "tool-"+name, "alone-"+name, "other-"+name
	expr := writeExpression(t, client,
		testbed.Derivation{Name: lib},
		testbed.Derivation{Name: tool, Inputs: []string{lib}, KeepInputs: true, OutputSize: 1000},
		testbed.Derivation{Name: alone}, testbed.Derivation{Name: other}, testbed.Derivation{Name: "unbuilt-" + name},
		testbed.Derivation{Name: "top-" + name, Inputs: []string{"unbuilt-" + name}})
	client.MustShell(t, "nix-build --no-out-link -j1 --builders '' "+expr+" -A "+tool)
	ask := func(command string) string { return strings.TrimSpace(client.MustShell(t, command)) }
	output := func(attribute string) string {
		return ask("nix-store -q --outputs $(nix-instantiate " + expr + " -A " + attribute + ")")
	}
	return map[string]string{
		"S": fmt.Sprintf("%s://proxy?ssh-key=%s", scheme, c.key.File()), "NIX_SSHOPTS": "-i " + c.key.File(),
		"secret": "/root/trusted.secret", "strange": "/root/strange.secret", "public": c.trustedKey,
		"lib": output(lib), "tool": output(tool), "tooldrv": ask("nix-instantiate " + expr + " -A " + tool),
		"expr": expr, "alone": output(alone), "other": output(other),
		"aloneName": alone, "otherName": other, "topName": "top-" + name,
	}
}

func (cmd *storeCommand) test(t *testing.T, client *testbed.Host, variables map[string]string) {
	var script strings.Builder
	// Not in the environment: what is named there is not collected as garbage.
	for name, value := range variables {
		fmt.Fprintf(&script, "%s='%s'\n", name, value)
	}
	script.WriteString("export NIX_SSHOPTS\n" + cmd.script)
	res, err := client.Shell(t.Context(), script.String())
	if err != nil {
		t.Fatal(err)
	}
	said := res.Stdout + res.Stderr
	if (res.Status != 0) != cmd.fails {
		t.Errorf("%s ended with status %d:\n%s", cmd.script, res.Status, tail(said))
	}
	for _, part := range cmd.says {
		wantText(t, cmd.script, said, replaced(part, variables))
	}
	for _, word := range []string{"Broken pipe", "unexpected end-of-file", "disconnected unexpectedly", "internal error"} {
		if strings.Contains(said, word) {
			t.Errorf("%s says %q:\n%s", cmd.script, word, tail(said))
		}
	}
}

// replaced puts values where a text names variables.
func replaced(text string, variables map[string]string) string {
	names := slices.SortedFunc(maps.Keys(variables), func(a, b string) int { return len(b) - len(a) }) // tooldrv before tool
	for _, name := range names {
		text = strings.ReplaceAll(text, "$"+name, variables[name])
	}
	return text
}
