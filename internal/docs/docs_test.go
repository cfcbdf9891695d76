package docs

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"nixbastion/policy"
)

var update = flag.Bool("update", false, "write docs/configuration.md, to be read before it is committed")

const top = "../.."

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// bare is a policy that leaves everything to the defaults that it can.
const bare = `
state_dir: state
metrics: {listen: "127.0.0.1:9822"}
builders:
  - {name: b, address: b.example.org, user: nix, identity_file: key, host_keys: [KEY], systems: [x86_64-linux],
     wake: {command: ["true"]}, sleep: {command: ["true"]}}
principals:
  - {name: p, role: full, keys: [KEY]}
`

// defaults are the values that count without being set, as check --print says.
func defaults(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	key := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICAhIiMkJSYnKCkqKywtLi8wMTIzNDU2Nzg5Ojs8PT4/"
	for name, text := range map[string]string{"policy.yaml": strings.ReplaceAll(bare, "KEY", key), "key": privateKey} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var printed bytes.Buffer
	if err := policy.Print(filepath.Join(dir, "policy.yaml"), &printed); err != nil {
		t.Fatal(err)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(printed.Bytes(), &root); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	collect(found, "", root.Content[0])
	return found
}

// collect walks through what is printed, where a comment says what is a default.
func collect(found map[string]string, path string, n *yaml.Node) {
	switch {
	case n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			collect(found, strings.TrimPrefix(path+"."+n.Content[i].Value, "."), n.Content[i+1])
		}
	case n.Kind == yaml.SequenceNode && n.Style != yaml.FlowStyle:
		for _, item := range n.Content {
			collect(found, path+"[]", item)
		}
	case strings.HasPrefix(n.LineComment, "# default"):
		n.LineComment = ""
		if text, err := yaml.Marshal(n); err == nil {
			found[path] = strings.TrimSpace(string(text))
		}
	}
}

// Guards against a reference of another program than this one.
func TestTheReferenceIsThatOfTheSchema(t *testing.T) {
	known := defaults(t)
	for _, key := range []string{"audit.keep", "ssh.per_source_penalties.min", "builders[].wake.timeout", "principals[].class", "listen", "load.every"} {
		if known[key] == "" {
			t.Errorf("no default of %s was found", key)
		}
	}
	delete(known, "domains[].name")            // the domain that is always there
	delete(known, "trusted_public_keys[].key") // and the key that is trusted without a list
	made, err := Reference(policy.Schema(), known)
	if err != nil {
		t.Fatal(err)
	}
	for key := range known {
		if !strings.Contains(made, "`"+key+"`") {
			t.Errorf("%s has a default and is not in the reference", key)
		}
	}
	const file = "docs/configuration.md"
	if *update {
		if err := os.WriteFile(filepath.Join(top, file), []byte(made), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, file) != made {
		t.Errorf("%s is out of date: go test ./internal/docs -run Reference -update", file)
	}
}

// Guards against advice for sentences that nobody reads any more.
func TestTheSentencesOfTroubleshootingAreInTheCode(t *testing.T) {
	var texts []string
	for _, dir := range []string{"cache", "cmd", "policy", "proxy", "route", "internal/audit", "internal/nix"} {
		more, err := Texts(filepath.Join(top, dir))
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, more...)
	}
	if missing := Missing("no builder has ever said ...", texts); len(missing) != 1 {
		t.Fatalf("of a sentence that is nowhere there are missing: %q", missing)
	}
	sentences := Sentences(read(t, "docs/troubleshooting.md"))
	if len(sentences) < 25 {
		t.Errorf("there are only %d sentences", len(sentences))
	}
	for _, sentence := range sentences {
		for _, part := range Missing(sentence, texts) {
			t.Errorf("%q is not in the code, of: %s", part, sentence)
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

// Guards against links to pages that are not there.
func TestLinksOfTheDocsLeadSomewhere(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	links := 0
	for _, file := range append(files, filepath.Join(top, "README.md")) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	if links < 20 {
		t.Errorf("only %d links were found", links)
	}
}

// Guards against a block that nobody runs because its kind is misspelt.
func TestBlocksAreOfAKnownKind(t *testing.T) {
	kinds := map[string]bool{"console": true, "sh": true, "yaml": true, "nix": true, "text": true, "json": true}
	words := map[string]bool{"status": true, "on": true, "gives": true, "background": true, "file": true}
	files, err := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	if err != nil || len(files) < 8 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range Blocks(string(text)) {
			if !kinds[b.Kind] {
				t.Errorf("%s:%d: a block of kind %q", file, b.Line, b.Kind)
			}
			for word := range b.Words {
				if !words[word] {
					t.Errorf("%s:%d: %q says nothing of a block", file, b.Line, word)
				}
			}
			if b.Kind == "console" && len(b.Steps()) == 0 {
				t.Errorf("%s:%d: a console without a command", file, b.Line)
			}
		}
	}
}

// Guards against a comparison that everything passes.
func TestStepsPrintWhatTheySay(t *testing.T) {
	b := Blocks("text\n```console status=2\n$ one\nfirst ... line\n...\nlast\n$ two\n```\n")
	if len(b) != 1 || b[0].Words["status"] != "2" {
		t.Fatalf("blocks: %+v", b)
	}
	steps := b[0].Steps()
	if len(steps) != 2 || steps[0].Command != "one" || steps[0].Line != 3 || steps[1].Line != 7 {
		t.Fatalf("steps: %+v", steps)
	}
	for text, want := range map[string]bool{
		"first and only line\nlast\n":          true,
		"first a line\nmore\nmore\nlast":       true,
		"first a line\nmore\nlast\nnot\n":      false,
		"first a line\n":                       false,
		"a first line\nlast\n":                 false,
		"first line\nwith (two) lines\nlast\n": false,
	} {
		if got := steps[0].Prints(text); got != want {
			t.Errorf("prints %q: %v", text, got)
		}
	}
	if steps[1].Prints("something") || !steps[1].Prints("") {
		t.Error("a command that is to print nothing may print something")
	}
}
