package e2e

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix/worker"
	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// Whatever goes wrong in whatever operation, the client's user reads a sentence of
// ours. Guards against connections that are closed under a client that still
// sends, where all it can say is "broken pipe" or "unexpected end-of-file".
func TestS33ReasonInsteadOfBrokenPipe(t *testing.T) {
	g := startGate(t)
	withPolicy(t, g.proxy, func(spec *world.ProxySpec) { spec.Extra = "limits: {nar_size: 4MiB}\n" })
	t.Run("real clients", g.testFaults)
	t.Run("every operation of the worker protocol", g.testWorkerOps)
	t.Run("every command of the serve protocol", g.testServeCommands)
}

// A fault is what a client asks for that cannot be, and the words that say why. In
// the script STORE is the proxy's URI, FULL and READ that of a certain key, NEW a
// large path that the proxy lacks, and OLD one that it has, but for the bytes.
type fault struct {
	what   string
	script string
	says   []string
	// only is the scheme that has the operation; "" is both.
	only string
}

var faults = []fault{
	{what: "an upload that is too large", script: "nix copy --no-check-sigs --to FULL NEW", says: []string{"limits.nar_size"}},
	{what: "an upload by a reader", script: "nix copy --no-check-sigs --to READ NEW", says: []string{`"reader"`, "may not upload"}},
	{what: "nix-copy-closure by a reader", script: "NIX_SSHOPTS='-i KEY' nix-copy-closure --to nix@proxy NEW", says: []string{`"reader"`, "may not upload"}, only: "ssh"},
	{what: "an addition by a reader", script: "nix store add-file --store READ /root/fault-new", says: []string{`"reader"`, "may not upload"}, only: "ssh-ng"},
	{what: "an addition that is too large", script: "nix store add-file --store FULL /root/fault-new", says: []string{"limits.nar_size"}, only: "ssh-ng"},
	{what: "a build in the store by a reader", script: "nix build --no-link --store READ -f /root/fault.nix", says: []string{`"reader"`, "may not"}, only: "ssh-ng"},
	{what: "a path that nobody has", script: "nix copy --no-check-sigs --from FULL NEW", says: []string{"is not valid"}, only: "ssh-ng"},
	{what: "a path whose bytes are gone", script: "nix-store --delete OLD; nix copy --no-check-sigs --from FULL OLD", says: []string{"is not valid"}},
	{what: "garbage collection", script: "nix store gc --store FULL", says: []string{"nothing is deleted on request"}, only: "ssh-ng"},
	{what: "deletion", script: "nix-store --delete --store FULL NEW", says: []string{"nothing is deleted on request"}, only: "ssh-ng"},
	{what: "deduplication", script: "nix store optimise --store FULL", says: []string{"nothing to optimise"}, only: "ssh-ng"},
	{what: "repair of the store", script: "nix-store --verify --repair --store FULL", says: []string{"nothing is repaired on request"}, only: "ssh-ng"},
}

func (g *gate) testFaults(t *testing.T) {
	for _, client := range g.clients() {
		p := g.prepareFaults(t, client)
		for _, f := range faults {
			for _, scheme := range protocols {
				if f.only != "" && f.only != scheme {
					continue
				}
				t.Run(f.what+" over "+scheme+" with "+client.Nix(), func(t *testing.T) {
					res := startScript(t, client, p.fill(f.script, scheme)).wait(t)
					if res.Status == 0 {
						t.Errorf("it succeeded:\n%s%s", res.Stdout, res.Stderr)
					}
					wantText(t, "the client's output", res.Stderr, f.says...)
				})
			}
		}
	}
}

// scene is what the scripts of faults speak of.
type scene struct {
	*gate
	new string
	old map[string]string // one for each scheme, as the first use makes the proxy forget it
}

func (g *gate) prepareFaults(t *testing.T, client *testbed.Host) scene {
	t.Helper()
	const large = 64 << 20
	client.MustShell(t, fmt.Sprintf("head -c %d /dev/urandom >/root/fault-new", large))
	s := scene{gate: g, new: strings.TrimSpace(client.MustShell(t, "nix-store --add /root/fault-new")), old: map[string]string{}}
	unbuilt := testbed.Expression(testbed.Derivation{Name: "unbuilt"})
	if err := client.WriteFile(t.Context(), "/root/fault.nix", []byte("("+unbuilt+").unbuilt")); err != nil {
		t.Fatal(err)
	}
	setMachines(t, client, g.machine("ssh-ng", g.alice))
	for _, scheme := range protocols {
		damaged := testbed.Derivation{Name: "damaged-" + scheme + "-" + word(client.Nix()), OutputSize: 2 << 20, Random: true}
		paths, _ := build(t, client, damaged)
		s.old[scheme] = paths[0]
		g.damage(t, paths[0])
	}
	return s
}

// damage takes the bytes of a path away from the proxy, but not its record.
func (g *gate) damage(t *testing.T, path string) {
	t.Helper()
	host := g.proxy.Host()
	narinfo := cacheDir + "/" + strings.TrimPrefix(path, "/nix/store/")[:32] + ".narinfo"
	eventually(t, "the proxy has published "+path, patience, func() bool {
		res, err := host.Shell(t.Context(), "test -e "+narinfo)
		return err == nil && res.Status == 0
	})
	host.MustShell(t, "cd "+cacheDir+" && rm $(sed -n 's/^URL: //p' "+narinfo+")")
}

func (s scene) fill(script, scheme string) string {
	return strings.NewReplacer("FULL", storeURI(scheme, s.alice), "READ", storeURI(scheme, s.reader),
		"KEY", s.reader.File(), "NEW", s.new, "OLD", s.old[scheme]).Replace(script)
}

// manyOps is more than there are operations.
const manyOps = 64

// testWorkerOps sends each operation with what cannot be its request, and more of
// it than anybody reads.
func (g *gate) testWorkerOps(t *testing.T) {
	client := g.dial(t)
	defer client.Close()
	hello := "cxin\x00\x00\x00\x00" + word64(0x126) + word64(0) + word64(0) + word64(0)
	for op := range manyOps {
		said, status := feed(t, client, hello+word64(uint64(op))+strings.Repeat("\xff", 256<<10))
		if status != 1 {
			t.Errorf("operation %d ended with status %d, want 1", op, status)
		}
		name := worker.Op(op).String()
		// What has no arguments is answered, and what follows is no operation.
		if !strings.Contains(said, name) && !strings.Contains(said, "invalid operation") {
			t.Errorf("the answer to operation %d does not speak of %s: %q", op, name, tail(said))
		}
		wantNothingInternal(t, said)
	}
}

// testServeCommands does the same with the other protocol, where the only place
// for a sentence is the command's standard error.
func (g *gate) testServeCommands(t *testing.T) {
	client := g.dial(t)
	defer client.Close()
	hello := word64(0x390c9deb) + word64(0x207)
	for command := range manyOps {
		said, status := feedTo(t, client, "nix-store --serve --write", hello+word64(uint64(command))+strings.Repeat("\xff", 256<<10))
		if status != 1 {
			t.Errorf("command %d ended with status %d, want 1", command, status)
		}
		wantText(t, fmt.Sprintf("the answer to command %d", command), said, "nixbastion: ")
		wantNothingInternal(t, said)
	}
}

func wantNothingInternal(t *testing.T, said string) {
	t.Helper()
	if strings.Contains(said, "panic") || strings.Contains(said, world.StateDir) {
		t.Errorf("it says too much: %q", tail(said))
	}
}

// dial logs in with the full key from a client's host.
func (g *gate) dial(t *testing.T) *ssh.Client {
	t.Helper()
	conn, channels, requests, err := dialSSH(t.Context(), g.client, g.proxy, g.alice)
	if err != nil {
		t.Fatal(err)
	}
	return ssh.NewClient(conn, channels, requests)
}
