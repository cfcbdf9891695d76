package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
	"nixbastion/internal/testbed"
)

// Clients as old as Nix 2.3, whose programs cannot be had any more, are replayed:
// each speaks the serve protocol in its version, with the flags of its time. Guards
// against a codec that only knows what today's clients send. What is written and
// read here shares no code with the proxy's.
func TestS36OldServeClientsBuild(t *testing.T) {
	w := startSite(t, siteSpec{})
	conn, channels, requests, err := dialSSH(t.Context(), w.client, w.proxy, w.key)
	if err != nil {
		t.Fatal(err)
	}
	login := ssh.NewClient(conn, channels, requests)
	defer login.Close()
	for minor := 1; minor <= 5; minor++ {
		t.Run(fmt.Sprintf("2.%d", minor), func(t *testing.T) {
			(&ancient{site: w, login: login, minor: minor}).run(t)
		})
	}
}

// Numbers of the serve protocol.
const (
	serveHello  = 0x390c9deb
	serveAnswer = 0x5452eecb

	serveValidPaths = 1
	servePathInfos  = 2
	serveDump       = 3
	serveImport     = 4
	serveExport     = 5
	serveClosure    = 7
	serveBuild      = 8
	serveAddNAR     = 9

	exportMagic = 0x4558494e
)

// An ancient is a client of serve protocol 2.minor in one session.
type ancient struct {
	*site
	login *ssh.Client
	minor int

	session *ssh.Session
	to      io.WriteCloser
	from    *bufio.Reader
	said    bytes.Buffer // on standard error; to be read once the session ended
}

// run is the life of such a client: it uploads an input, builds, fails to build,
// and fetches.
func (a *ancient) run(t *testing.T) {
	a.begin(t)
	input := a.input(t)
	a.upload(t, input)
	good, failing := a.derivations(t, input)
	if a.minor >= 3 {
		if status, reason := a.buildWith(t, good, 2); status == 0 || !strings.Contains(reason, "repeat") {
			t.Errorf("a build that is to be repeated twice ended with %d: %s", status, reason)
		}
	}
	if status, reason := a.build(t, failing); status == 0 || !strings.Contains(reason, "exit code 5") {
		t.Errorf("a failing build ended with %d: %s", status, reason)
	}
	if status, reason := a.build(t, good); status != 0 {
		t.Fatalf("a build ended with %d: %s", status, reason)
	}
	a.fetch(t, good, input)
	a.end(t)
	wantText(t, "what the session said on standard error", a.said.String(), "log line 1\n", "log line 3\n", "last words of "+failing.name)
}

func (a *ancient) begin(t *testing.T) {
	t.Helper()
	var err error
	if a.session, err = a.login.NewSession(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.session.Close() })
	// A peer that waits for what never comes must not stop the test.
	timer := time.AfterFunc(patience, func() { a.session.Close() })
	t.Cleanup(func() { timer.Stop() })
	a.session.Stderr = &a.said
	out, err := a.session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.from = bufio.NewReader(out)
	if a.to, err = a.session.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := a.session.Start("nix-store --serve --write"); err != nil {
		t.Fatal(err)
	}
	a.send(t, word64(serveHello), word64(uint64(2<<8|a.minor)))
	if magic := a.number(t); magic != serveAnswer {
		t.Fatalf("the answer begins with %#x", magic)
	}
	if version := a.number(t); version>>8 != 2 || version&0xff < 5 {
		t.Fatalf("the proxy speaks version %#x", version)
	}
}

// end hangs up as these clients do, and wants that it is taken for a good end.
func (a *ancient) end(t *testing.T) {
	t.Helper()
	a.to.Close()
	if rest, err := io.ReadAll(a.from); err != nil || len(rest) > 0 {
		t.Errorf("%d bytes are left over: %v", len(rest), err)
	}
	if err := a.session.Wait(); err != nil {
		t.Errorf("the session ended with %v:\n%s", err, a.said.String())
	}
}

// An old path is what the client has in its store.
type oldPath struct{ name, nar, hash string }

// input makes a path on the client and takes its NAR.
func (a *ancient) input(t *testing.T) oldPath {
	t.Helper()
	file := fmt.Sprintf("/root/for-2.%d", a.minor)
	name := strings.TrimSpace(a.client.MustShell(t, fmt.Sprintf("echo input of 2.%d >%s && nix-store --add %s", a.minor, file, file)))
	nar := a.client.MustShell(t, "nix-store --dump "+name)
	sum := sha256.Sum256([]byte(nar))
	return oldPath{name, nar, hex.EncodeToString(sum[:])}
}

// upload asks what is there, as each upload begins, and sends what is not.
func (a *ancient) upload(t *testing.T, p oldPath) {
	t.Helper()
	if valid := a.validPaths(t, p.name); len(valid) != 0 {
		t.Errorf("%q is there before it was sent", valid)
	}
	if a.minor >= 5 {
		a.send(t, word64(serveAddNAR), text(p.name), text(""), text(p.hash), texts(), word64(0), word64(uint64(len(p.nar))),
			word64(0), texts(), text(""), p.nar)
	} else {
		a.send(t, word64(serveImport), word64(1), p.nar, word64(exportMagic), text(p.name), texts(), text(""), word64(0), word64(0))
	}
	if done := a.number(t); done != 1 {
		t.Fatalf("the upload was answered with %d", done)
	}
	if valid := a.validPaths(t, p.name); len(valid) != 1 {
		t.Errorf("%q is there after it was sent", valid)
	}
}

func (a *ancient) validPaths(t *testing.T, paths ...string) []string {
	t.Helper()
	a.send(t, word64(serveValidPaths), word64(0), word64(0), texts(paths...))
	return a.textList(t)
}

// An old derivation is what BuildDerivation names.
type oldDerivation struct {
	name, path string
	*nix.BasicDerivation
}

// derivations are a build with an input and two outputs, and one that fails.
func (a *ancient) derivations(t *testing.T, input oldPath) (good, failing oldDerivation) {
	t.Helper()
	source := "/root/" + strings.SplitN(path.Base(input.name), "-", 2)[1]
	both := []testbed.Derivation{
		{Name: fmt.Sprintf("old-2%d", a.minor), Sources: []string{source}, KeepInputs: true, Outputs: []string{"out", "foo"}, LogLines: 3},
		{Name: fmt.Sprintf("bad-2%d", a.minor), Sources: []string{source}, ExitStatus: 5},
	}
	both[1].Script = "echo last words of " + both[1].Name + " >&2"
	file := writeExpression(t, a.client, both...)
	var made [2]oldDerivation
	for i, d := range both {
		drv := strings.TrimSpace(a.client.MustShell(t, "nix-instantiate "+file+" -A "+d.Name))
		made[i] = oldDerivation{d.Name, drv, a.readDerivation(t, drv)}
	}
	return made[0], made[1]
}

func (a *ancient) readDerivation(t *testing.T, drv string) *nix.BasicDerivation {
	t.Helper()
	bytes, err := a.client.ReadFile(t.Context(), drv)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := nix.ParseDerivation(strings.TrimSuffix(strings.SplitN(path.Base(drv), "-", 2)[1], ".drv"), bytes)
	if err != nil {
		t.Fatal(err)
	}
	return &parsed.BasicDerivation
}

func (a *ancient) build(t *testing.T, d oldDerivation) (status uint64, reason string) {
	t.Helper()
	return a.buildWith(t, d, 0)
}

// buildWith asks for so many more builds of the same, which versions below 2.3
// cannot.
func (a *ancient) buildWith(t *testing.T, d oldDerivation, repeats uint64) (status uint64, reason string) {
	t.Helper()
	a.send(t, word64(serveBuild), text(d.path), d.wire(), a.options(repeats))
	status, reason = a.number(t), a.text(t)
	if a.minor >= 3 {
		a.number(t) // how often it was built
		a.number(t) // whether the results differed
		if began, ended := a.number(t), a.number(t); ended < began {
			t.Errorf("%s was built from %d to %d", d.name, began, ended)
		}
	}
	return status, reason
}

func (d oldDerivation) wire() string {
	var w strings.Builder
	w.WriteString(word64(uint64(len(d.Outputs))))
	for _, o := range d.Outputs {
		w.WriteString(text(o.Name) + text(o.Path.String()) + text(o.HashAlgo) + text(o.Hash))
	}
	var inputs []string
	for _, p := range d.InputSrcs {
		inputs = append(inputs, p.String())
	}
	w.WriteString(texts(inputs...) + text(d.Platform) + text(d.Builder) + texts(d.Args...))
	w.WriteString(word64(uint64(len(d.Env))))
	for _, v := range d.Env {
		w.WriteString(text(v.Name) + text(v.Value))
	}
	return w.String()
}

// options are those that Nix 2.3 sends, as far as the version has them: by default
// no limits, and the same bytes each time that it is built.
func (a *ancient) options(repeats uint64) string {
	const maxSilent, timeout, maxLogSize, enforceSame = 0, 0, 0, 1
	options := word64(maxSilent) + word64(timeout)
	if a.minor >= 2 {
		options += word64(maxLogSize)
	}
	if a.minor >= 3 {
		options += word64(repeats) + word64(enforceSame)
	}
	return options
}

// fetch asks for the closure of the outputs and takes each path of it.
func (a *ancient) fetch(t *testing.T, d oldDerivation, input oldPath) {
	t.Helper()
	outputs, _ := d.OutputPaths()
	var names []string
	for _, p := range outputs {
		names = append(names, p.String())
	}
	a.send(t, word64(serveClosure), word64(0), texts(names...))
	closure := a.textList(t)
	if len(closure) != len(names)+1 {
		t.Errorf("the closure of %q is %q, want the input besides", names, closure)
	}
	sizes := a.pathInfos(t, closure, input)
	for _, p := range closure {
		a.send(t, word64(serveDump), text(p))
		nar := a.bytes(t, sizes[p])
		if p == input.name && string(nar) != input.nar {
			t.Errorf("%s came back with other bytes", p)
		}
		if p != input.name && !strings.Contains(string(nar), d.name) {
			t.Errorf("%s does not hold the name of its derivation: %q", p, nar)
		}
	}
	a.export(t, input)
}

// export fetches as clients did before there was a command for each path.
func (a *ancient) export(t *testing.T, p oldPath) {
	t.Helper()
	const unsigned = 0
	a.send(t, word64(serveExport), word64(unsigned), texts(p.name))
	if more := a.number(t); more != 1 {
		t.Fatalf("the export begins with %d", more)
	}
	if nar := a.bytes(t, uint64(len(p.nar))); string(nar) != p.nar {
		t.Errorf("%s was exported with other bytes", p.name)
	}
	if magic := a.number(t); magic != exportMagic {
		t.Fatalf("%#x stands behind an exported NAR", magic)
	}
	name, references := a.text(t), a.textList(t)
	a.text(t) // its deriver
	if signature, more := a.number(t), a.number(t); name != p.name || len(references)+int(signature+more) != 0 {
		t.Errorf("exported %s with references %q, signature %d, and then %d", name, references, signature, more)
	}
}

// pathInfos asks about paths and one that nobody has, and returns the sizes of
// their NARs.
func (a *ancient) pathInfos(t *testing.T, paths []string, input oldPath) map[string]uint64 {
	t.Helper()
	unknown := "/nix/store/00000000000000000000000000000000-nobody-has-this"
	a.send(t, word64(servePathInfos), texts(append([]string{unknown}, paths...)...))
	sizes := map[string]uint64{}
	for {
		p := a.text(t)
		if p == "" {
			break
		}
		a.text(t)     // its deriver
		a.textList(t) // its references
		a.number(t)   // size of a download
		sizes[p] = a.number(t)
		if a.minor >= 4 {
			if hash := a.text(t); !strings.HasPrefix(hash, "sha256:") {
				t.Errorf("the hash of %s is %q", p, hash)
			}
			a.text(t)     // its content address
			a.textList(t) // its signatures
		}
	}
	if len(sizes) != len(paths) || sizes[input.name] != uint64(len(input.nar)) {
		t.Errorf("asked about %q the proxy knows the sizes %v", paths, sizes)
	}
	return sizes
}

// The protocol's own words: numbers of eight bytes, little end first, and texts
// filled up with zeros to the next eighth byte.

func text(s string) string {
	return word64(uint64(len(s))) + s + strings.Repeat("\x00", -len(s)&7)
}

func texts(all ...string) string {
	list := word64(uint64(len(all)))
	for _, s := range all {
		list += text(s)
	}
	return list
}

func (a *ancient) send(t *testing.T, parts ...string) {
	t.Helper()
	if _, err := io.WriteString(a.to, strings.Join(parts, "")); err != nil {
		a.fail(t, err)
	}
}

func (a *ancient) bytes(t *testing.T, n uint64) []byte {
	t.Helper()
	const most = 16 << 20
	if n > most {
		a.fail(t, fmt.Errorf("%d bytes are announced", n))
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(a.from, b); err != nil {
		a.fail(t, err)
	}
	return b
}

func (a *ancient) number(t *testing.T) uint64 {
	t.Helper()
	return binary.LittleEndian.Uint64(a.bytes(t, 8))
}

func (a *ancient) text(t *testing.T) string {
	t.Helper()
	n := a.number(t)
	return string(a.bytes(t, n+-n&7)[:n])
}

func (a *ancient) textList(t *testing.T) []string {
	t.Helper()
	all := make([]string, 0, 8)
	for range a.number(t) {
		all = append(all, a.text(t))
	}
	return all
}

// fail tells what the session said before it broke.
func (a *ancient) fail(t *testing.T, err error) {
	t.Helper()
	a.session.Close()
	a.session.Wait()
	t.Fatalf("%v; standard error has:\n%s", err, a.said.String())
}
