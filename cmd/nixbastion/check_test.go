package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
	"nixbastion/policy"
	"nixbastion/proxy"
)

// Guards against a list of ciphers in the policy that is not that of the front: a
// file that passes the check would then stop the proxy at its start.
func TestThePolicyKnowsTheCiphersOfTheFront(t *testing.T) {
	supported, insecure := ssh.SupportedAlgorithms().Ciphers, ssh.InsecureAlgorithms().Ciphers
	accepted := 0
	for _, cipher := range slices.Concat(supported, insecure) {
		_, policyErr := policy.Load(writePolicy(t, "state_dir: state\nssh: {ciphers: ["+cipher+"]}\n"))
		_, frontErr := proxy.NewFront(proxy.FrontOptions{
			HostKeys: []ssh.Signer{testSigner("host")}, Ciphers: []string{cipher},
			Authorize: func(ssh.PublicKey, netip.Addr) (proxy.Grant, error) { return proxy.Grant{}, errors.New("nobody") },
			Exec:      func(context.Context, *proxy.Exec) int { return 1 },
		})
		if (policyErr == nil) != (frontErr == nil) {
			t.Errorf("%s: policy %v, front %v", cipher, policyErr, frontErr)
		}
		if policyErr == nil {
			accepted++
		}
	}
	if accepted == 0 {
		t.Error("no cipher is accepted")
	}
}

// Guards against lines to paste with another key than the one that clients meet.
func TestCheckPrintsTheHostKeyOfTheProxy(t *testing.T) {
	file := writePolicy(t, "state_dir: state\nprincipals: [{name: anna, role: full, keys: ["+publicLine("anna")+"]}]\n")
	state := filepath.Join(filepath.Dir(file), "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	signer, err := proxy.LoadOrCreateHostKey(state)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if status := run([]string{"check", "--host", "proxy", file}, &out, &errs); status != 0 {
		t.Fatalf("status %d: %s", status, &errs)
	}
	want := "\n  proxy " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))) + "\n"
	if !strings.Contains(out.String(), want) {
		t.Errorf("no %q in:\n%s", want, &out)
	}
}

// Guards against a check that says less than what decides whether builds run: who
// answers, in which version, and whether it trusts the account.
func TestCheckConnectTellsWhatAnswers(t *testing.T) {
	noLeaks(t)
	good := startBuilder(t, worker.ServeOptions{DaemonVersion: "2.26.3", Trust: nix.Trusted})
	strict := startBuilder(t, worker.ServeOptions{DaemonVersion: "2.34.8", Trust: nix.NotTrusted})
	file := writePolicy(t, "state_dir: state\nbuilders:\n"+
		builderEntry("good", good, "host")+builderEntry("strict", strict, "host")+builderEntry("other", good, "another"))
	var out, errs bytes.Buffer
	if status := run([]string{"check", "--connect", file}, &out, &errs); status != exitFailure {
		t.Errorf("status %d", status)
	}
	for _, want := range []string{
		`Builder good at ` + good + `, account nix: ready\n` +
			`  SSH-2\.0-\S+; Nix 2\.26\.3, protocol 1\.\d+, trust: trusted\n` +
			`  connected in [0-9.]+.?s; nix-daemon --stdio answered after [0-9.]+.?s\n` +
			`  note: its load cannot be seen, so it is used by its slots alone: it does not run a shell for account 'nix'\n` +
			`  note: the settings of its Nix cannot be seen, so .* are believed: it does not run a shell for account 'nix'\n` +
			`Builder strict at ` + strict + `, account nix: cannot be used\n` +
			`  untrusted: account 'nix' on builder 'strict' \(` + strict + `\) must be in trusted-users of its nix\.conf\n` +
			`    hint: add it there, .*extra-trusted-users = nix.*\n` +
			`Builder other at ` + good + `, account nix: cannot be used\n` +
			`  host key: .*not on file.*\n` +
			`    hint: .*ssh-keyscan .*host_keys`,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("nothing like\n%s\nin\n%s", want, &out)
		}
	}
	if want := "2 of 3 builders cannot be used"; !strings.Contains(errs.String(), want) {
		t.Errorf("no %q in %q", want, &errs)
	}
}

func writePolicy(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(filepath.Join(dir, "builder-key"), privatePEM("client"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Guards against a fault of a builder that a program which checks does not see: in the
// exit status, or as JSON. Each has what to do about it.
func TestCheckConnectSaysForProgramsWhatIsWrong(t *testing.T) {
	noLeaks(t)
	poor := startBuilderOf(t, worker.ServeOptions{DaemonVersion: "2.34.8", Trust: nix.Trusted}, map[string]string{
		"asks for the settings": "system = aarch64-linux\nsystem-features = kvm\ntrusted-users = root\nsandbox = true\naccount = nix\ngroups = nix\nend =\n",
		"looks at the load": fmt.Sprintf("load Linux 4 %d\navg 1 1 1 1/1 1\ntotal 100 kB\navailable 100 kB\nFilesystem x\n/dev/vda 1000 900 100 90%% /\nend 1\n",
			time.Now().Add(time.Hour).Unix()),
	})
	good := startBuilderOf(t, worker.ServeOptions{DaemonVersion: "2.34.8", Trust: nix.Trusted}, map[string]string{
		"asks for the settings": "system = x86_64-linux\nsystem-features = \ntrusted-users = root\nsandbox = true\naccount = nix\ngroups = nix\nend =\n",
	})
	file := writePolicy(t, "state_dir: state\nbuilders:\n"+builderEntry("good", good, "host")+builderEntry("poor", poor, "host"))
	var out, errs bytes.Buffer
	if status := run([]string{"check", "--connect", "--json", file}, &out, &errs); status != exitFailure || !strings.Contains(errs.String(), "1 of 2 builders have problems") {
		t.Errorf("status %d, %s", status, &errs)
	}
	var answer struct{ Builders []builderCheck }
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil || len(answer.Builders) != 2 {
		t.Fatalf("%v:\n%s", err, &out)
	}
	if b := answer.Builders[0]; b.Name != "good" || !b.OK || !b.Usable || len(b.Problems) > 0 || b.Nix != "2.34.8" {
		t.Errorf("good: %+v", b)
	}
	poorOne := answer.Builders[1]
	var kinds []string
	for _, p := range poorOne.Problems {
		kinds = append(kinds, p.Kind)
		if p.What == "" || p.Fix == "" {
			t.Errorf("%+v", p)
		}
	}
	if poorOne.OK || !poorOne.Usable || !slices.Equal(kinds, []string{"disk", "clock", "system"}) {
		t.Errorf("poor: %q, %+v", kinds, poorOne)
	}
	out.Reset()
	if status := run([]string{"check", "--connect", file}, &out, &errs); status != exitFailure ||
		!strings.Contains(out.String(), "account nix: 3 problems\n") || !strings.Contains(out.String(), "\n    hint: collect garbage there") {
		t.Errorf("status %d:\n%s", status, &out)
	}
	for _, args := range [][]string{{"check", "--json", file}, {"check", "--print", "--json", file}} {
		out.Reset()
		if status := run(args, &out, &errs); status == 0 || out.Len() > 0 {
			t.Errorf("%v: status %d, %s", args, status, &out)
		}
	}
}

func builderEntry(name, address, hostKey string) string {
	return fmt.Sprintf("  - {name: %s, address: %q, user: nix, identity_file: builder-key, host_keys: [%s], systems: [x86_64-linux]}\n",
		name, address, publicLine(hostKey))
}

func publicLine(name string) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(testSigner(name).PublicKey())))
}

// startBuilder runs an ssh server whose one command is a daemon without a store.
// It returns its address; the test's end waits for all of it.
func startBuilder(t *testing.T, opts worker.ServeOptions) string {
	t.Helper()
	return startBuilderOf(t, opts, nil)
}

// startBuilderOf is startBuilder with answers to scripts, by what is in them.
func startBuilderOf(t *testing.T, opts worker.ServeOptions, scripts map[string]string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(key.Marshal(), testSigner("client").PublicKey().Marshal()) {
			return nil, errors.New("another key")
		}
		return nil, nil
	}}
	config.AddHostKey(testSigner("host"))
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { serveBuilder(c, config, opts, scripts) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		running.Wait()
	})
	return listener.Addr().String()
}

func serveBuilder(c net.Conn, config *ssh.ServerConfig, opts worker.ServeOptions, scripts map[string]string) {
	defer c.Close()
	conn, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	defer conn.Close()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { ssh.DiscardRequests(requests) })
	for offered := range channels {
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		running.Go(func() { serveChannel(channel, requests, opts, scripts) })
	}
}

// serveChannel runs a daemon whatever is asked for, apart from scripts.
func serveChannel(channel ssh.Channel, requests <-chan *ssh.Request, opts worker.ServeOptions, scripts map[string]string) {
	defer channel.Close()
	said := ""
	for request := range requests {
		_ = request.Reply(request.Type == "exec", nil)
		if request.Type == "exec" {
			for words, answer := range scripts {
				if strings.Contains(string(request.Payload), words) {
					said = answer
				}
			}
			break
		}
	}
	var running sync.WaitGroup
	running.Go(func() { ssh.DiscardRequests(requests) })
	if said == "" {
		_ = worker.Serve(context.Background(), channel, struct{ nix.Store }{}, opts)
	} else {
		_, _ = io.WriteString(channel, said)
		_, _ = io.Copy(io.Discard, channel)
	}
	_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{0}))
	channel.Close()
	running.Wait()
}
