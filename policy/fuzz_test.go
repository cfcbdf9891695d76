package policy

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
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

func (f fakeDisk) secret(path string, limit int64) ([]byte, secretFile, error) {
	text, mode, err := f.read(path, limit)
	return text, secretFile{mode: mode}, err
}

// list has the files that begin with the name of a directory.
func (f fakeDisk) list(path string, _ int) ([]string, fs.FileMode, error) {
	var names []string
	for name := range f {
		if rest, inside := strings.CutPrefix(name, filepath.Base(path)+"/"); inside {
			names = append(names, rest)
		}
	}
	return names, 0o755, nil
}

func (fakeDisk) owner(string) int { return 0 }

func (f fakeDisk) hostKeyTypes(string, string) ([]string, error) {
	return []string{ssh.KeyAlgoED25519}, nil
}

// Whatever stands before a key, reading it ends with a refusal that helps or with
// rights that are no wider than those of a line without options.
func FuzzKeyOptions(f *testing.F) {
	for _, options := range []string{
		"", "restrict,port-forwarding", `from="10.0.0.0/8,!10.1.*"`, `expiry-time="20300102Z"`, `command="/x/nix-store --serve --write"`,
		`permitopen="none",permitopen="[::1]:*"`, `cert-authority,principals="a,b"`, `command="\"",from=""`, `no-touch-required,environment="A=\"b,c\""`,
	} {
		f.Add(options)
	}
	f.Fuzz(func(t *testing.T, options string) {
		a, err := parseAuthorized(options + " " + authorizedLine("anna"))
		if err != nil {
			if hintOf(err) == "" || strings.ContainsAny(err.Error(), "\r\n\x1b\x00") {
				t.Fatalf("refusal without form: %q", err)
			}
			return
		}
		checkOptions(t, &a.keyOptions)
		if again, err := parseAuthorized(options + " " + authorizedLine("anna")); err != nil || !reflect.DeepEqual(a, again) {
			t.Fatalf("read again: %+v, %v", again, err)
		}
	})
}

func checkOptions(t *testing.T, o *keyOptions) {
	if o.authority != (len(o.principals) > 0) {
		t.Fatalf("authority without names, or names without authority: %+v", o)
	}
	if command, ok := forcedCommand(o.command); o.command != "" && (!ok || command != o.command) {
		t.Fatalf("command %q", o.command)
	}
	for _, target := range o.permitOpen {
		if target.Builder != "" || target.isEverywhere() || strings.Contains(target.Host, "*") || target.Net.IsValid() && !target.Net.IsSingleIP() {
			t.Fatalf("target %+v", target)
		}
	}
	if o.from != nil && len(o.from) == 0 {
		t.Fatal("from nowhere, which is taken for anywhere")
	}
}

// Whatever a file of revocations has, every line of it revokes something or is
// refused: none is passed over.
func FuzzRevocations(f *testing.F) {
	for _, text := range []string{
		authorizedLine("anna") + "\n# x\nSHA256:b/6MdiIy2Ov7AXmepRKUZvL2gVyNy5d2cpbl+H0yEac\n", "serial: 1-0x20\nserial: 7 # x\nid: a b\n",
		"ca: " + authorizedLine("ca") + "\nserial: 1\n", "key: " + authorizedLine("anna") + " comment # x", "hash: SHA256:x\nserial: 18446744073709551615\n",
		"serial: 1-18446744073709551615\nserial: 5\n", "#\n\r\n ", "SSHKRL\n\x00", "# hash SHA1:x",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d := newDecoder("policy.yaml", fakeDisk{})
		r := d.revocations("revoked", text)
		for raw := range bytes.Lines(text) {
			checkRevocation(t, strings.TrimSpace(string(raw)))
		}
		for _, m := range d.mistakes.List {
			if m.Hint == "" || m.Line < 1 || strings.ContainsAny(m.Text, "\r\n\x1b\x00") {
				t.Fatalf("mistake without form: %+v", m)
			}
		}
		checkSerials(t, &r.certificates)
		for _, certificates := range r.byAuthority {
			checkSerials(t, certificates)
		}
	})
}

// checkRevocation holds that a line by itself revokes something, is refused, or is
// a comment.
func checkRevocation(t *testing.T, line string) {
	r := &revocationReader{list: newRevocations()}
	r.of = &r.list.certificates
	if err := r.line(line); err == nil && r.list.isEmpty() && line != "" && line[0] != '#' {
		t.Fatalf("%q revokes nothing", line)
	}
}

func (r *revocations) isEmpty() bool {
	return len(r.keys) == 0 && len(r.certificates.serials) == 0 && len(r.certificates.ids) == 0 && len(r.byAuthority) == 0
}

// checkSerials holds that ranges are in order, apart, and found at both ends.
func checkSerials(t *testing.T, r *revokedCertificates) {
	for i, s := range r.serials {
		if s.first == 0 || s.last < s.first || i > 0 && s.first <= r.serials[i-1].last {
			t.Fatalf("serials %v", r.serials)
		}
		if !r.hasSerial(s.first) || !r.hasSerial(s.last) || r.hasSerial(0) {
			t.Fatalf("serials %v are not found", r.serials)
		}
	}
}

// Whatever an authority has signed, a certificate is refused or opens no more
// than its line.
func FuzzCertificateOptions(f *testing.F) {
	for _, c := range [][3]string{
		{"anna", "force-command", "nix-daemon --stdio"}, {"anna", "source-address", "192.0.2.0/24,::1"}, {"anna", "", ""}, {"", "x", "y"}, {"anna", "verify-required", ""},
	} {
		f.Add(c[0], c[1], c[2])
	}
	pol := newDir(f).certified(f, `command="nix-daemon --stdio",cert-authority,principals="anna" `+authorizedLine("ca"))
	f.Fuzz(func(t *testing.T, name, option, value string) {
		cert := certificateOf(t, func(c *ssh.Certificate) {
			c.ValidPrincipals = []string{name}
			if option != "" {
				c.CriticalOptions[option] = value
			}
		})
		access, err := pol.Identify(cert, anywhere)
		if err != nil {
			return
		}
		if known := option == "" || option == "force-command" || option == "source-address"; !known || name != "anna" || access.Command != "nix-daemon --stdio" {
			t.Fatalf("%q with %q=%q opens %+v", name, option, value, access)
		}
	})
}

// Whatever a file has, reading it ends with a policy or with mistakes that have a
// form, and what was accepted can be described, lets no stranger in, passes the schema
// for editors, and prints as a policy that is the same.
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
	f.Add([]byte(newDir(f).whole()))
	f.Add([]byte("include: [policy.d, more.yaml]\n" + minimal))
	disk := fakeDisk{
		"builder-key": privatePEM(testPrivateKey("builder")), "known_hosts": "b1 " + authorizedLine("b1"),
		"revoked_keys": "serial: 7\n" + authorizedLine("gone"), "ssh_host_ed25519_key-cert.pub": hostCertificateOf(f, nil),
		"runners.keys": authorizedLine("runner"), "more.keys": "nonsense\n" + authorizedLine("more"),
		"more.yaml": "log: {level: warn}\n", "policy.d/a.yaml": "principals: [{name: a, role: read, authorized_keys: runners.keys}]\n", "a.yaml": "log: {format: text}\n",
		"default-1.secret": signingKeyText("default-1"), "ci-1.secret": signingKeyText("ci-1"), "ci-2.secret": signingKeyText("ci-2"),
	}
	schema := compiledSchema(f)
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
		if err := schema.Validate(asJSON(t, string(text))); err != nil {
			t.Fatalf("the schema refuses what loads: %v", err)
		}
		checkPrint(t, text, pol, disk)
	})
}

// checkPrint holds that what is printed loads to the same policy.
func checkPrint(t *testing.T, text []byte, pol *Policy, disk disk) {
	d := newDecoder("policy.yaml", disk)
	d.decode(text)
	again, err := parse("policy.yaml", []byte(d.print()), disk)
	pol.Included = nil // it is in one piece now
	if err == nil {
		again.FileHash = pol.FileHash // of other bytes
	}
	if err != nil || !reflect.DeepEqual(again, pol) {
		t.Fatalf("printed\n%s\nwhich is %+v, %v", d.print(), again, err)
	}
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
	checkSigners(t, pol)
	checkScheduling(t, pol)
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

// checkScheduling holds that what was accepted can be had: a resource that somebody
// needs is there, and every rule says something.
func checkScheduling(t *testing.T, pol *Policy) {
	s := &pol.Scheduling
	if s.Attempts < 1 || s.StarveAfter <= 0 || s.HungAfter <= 0 || s.StartupGrace < 0 || s.Linger < 0 || s.FeedAheadLimit < 1 {
		t.Fatalf("scheduling %+v", s)
	}
	for _, rule := range s.Needs {
		if rule.Feature+rule.Name+rule.Attribute == "" || len(rule.Resources) == 0 && rule.AmountOf == "" || rule.AmountOf != "" && pol.mostOf(rule.AmountOf) == 0 {
			t.Fatalf("need %+v", rule)
		}
		for resource, amount := range rule.Resources {
			if amount < 1 || amount > pol.mostOf(resource) {
				t.Fatalf("need %+v", rule)
			}
		}
	}
	for _, l := range pol.BuildLimits {
		if l.MaxSilent < 0 || l.Timeout < 0 || l.MaxLogSize < 0 || l.Cores < 0 || l.MaxSilent == 0 && l.Timeout == 0 && l.MaxLogSize == 0 && l.Cores == 0 {
			t.Fatalf("limit %+v", l)
		}
	}
	for _, q := range pol.Principals {
		if q.Weight <= 0 || q.Weight > maxWeight {
			t.Fatalf("principal %+v", q)
		}
	}
	for _, b := range pol.Builders {
		if l := b.Load; l.Every <= 0 || l.MaxLoad < 0 || l.MaxPressure < 0 || l.MinMemory < 0 || l.MinDisk < 0 {
			t.Fatalf("builder %+v", b)
		}
		if w := b.Wake; (len(w.Command) > 0) != (w.Timeout > 0) || (len(w.Sleep) > 0) != (w.After > 0) || len(w.Sleep) > 0 && len(w.Command) == 0 {
			t.Fatalf("builder %+v", b)
		}
	}
}

// checkSigners holds that a domain signs with keys of its own or says that it does
// not sign.
func checkSigners(t *testing.T, pol *Policy) {
	owner := map[string]string{}
	for _, dom := range pol.Domains {
		if (len(dom.Signers()) > 0) != (dom.SignersName() != "") || len(dom.SigningKeys) == 0 && dom.Sign != SignNone {
			t.Fatalf("domain %+v", dom)
		}
		for _, key := range dom.SigningKeys {
			if _, taken := owner[key.Name()]; taken {
				t.Fatalf("two keys %s", key.Name())
			}
			owner[key.Name()] = dom.Name
		}
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
		if target.Port == 0 && target.isEverywhere() || target.Builder != "" && pol.BuilderNamed(target.Builder) == nil {
			t.Fatalf("target %+v", target)
		}
	}
}
