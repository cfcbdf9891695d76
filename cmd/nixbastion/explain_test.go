package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/proxy"
)

// anyDerivation is the text of a .drv file that requires what env says.
func anyDerivation(env ...nix.EnvVar) []byte {
	drv := nix.Derivation{BasicDerivation: nix.BasicDerivation{
		Outputs: []nix.DerivationOutput{{Name: "out", HashAlgo: "r:sha256"}}, Platform: "x86_64-linux", Builder: "/bin/sh", Env: env,
	}}
	return []byte(drv.ATerm())
}

// Guards against a question that reaches the proxy otherwise than it was put: files are
// read here, since the proxy sees none of them.
func TestExplainAsksWithWhatItsFilesSay(t *testing.T) {
	var asked [][]string
	o := openOffice(t, "", func(_ context.Context, out io.Writer, words []string, _ proxy.Look) error {
		asked = append(asked, words)
		_, err := io.WriteString(out, "an answer\n")
		return err
	})
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	drv := write("yv8s6flv7qfrshh6jz73kvflbkb4dvpk-hello-2.12.drv", anyDerivation())
	key := write("id.pub", []byte(publicLine("anna")+" anna@laptop\n"))
	for _, c := range []struct {
		args []string
		want proxy.Question
		json bool
	}{
		{[]string{"--principal", "anna", "--system", "x86_64-linux", "--features", "kvm,big-parallel"},
			proxy.Question{Principal: "anna", System: "x86_64-linux", Features: []string{"kvm", "big-parallel"}}, false},
		{[]string{"--key", key, "--address", "192.0.2.7", "--drv", drv, "--json"},
			proxy.Question{Key: publicLine("anna") + " anna@laptop", Address: "192.0.2.7", Name: "hello-2.12", Derivation: anyDerivation()}, true},
		{[]string{"--key", "SHA256:abc", "--name", "x", "--drv", drv},
			proxy.Question{Key: "SHA256:abc", Name: "x", Derivation: anyDerivation()}, false},
	} {
		asked = nil
		var out, errs bytes.Buffer
		if status := run(append([]string{"explain", "--socket", o.socket}, c.args...), &out, &errs); status != 0 || out.String() != "an answer\n" {
			t.Fatalf("%q: status %d, %q, %s", c.args, status, &out, &errs)
		}
		want, err := json.Marshal(c.want)
		if err != nil {
			t.Fatal(err)
		}
		words := []string{"explain", string(want)}
		if c.json {
			words = append(words, "--json")
		}
		if len(asked) != 1 || strings.Join(asked[0], "\n") != strings.Join(words, "\n") {
			t.Errorf("%q: asked\n%q\nwant\n%q", c.args, asked, words)
		}
	}
}

// Guards against a private key that leaves its file, and against questions that are
// answered though half of them was lost.
func TestExplainSendsNoPrivateKeyAndNoHalfQuestion(t *testing.T) {
	o := openOffice(t, "", func(context.Context, io.Writer, []string, proxy.Look) error {
		t.Error("the proxy was asked")
		return nil
	})
	dir := t.TempDir()
	for name, text := range map[string][]byte{
		"id": privatePEM("anna"), "two.pub": []byte(publicLine("anna") + "\n" + publicLine("ben") + "\n"), "long.drv": make([]byte, proxy.MaxDerivation+1),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for says, args := range map[string][]string{
		"is a private key":       {"--key", filepath.Join(dir, "id"), "--system", "x86_64-linux"},
		"more than one line":     {"--key", filepath.Join(dir, "two.pub"), "--system", "x86_64-linux"},
		"read key":               {"--key", filepath.Join(dir, "absent"), "--system", "x86_64-linux"},
		"has more than":          {"--principal", "anna", "--drv", filepath.Join(dir, "long.drv")},
		"missing flags: --princ": {"--system", "x86_64-linux"},
		"missing flags: --syst":  {"--principal", "anna"},
		"can't be used together": {"--principal", "anna", "--system", "x86_64-linux", "--drv", filepath.Join(dir, "long.drv")},
	} {
		var out, errs bytes.Buffer
		if status := run(append([]string{"explain", "--socket", o.socket}, args...), &out, &errs); status == 0 || !strings.Contains(errs.String(), says) || out.Len() > 0 {
			t.Errorf("%q: status %d, %q, %s", args, status, &out, &errs)
		}
	}
	body := bytes.NewReader(make([]byte, maxExplainBytes+1))
	if err := requestWith(t.Context(), new(bytes.Buffer), o.socket, http.MethodPost, "explain", body); err == nil {
		t.Error("a body beyond the limit was read")
	}
}

// Guards against an answer by a policy file that needs a proxy, or that comes from
// another policy than the one named.
func TestExplainAnswersByAPolicyFile(t *testing.T) {
	file := writePolicy(t, `state_dir: state
builders: [{name: b1, address: nowhere.invalid, user: nix, identity_file: builder-key, host_keys: [`+publicLine("host")+`], systems: [x86_64-linux], features: [kvm]}]
principals: [{name: anna, role: full, keys: [`+publicLine("anna")+`]}]
`)
	drv := filepath.Join(t.TempDir(), "hello.drv")
	if err := os.WriteFile(drv, anyDerivation(nix.EnvVar{Name: "requiredSystemFeatures", Value: "kvm"}), 0o600); err != nil {
		t.Fatal(err)
	}
	for says, args := range map[string][]string{
		"a 'x86_64-linux' with features {kvm}: goes to b1\n":             {"--system", "x86_64-linux", "--features", "kvm"},
		"a 'x86_64-linux' with features {}: goes to b1\n":                {"--system", "x86_64-linux"},
		"with features {ca-derivations, kvm}: no builder can run it\n":   {"--drv", drv},
		"b1: system is x86_64-linux, not aarch64-linux; lacks feature f": {"--system", "aarch64-linux", "--features", "f"},
		`"may_build": true`: {"--system", "x86_64-linux", "--json"},
	} {
		var out, errs bytes.Buffer
		if status := run(append([]string{"explain", "--principal", "anna", "--offline", "--config", file}, args...), &out, &errs); status != 0 || !strings.Contains(out.String(), says) {
			t.Errorf("%q: status %d, %s, %s", args, status, &out, &errs)
		}
	}
	var out, errs bytes.Buffer
	if status := run([]string{"explain", "--principal", "ben", "--system", "x86_64-linux", "--offline", "--config", file}, &out, &errs); status != exitMistakes {
		t.Errorf("somebody who is not in the policy: status %d, %s", status, &out)
	}
	errs.Reset()
	if status := run([]string{"explain", "--principal", "anna", "--system", "x86_64-linux", "--offline"}, &out, &errs); status != exitMistakes {
		t.Errorf("without a file: status %d, %s", status, &errs)
	}
}

// Guards against an answer by a file where the running proxy was meant, as for every
// other question with --config.
func TestExplainAsksTheProxyOfAPolicyFile(t *testing.T) {
	file := writePolicy(t, "state_dir: state\n")
	var out, errs bytes.Buffer
	if status := run([]string{"explain", "--principal", "anna", "--system", "x86_64-linux", "--config", file}, &out, &errs); status != exitFailure || !strings.Contains(errs.String(), filepath.Join(filepath.Dir(file), "state", "admin.sock")) {
		t.Errorf("status %d, %s, %s", status, &out, &errs)
	}
}
