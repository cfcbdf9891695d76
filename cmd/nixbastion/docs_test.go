package main

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"nixbastion/internal/docs"
	"nixbastion/internal/testbed"
)

// top is where the project's files are.
const top = "../.."

// pages are all that is for admins, as Markdown.
func pages(t *testing.T) []string {
	t.Helper()
	all := []string{filepath.Join(top, "README.md")}
	for _, pattern := range []string{"docs/*.md", "docs/*/*.md"} {
		more, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, more...)
	}
	if len(all) < 8 {
		t.Fatalf("there are only the pages %v", all)
	}
	return all
}

func pageText(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// onHosts are the pages whose blocks with "on" are run by the tests of internal/e2e.
var onHosts = []string{"first-ten-minutes.md", "install.md", "operations.md", "audit.md"}

// Guards against pages whose commands do something else than they say: each block that
// needs no other host is run, in the order of its page.
func TestTheCommandsOfTheDocsDoWhatTheySay(t *testing.T) {
	testbed.NeedTool(t, "ssh-keygen", "openssh-client")
	ran := 0
	for _, file := range pages(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			for _, b := range docs.Blocks(pageText(t, file)) {
				if b.Has("on") && !slices.Contains(onHosts, filepath.Base(file)) {
					t.Errorf("line %d: nobody runs what is for the host %s", b.Line, b.Words["on"])
				}
			}
			ran += newReader(t).read(pageText(t, file))
		})
	}
	if ran < 20 && !t.Failed() {
		t.Errorf("only %d commands were run", ran)
	}
}

// A reader does what a page says, with folders and a port of its own in place of the
// machine's.
type reader struct {
	t       *testing.T
	dir     string
	address string
}

// pageAddress is where a proxy of a page listens.
const pageAddress = "127.0.0.1:2222"

// folders of the machine that pages name.
var folders = []string{"/etc/nixbastion", "/var/lib/nixbastion", "/srv/backup"}

func newReader(t *testing.T) *reader {
	r := &reader{t: t, dir: t.TempDir(), address: "127.0.0.1:" + freePort(t)}
	for _, folder := range folders {
		if err := os.MkdirAll(r.dir+folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *reader) inside(text string) string {
	for _, folder := range folders {
		text = strings.ReplaceAll(text, folder, r.dir+folder)
	}
	return strings.ReplaceAll(text, pageAddress, r.address)
}

func (r *reader) outside(text string) string {
	return strings.NewReplacer(r.dir, "", r.address, pageAddress).Replace(text)
}

// read runs what can be run and returns how many commands that were.
func (r *reader) read(page string) (ran int) {
	r.t.Helper()
	for _, b := range docs.Blocks(page) {
		switch {
		case b.Has("on"):
		case b.Has("file"):
			if err := os.WriteFile(r.inside(b.Words["file"]), []byte(r.inside(b.Text)), 0o600); err != nil {
				r.t.Fatal(err)
			}
		case b.Kind == "console":
			ran += r.run(b)
		case b.Kind == "sh" && b.Text != "make build\n": // which every test begins with
			r.t.Errorf("line %d: nobody runs this", b.Line)
		}
	}
	return ran
}

func (r *reader) run(b docs.Block) (ran int) {
	r.t.Helper()
	steps := b.Steps()
	for i, step := range steps {
		want := 0
		if i == len(steps)-1 && b.Has("status") {
			want, _ = strconv.Atoi(b.Words["status"])
		}
		if i == len(steps)-1 && b.Has("background") {
			r.serve(step.Command)
			continue
		}
		cmd := exec.CommandContext(r.t.Context(), "sh", "-c", r.inside(step.Command))
		cmd.Dir = r.dir
		out, err := cmd.CombinedOutput()
		if status := new(exec.ExitError); err != nil && !errors.As(err, &status) {
			r.t.Fatal(err)
		}
		got := r.outside(string(out))
		if cmd.ProcessState.ExitCode() != want || !step.Prints(got) {
			r.t.Errorf("line %d: %s\nends with status %d, want %d, and prints\n%s", step.Line, step.Command, cmd.ProcessState.ExitCode(), want, got)
		}
	}
	return len(steps)
}

// serve starts a proxy that goes on to the end of the page.
func (r *reader) serve(command string) {
	r.t.Helper()
	cmd := exec.Command("sh", "-c", "exec "+r.inside(command))
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			r.t.Errorf("%s: %v", command, err)
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("unix", filepath.Join(r.dir, "/var/lib/nixbastion/admin.sock"))
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s does not serve: %v", command, err)
		}
	}
}

// Guards against commands and flags that the docs name and the program does not have,
// in pages, in the example of the policy and in the units.
func TestTheDocsNameOnlyCommandsThatExist(t *testing.T) {
	model := commandModel(t)
	for _, file := range pages(t) {
		named := docs.CommandsOfPage(pageText(t, file))
		for _, n := range named {
			if mistake := unknownIn(model, n.Words); mistake != "" {
				t.Errorf("%s:%d: %s: %s", file, n.Line, strings.Join(n.Words, " "), mistake)
			}
		}
	}
	units, err := filepath.Glob(filepath.Join(top, "systemd", "*"))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range append(units, filepath.Join(top, "config.example.yaml")) {
		if info, err := os.Stat(file); err != nil || info.IsDir() {
			continue
		}
		for _, n := range docs.CommandsOfText(pageText(t, file)) {
			if child(model.Node, n.Words[0]) == nil {
				continue // the program's name in a sentence
			}
			seen++
			if mistake := unknownIn(model, n.Words); mistake != "" {
				t.Errorf("%s:%d: %s: %s", file, n.Line, strings.Join(n.Words, " "), mistake)
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d commands were found in units and example", seen)
	}
}

// Guards against commands and flags that no page tells of.
func TestTheDocsNameEveryCommand(t *testing.T) {
	told := map[string]bool{}
	for _, file := range pages(t) {
		for _, n := range docs.CommandsOfPage(pageText(t, file)) {
			for i := range n.Words {
				told[strings.Join(n.Words[:i+1], " ")] = true
			}
		}
	}
	for _, command := range commandModel(t).Leaves(true) {
		var path []string
		for node := command; node.Type == kong.CommandNode; node = node.Parent {
			path = append([]string{node.Name}, path...)
		}
		if name := strings.Join(path, " "); !told[name] {
			t.Errorf("no page says what nixbastion %s is for", name)
		}
	}
}

func commandModel(t *testing.T) *kong.Application {
	t.Helper()
	parser, err := kong.New(&cli{}, kong.Name("nixbastion"), kong.BindTo(io.Discard, (*io.Writer)(nil)))
	if err != nil {
		t.Fatal(err)
	}
	return parser.Model
}

func child(node *kong.Node, name string) *kong.Node {
	at := slices.IndexFunc(node.Children, func(c *kong.Node) bool { return c.Name == name && c.Type == kong.CommandNode })
	if at < 0 {
		return nil
	}
	return node.Children[at]
}

// unknownIn says what of a command line does not exist.
func unknownIn(model *kong.Application, words []string) string {
	node := model.Node
	for _, word := range words {
		word = strings.Trim(word, "[]'\",.:`")
		switch name, flag := strings.CutPrefix(word, "--"); {
		case flag:
			name, _, _ = strings.Cut(name, "=")
			if !hasFlag(node, name) {
				return "there is no --" + name
			}
		case len(node.Children) > 0:
			if !isWord(word) {
				return "" // nixbastion COMMAND, or nothing more
			}
			next := child(node, word)
			if next == nil {
				return "there is no " + word
			}
			node = next
		}
	}
	return ""
}

// isWord tells a command from what stands for one, as COMMAND.
func isWord(word string) bool { return word != "" && word[0] >= 'a' && word[0] <= 'z' }

func hasFlag(node *kong.Node, name string) bool {
	for _, group := range node.AllFlags(false) {
		for _, flag := range group {
			if flag.Name == name {
				return true
			}
		}
	}
	return name == "help"
}
