package policy

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func withKey(name string) string {
	return minimal + "principals: [{name: " + name + ", role: full, keys: [" + authorizedLine(name) + "]}]\n"
}

func lets(p *Policy, name string) bool {
	_, err := p.Identify(testKey(name), netip.MustParseAddr("192.0.2.1"))
	return err == nil
}

// Guards against a file with mistakes that closes the door for everybody, or opens
// it half.
func TestReloadKeepsTheOldPolicyOnMistakes(t *testing.T) {
	d := newDir(t)
	file := d.write("policy.yaml", withKey("anna"), 0o644)
	live, err := NewLive(file)
	if err != nil {
		t.Fatal(err)
	}
	before := live.Current()
	d.write("policy.yaml", withKey("otto")+"nonsense: 1\n", 0o644)
	if err := live.Reload(); err == nil || !strings.Contains(err.Error(), "policy.yaml:3:1: unknown key") {
		t.Errorf("got %v", err)
	}
	if live.Current() != before || !lets(live.Current(), "anna") || lets(live.Current(), "otto") {
		t.Error("the policy changed")
	}
	d.write("policy.yaml", withKey("otto"), 0o644)
	if err := live.Reload(); err != nil {
		t.Fatal(err)
	}
	if lets(live.Current(), "anna") || !lets(live.Current(), "otto") {
		t.Error("the policy did not change")
	}
	if !lets(before, "anna") || lets(before, "otto") {
		t.Error("who still has the old policy sees it change")
	}
}

// Guards against a removed key that goes on to work because the file with the rest
// is refused: a file of keys may become empty.
func TestTheLastKeyOfAFileCanBeRemoved(t *testing.T) {
	d := newDir(t)
	d.write("some.keys", authorizedLine("anna")+"\n", 0o644)
	live, err := NewLive(d.write("policy.yaml", minimal+"principals: [{name: anna, role: full, authorized_keys: some.keys}]\n", 0o644))
	if err != nil || !lets(live.Current(), "anna") {
		t.Fatalf("%v", err)
	}
	d.write("some.keys", "", 0o644)
	if err := live.Reload(); err != nil || lets(live.Current(), "anna") {
		t.Errorf("still in; %v", err)
	}
}

// Guards against a half-made policy that somebody can see; the race detector looks.
func TestReloadWhileOthersLook(t *testing.T) {
	d := newDir(t)
	live, err := NewLive(d.write("policy.yaml", withKey("anna"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if !lets(live.Current(), "anna") {
					t.Error("not let in")
				}
			}
		})
		wg.Go(func() {
			for range 10 {
				if err := live.Reload(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestNewLiveRefusesMistakes(t *testing.T) {
	if live, err := NewLive(newDir(t).write("policy.yaml", "x: 1\n", 0o644)); err == nil || live != nil {
		t.Errorf("got %v, %v", live, err)
	}
}

// Guards against changes that are taken and then do nothing, without a word.
func TestNeedsRestartNamesWhatDoesNotCountYet(t *testing.T) {
	d := newDir(t)
	before := d.load(t, withKey("anna"))
	after := d.load(t, strings.Replace(withKey("otto"), "lib", "cache", 1)+
		"listen: [\":2222\"]\nssh: {ciphers: [aes128-ctr]}\ncache: {size: 1GiB}\nlog: {level: debug}\nlimits: {nar_size: 1GiB}\n"+builderText(""))
	if got := before.NeedsRestart(after); !slices.Equal(got, []string{"listen", "state_dir", "ssh", "cache", "log"}) {
		t.Errorf("got %v", got)
	}
	if got := before.NeedsRestart(d.load(t, withKey("anna")+"admin: {socket: other.sock}\n")); !slices.Equal(got, []string{"admin.socket"}) {
		t.Errorf("got %v", got)
	}
	if got := before.NeedsRestart(d.load(t, withKey("anna")+"ssh: {max_sessions: 5}\n")); !slices.Equal(got, []string{"ssh"}) {
		t.Errorf("got %v", got)
	}
	if got := before.NeedsRestart(d.load(t, withKey("otto")+builderText("")+"admin: {users: [anna]}\nssh: {per_source_penalties: off, proxy_protocol: [10.0.0.1]}\n")); len(got) != 0 {
		t.Errorf("principals and builders count at once; got %v", got)
	}
}

// Guards against a reload that ends the connection of a certificate whose time went by
// since, as sshd does not, or that keeps one which the policy has taken away; and
// against a key whose line says that its time is over.
func TestStillLetsACertificateOutliveItsTimeAndNothingElse(t *testing.T) {
	d := newDir(t)
	authority := `cert-authority,principals="anna" ` + authorizedLine("ca")
	login := time.Now().Add(-2 * time.Hour)
	cert := certificateOf(t, func(c *ssh.Certificate) {
		c.ValidAfter, c.ValidBefore = uint64(login.Add(-time.Hour).Unix()), uint64(login.Add(time.Hour).Unix())
	})
	pol := d.certified(t, authority)
	if _, err := pol.Identify(cert, anywhere); err == nil {
		t.Error("a certificate whose time is over is let in")
	}
	if got, err := pol.Still(cert, anywhere, login); err != nil || got.Principal.Name != "anna" {
		t.Errorf("one that was shown in its time: %v", err)
	}
	if _, err := pol.Still(cert, anywhere, login.Add(90*time.Minute)); err == nil {
		t.Error("one that was shown too late stays")
	}
	if _, err := d.certified(t, `cert-authority,principals="otto" `+authorizedLine("ca")).Still(cert, anywhere, login); err == nil {
		t.Error("one whose name is gone stays")
	}
	over := `expiry-time="` + time.Now().Add(-time.Hour).UTC().Format("20060102150405Z") + `"`
	if _, err := d.certified(t, over+","+authority).Still(cert, anywhere, login); err == nil {
		t.Error("one whose authority's time is over stays")
	}
	if _, err := d.certified(t, over+" "+authorizedLine("anna")).Still(testKey("anna"), anywhere, login); err == nil {
		t.Error("a key whose time is over stays")
	}
}

// writerDisk is a disk on which somebody writes a file in place while it is read: it is
// empty at its first reads.
type writerDisk struct {
	realDisk
	file, text string
	empty      int // how many reads are left until it has its text
}

func (d *writerDisk) read(path string, limit int64) ([]byte, fs.FileMode, error) {
	text, mode, err := d.realDisk.read(path, limit)
	if path == d.file && d.empty > 0 {
		if d.empty--; d.empty == 0 {
			err = errors.Join(err, os.WriteFile(d.file, []byte(d.text), 0o644))
		} else {
			err = errors.Join(err, os.Truncate(d.file, 0), os.Chtimes(d.file, time.Time{}, time.Unix(int64(d.empty), 0)))
		}
	}
	return text, mode, err
}

// Guards against a file that is read in the moment in which it is written, so that those
// who are to be let in are not, or a list of revoked keys is empty; and against a load
// that waits for a file that is always written.
func TestFilesThatChangeWhileTheyAreReadAreReadAgain(t *testing.T) {
	d := newDir(t)
	text := minimal + "principals: [{name: anna, role: full, authorized_keys: some.keys}]\n"
	d.write("some.keys", authorizedLine("anna")+"\n", 0o644)
	live, err := NewLive(d.write("policy.yaml", text, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	for empty, want := range map[int]bool{1: true, 2: true, 1000: false} {
		d.write("some.keys", "", 0o644)
		live.disk = &writerDisk{file: d.path("some.keys"), text: authorizedLine("anna") + "\n", empty: empty}
		if err := live.Reload(); err != nil || lets(live.Current(), "anna") != want {
			t.Errorf("empty at the first %d reads: let in is %t, %v", empty, !want, err)
		}
	}
}
