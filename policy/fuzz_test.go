package policy

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/crypto/ssh"
)

// fakeDisk has the same files whatever the machine has.
type fakeDisk map[string]string

func (f fakeDisk) read(path string, _ int64) ([]byte, fs.FileMode, error) {
	text, ok := f[filepath.Base(path)]
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return []byte(text), 0o600, nil
}

func (f fakeDisk) hostKeyTypes(string, string) ([]string, error) {
	return []string{ssh.KeyAlgoED25519}, nil
}

// Whatever a file has, reading it ends with a policy or with mistakes that have a
// form, and what was accepted can be described and lets no stranger in.
func FuzzLoad(f *testing.F) {
	samples, _ := filepath.Glob("testdata/invalid/*.txtar")
	for _, sample := range samples {
		archive, err := txtar.ParseFile(sample)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(archive.Files[0].Data)
	}
	text, err := os.ReadFile("../config.example.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(commentedOut.ReplaceAll(text, []byte("$1$2")))
	disk := fakeDisk{
		"builder-key": privatePEM(testPrivateKey("builder")), "known_hosts": "b1 " + authorizedLine("b1"),
		"runners.keys": authorizedLine("runner"), "more.keys": "nonsense\n" + authorizedLine("more"),
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		pol, err := parse("policy.yaml", text, disk)
		if err != nil {
			if pol != nil {
				t.Fatal("a policy and an error")
			}
			for _, m := range err.(*Mistakes).List {
				if m.Text == "" || m.Hint == "" || strings.ContainsAny(m.Text+m.String()[len(m.File):], "\r\x1b\x00") {
					t.Fatalf("mistake without form: %+v", m)
				}
			}
			return
		}
		checkAccepted(t, pol)
	})
}

func checkAccepted(t *testing.T, pol *Policy) {
	if err := pol.Describe(&bytes.Buffer{}, "proxy"); err != nil {
		t.Fatal(err)
	}
	for _, q := range pol.Principals {
		if q.Role != RoleFull && q.Role != RoleRead || q.Name == "" || q.Domain == "" {
			t.Fatalf("principal %+v", q)
		}
	}
	for _, q := range pol.Principals {
		checkJump(t, pol, q)
	}
	for _, b := range pol.Builders {
		if b.Socket != "" {
			checkLocal(t, b)
			continue
		}
		if len(b.HostKeys) == 0 && b.KnownHosts == "" {
			t.Fatalf("builder without host keys: %+v", b)
		}
		if b.MaxJobs < 1 || b.SpeedFactor <= 0 || len(b.Systems) == 0 || len(b.Domains) == 0 || b.IdentityFile == "" {
			t.Fatalf("builder %+v", b)
		}
	}
	if pol.StateDir == "" || len(pol.Listen) == 0 || pol.Cache.Size <= pol.Cache.SpoolReserve || pol.Cache.SpoolReserve < 0 {
		t.Fatalf("policy %+v", pol)
	}
}

func checkLocal(t *testing.T, b Builder) {
	if b.Address != "" || b.User != "" || b.IdentityFile != "" || b.RemoteProgram != "" || b.Protocol != ProtocolWorker || !filepath.IsAbs(b.Socket) {
		t.Fatalf("builder %+v", b)
	}
}

// checkJump holds that what was accepted reads the same again and opens no whole
// network.
func checkJump(t *testing.T, pol *Policy, q Principal) {
	for _, target := range q.Jump {
		again, err := parseJump(target.String())
		if err != nil || again != target {
			t.Fatalf("%+v is written %s, which is %+v, %v", target, target, again, err)
		}
		if target.Port == 0 && target.isEverywhere() || target.Builder != "" && pol.builderNamed(target.Builder) == nil {
			t.Fatalf("target %+v", target)
		}
	}
}
