package e2e

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A builder that is asked by nix-store tells the log of a build on another pipe
// than its end. A client by ssh-ng sees every line of it, in order and up to the
// last, and keeps it. Guards against logs that lose their end, of which the last
// lines are the ones that matter.
func TestLogOfAServeBuilderIsWhole(t *testing.T) {
	const lines = 20_000
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	specs := []testbed.HostSpec{{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}}}
	for _, v := range versions {
		specs = append(specs, testbed.HostSpec{Name: "builder-" + word(v), Kind: testbed.Builder, Nix: v, MaxJobs: 2, Features: []string{word(v)}})
	}
	hosts := bed.MustStart(t, specs...)
	client := hosts[0]
	spec := world.ProxySpec{Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}}}
	for i, v := range versions {
		spec.Builders = append(spec.Builders, world.Builder{Host: hosts[i+1], Features: []string{word(v)}, MaxJobs: 2, Extra: []string{"protocol: ssh"}})
	}
	proxy := startProxy(t, bed, spec)
	setMachines(t, client, proxy.Machine(key))
	writeQuietSSH(t, client)
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			noisy := testbed.Derivation{Name: "noisy-" + word(v), RequiredFeatures: []string{word(v)}, LogLines: lines}
			run := startScript(t, client, "export PATH="+quietSSH+":$PATH; "+
				buildScript(writeExpression(t, client, noisy), []string{noisy.Name}))
			paths, log := run.mustSucceed(t)
			wantLogLines(t, "the client's log", log, lines)
			kept := client.MustShell(t, "nix-store --read-log $(nix-store --query --deriver "+paths[0]+")")
			wantLogLines(t, "the log that the client keeps", kept, lines)

			failing := testbed.Derivation{Name: "failing-" + word(v), RequiredFeatures: []string{word(v)},
				LogLines: 3, Script: "echo my last words >&2", ExitStatus: 5}
			said := startBuild(t, client, writeExpression(t, client, failing), []string{failing.Name}).mustFail(t)
			wantText(t, "the log of a failed build", said, "log line 3", "my last words", "exit code 5")
			if got := builtOn(proxy, failing.Name); len(got) != 1 {
				t.Errorf("a failed build was tried on %q", got)
			}
		})
	}
}

// A builder proves itself by a certificate of its host key, or by a key under a
// hashed name; a certificate for another host or of another authority opens
// nothing. Guards against differences between OpenSSH's idea of known_hosts and
// ours.
func TestBuilderIsKnownByItsAuthority(t *testing.T) {
	bed := testbed.ForTest(t)
	key, authority := bed.UserKey("alice"), bed.UserKey("authority")
	cert := filepath.Join(t.TempDir(), "cert")
	if err := os.WriteFile(cert, hostCertificate(t, bed.HostKey("builder"), authority, "*uilder"), 0o644); err != nil {
		t.Fatal(err)
	}
	const certFile = "/etc/ssh/host-certificate.pub"
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder, SSHD: []string{"HostCertificate " + certFile}, Binds: map[string]string{certFile: cert}},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	client := hosts[1]
	spec := world.ProxySpec{
		Builders:   []world.Builder{{Host: hosts[0]}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	}
	proxy := startProxy(t, bed, spec)
	setMachines(t, client, proxy.Machine(key))
	const file = "/etc/nixbastion/known_hosts"
	listed := fmt.Sprintf("host_keys: [%q]", bed.HostKey("builder").AuthorizedLine())
	policy := strings.Replace(spec.Policy(bed), listed, "known_hosts: "+file, 1)
	other := bed.UserKey("somebody").AuthorizedLine()
	for name, c := range map[string]struct {
		lines string
		words []string // of the refusal
	}{
		"authority":            {"@cert-authority * " + authority.AuthorizedLine(), nil},
		"hashed name":          {knownhosts.HashHostname("builder") + " " + bed.HostKey("builder").AuthorizedLine(), nil},
		"key beside authority": {"@cert-authority * " + other + "\nbuilder " + bed.HostKey("builder").AuthorizedLine(), nil},
		"other authority":      {"@cert-authority * " + other, []string{"not on file"}},
		"revoked authority": {"@cert-authority * " + authority.AuthorizedLine() + "\n@revoked * " + authority.AuthorizedLine(),
			[]string{"is revoked"}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := proxy.Host().WriteFile(t.Context(), file, []byte(c.lines+"\n")); err != nil {
				t.Fatal(err)
			}
			// Another account and back: a way that changed is tried anew.
			if err := proxy.Reload(t.Context(), spec); err != nil {
				t.Fatal(err)
			}
			if err := proxy.ReloadText(t.Context(), policy); err != nil {
				t.Fatal(err)
			}
			d := testbed.Derivation{Name: "for-" + strings.ReplaceAll(name, " ", "-")}
			run := startBuild(t, client, writeExpression(t, client, d), []string{d.Name})
			if len(c.words) == 0 {
				run.mustSucceed(t)
				return
			}
			wantText(t, "the refusal", run.mustFail(t), c.words...)
		})
	}
}

// hostCertificate is what `ssh-keygen -s AUTHORITY -h -n NAME` makes.
func hostCertificate(t *testing.T, host, authority testbed.Key, name string) []byte {
	t.Helper()
	cert := &ssh.Certificate{
		Key: host.Signer().PublicKey(), CertType: ssh.HostCert, KeyId: "builder", ValidPrincipals: []string{name},
		ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
	}
	if err := cert.SignCert(rand.Reader, authority.Signer()); err != nil {
		t.Fatal(err)
	}
	return ssh.MarshalAuthorizedKey(cert)
}
