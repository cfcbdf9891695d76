package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/docs"
	"nixbastion/internal/testbed"
)

// What docs/first-ten-minutes.md says is done as it stands there, on real hosts, by
// somebody who knows nothing else. Guards against a beginning that does not work.
func TestTheFirstTenMinutes(t *testing.T) {
	page, err := os.ReadFile("../../docs/first-ten-minutes.md")
	if err != nil {
		t.Fatal(err)
	}
	bed := testbed.ForTest(t)
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "nix", Binds: map[string]string{"/usr/local/bin/nixbastion": os.Getenv("NIXBASTION_BIN")}},
		testbed.HostSpec{Name: "builder1", Kind: testbed.Builder, MaxJobs: 4,
			SSHD: []string{"AuthorizedKeysFile .ssh/authorized_keys"}},
		testbed.HostSpec{Name: "client", Kind: testbed.Client})
	r := pageReader{t: t, hosts: map[string]*testbed.Host{}, said: map[string]string{}}
	for _, host := range hosts {
		r.hosts[host.Name()] = host
	}
	// The bed keeps the host keys of its hosts elsewhere.
	if err := r.hosts["builder1"].WriteFile(t.Context(), "/etc/ssh/ssh_host_ed25519_key.pub", []byte(bed.HostKey("builder1").AuthorizedLine()+"\n")); err != nil {
		t.Fatal(err)
	}
	for _, b := range docs.Blocks(string(page)) {
		if b.Has("on") {
			r.follow(b)
		}
	}
	if r.ran < 15 {
		t.Errorf("only %d commands were run", r.ran)
	}
}

// A pageReader does what a page says.
type pageReader struct {
	t     *testing.T
	hosts map[string]*testbed.Host
	said  map[string]string // words of the page, and what they stand for
	ran   int
}

// place makes what the page says fit this bed, whose hosts have short names and the
// machine's own system.
func (r *pageReader) place(text string) string {
	for word, value := range r.said {
		text = strings.ReplaceAll(text, word, value)
	}
	return strings.NewReplacer(".example.org", "", "x86_64-linux", testbed.NativeSystem).Replace(text)
}

func (r *pageReader) follow(b docs.Block) {
	r.t.Helper()
	host := r.hosts[b.Words["on"]]
	if host == nil {
		r.t.Fatalf("line %d: there is no host %s", b.Line, b.Words["on"])
	}
	if b.Has("file") {
		if err := host.WriteFile(r.t.Context(), b.Words["file"], []byte(r.place(b.Text))); err != nil {
			r.t.Fatal(err)
		}
		return
	}
	if b.Kind == "sh" {
		r.ran++
		host.MustShell(r.t, "cd "+sourceFolder+" && set -e\n"+r.place(b.Text))
		return
	}
	steps := b.Steps()
	for i, step := range steps {
		r.ran++
		command := r.place(step.Command)
		if b.Has("background") && i == len(steps)-1 {
			r.begin(host, command)
			return
		}
		res, err := host.Shell(r.t.Context(), "{ "+command+"\n} 2>&1")
		if err != nil {
			r.t.Fatal(err)
		}
		step.Output = r.place(step.Output)
		if res.Status != 0 || !step.Prints(res.Stdout) {
			r.t.Fatalf("line %d: %s\nends with status %d and prints\n%s", step.Line, command, res.Status, res.Stdout)
		}
		if word := b.Words["gives"]; word != "" && i == len(steps)-1 {
			r.said[word] = strings.TrimSpace(res.Stdout)
		}
	}
}

// begin starts what goes on, and waits until it serves.
func (r *pageReader) begin(host *testbed.Host, command string) {
	r.t.Helper()
	cmd := host.Command(r.t.Context(), "sh", "-c", "exec "+command)
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if res, err := host.Shell(r.t.Context(), "/usr/local/bin/nixbastion status"); err == nil && res.Status == 0 && strings.Contains(res.Stdout, "up") {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s does not serve", command)
		}
	}
}
