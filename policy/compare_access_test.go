package policy

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// accessOf is a policy in which files say who may come in.
func (d dir) accessOf(name, keys, revoked string) string {
	d.write(name+".keys", keys, 0o644)
	d.write(name+".revoked", revoked, 0o644)
	return minimal + "revoked_keys: " + name + ".revoked\nprincipals: [{name: anna, role: full, authorized_keys: " + name + ".keys}]\n"
}

// Guards against certificates that come in or do not, and diff says another thing: it
// tells of each name, and of the order of lines of which the first counts.
func TestTheNamesOfAuthoritiesAreComparedOneByOne(t *testing.T) {
	d := newDir(t)
	ca := func(options, names string) string {
		return options + "cert-authority,principals=\"" + names + "\" " + authorizedLine("ca") + "\n"
	}
	of := "access %s principal anna can %s with certificates of authority " + Fingerprint(testKey("ca")) + " for %s"
	said := func(sign, can, name string) string {
		return strings.NewReplacer("%s principal", sign+" principal", "can %s", "can "+can, "for %s", "for "+name).Replace(of)
	}
	reads := `command="nix-store --serve",`
	order := "access ~ principal anna has its lines of authority " + Fingerprint(testKey("ca")) + " in another order: of a certificate with several names the first line counts that lets it in, here for "
	for _, c := range []struct{ old, next, want string }{
		{ca("", "a,b"), ca("", "b,a"), ""},
		{ca("", "a,b"), ca("", "a") + ca("", "b"), ""},
		{ca("", "a") + ca("", "b"), ca("", "b") + ca("", "a"), ""},
		{ca("", "a"), ca("", "c,a"), said("+", "log in", "c")},
		{ca("", "a,c"), ca("", "a"), said("-", "no longer log in", "c")},
		{ca("", "a"), ca(reads, "a"), said("-", "log in", "a") + " (always gets nix-store --serve); that was without restrictions"},
		{ca(reads, "a") + ca("", "b"), ca("", "b") + ca(reads, "a"), order + "b, a"},
		{ca(reads, "a") + ca("", "b"), ca("", "b,new") + ca(reads, "a"), said("+", "log in", "new") + "\n" + order + "b, a"},
	} {
		if got := d.compared(t, d.accessOf("old", c.old, ""), d.accessOf("next", c.next, "")); got != c.want {
			t.Errorf("%s to\n%sgot\n%s\nwant\n%s", c.old, c.next, got, c.want)
		}
	}
}

// Guards against a serial that is said to be free again while it is revoked on: ranges
// are compared by what is in them.
func TestRevokedSerialsAreComparedByWhatIsInThem(t *testing.T) {
	d := newDir(t)
	const all = "18446744073709551615"
	lost := func(text string) string {
		return "access - certificate with " + text + " is revoked and opens nothing"
	}
	free := func(text string) string { return "access + certificate with " + text + " is no longer revoked" }
	ca := " of authority " + Fingerprint(testKey("ca"))
	for _, c := range []struct{ old, next, want string }{
		{"serial: 7-9\n", "serial: 7\nserial: 8-9\n", ""},
		{"serial: 1-" + all + "\n", "serial: 1-5\nserial: 6-" + all + "\n", ""},
		{"serial: 7-9\n", "serial: 7-12\n", lost("serials 10-12")},
		{"serial: 7-12\n", "serial: 7\nserial: 12\n", free("serials 8-11")},
		{"serial: 7-9\n", "serial: 8-10\n", free("serial 7") + "\n" + lost("serial 10")},
		{"serial: 1-" + all + "\n", "serial: 5-" + all + "\n", free("serials 1-4")},
		{"", "serial: " + all + "\n", lost("serial " + all)},
		{"ca: " + authorizedLine("ca") + "\nserial: 7-9\n", "ca: " + authorizedLine("ca") + "\nserial: 8-9\n", free("serial 7" + ca)},
		{"serial: 7\n", "ca: " + authorizedLine("ca") + "\nserial: 7\n", free("serial 7") + "\n" + lost("serial 7"+ca)},
		{"ca: " + authorizedLine("ca") + "\nserial: 7\nid: a\n", "id: a\nserial: 7\n", lost(`id "a"`) + "\n" + lost("serial 7")},
		{"id: a\n", "id: a\nid: b\n", lost(`id "b"`)},
	} {
		if got := d.compared(t, d.accessOf("old", "", c.old), d.accessOf("next", "", c.next)); got != c.want {
			t.Errorf("%s to\n%sgot\n%s\nwant\n%s", c.old, c.next, got, c.want)
		}
	}
}

// Guards against another certificate of the proxy, or another rule, that diff takes for
// the same since what is printed of the two is.
func TestWhatIsCutInASentenceIsComparedWhole(t *testing.T) {
	d := newDir(t)
	names := strings.Split(strings.Repeat("proxy.example.org ", 9)+"last", " ")
	for what, change := range map[string]func(*ssh.Certificate){
		"its first moment": func(c *ssh.Certificate) { c.ValidAfter++ },
		"its last name":    func(c *ssh.Certificate) { c.ValidPrincipals = append(names[:9:9], "other") },
	} {
		base := func(c *ssh.Certificate) { c.ValidPrincipals, c.ValidAfter, c.ValidBefore = names, 1e9, 5e9 }
		old := hostCertificateOf(t, base)
		d.write("old.pub", old, 0o644)
		d.write("new.pub", hostCertificateOf(t, func(c *ssh.Certificate) { base(c); change(c) }), 0o644)
		policy := func(file string) string { return minimal + "ssh: {host_certificate: " + file + "}\n" }
		if got := d.compared(t, policy("old.pub"), policy("new.pub")); !strings.HasPrefix(got, "trust ~ the host key has another certificate: ") {
			t.Errorf("%s: got %q", what, got)
		}
		d.write("copy.pub", old, 0o644)
		if got := d.compared(t, policy("old.pub"), policy("copy.pub")); got != "" {
			t.Errorf("the same under another name: %s", got)
		}
	}
	need := func(end string) string {
		return minimal + builderText("    resources: {mem: 8}\n") + "scheduling: {needs: [{attribute: x, value: " + strings.Repeat("long", 30) + end + ", resources: {mem: 1}}]}\n"
	}
	if got := d.compared(t, need("a"), need("b")); strings.Count(got, "\n") != 1 || !strings.Contains(got, ": a new rule") || !strings.Contains(got, ": the rule is gone") {
		t.Errorf("rules: got %q", got)
	}
}

// Guards against a line that is wider than before and stands among what is merely
// otherwise.
func TestALineWithFewerOptionsIsAGain(t *testing.T) {
	d := newDir(t)
	line := func(options string) string { return strings.TrimSpace(options+" "+authorizedLine("anna")) + "\n" }
	const from, command, until = `from="192.0.2.1"`, `command="nix-store --serve"`, `expiry-time="20990101Z"`
	for _, c := range []struct{ old, next, sign string }{
		{from, "", "+"}, {from + "," + command, from, "+"}, {from + "," + command + "," + until, until, "+"},
		{"", from, "-"}, {from, from + "," + command, "-"}, {from + ",restrict", from, "+"},
		{from, command, "~"}, {from, `from="192.0.2.2"`, "~"}, {from + "," + command, `from="192.0.2.2"`, "~"},
		{`permitopen="b1:22"`, "", "+"}, {`permitopen="b1:22"`, `permitopen="none"`, "~"},
	} {
		got := d.compared(t, d.accessOf("old", line(c.old), ""), d.accessOf("next", line(c.next), ""))
		if !strings.HasPrefix(got, "access "+c.sign+" principal anna can log in with key ") || strings.Contains(got, "\n") {
			t.Errorf("%s to %s: got %s, want %s", c.old, c.next, got, c.sign)
		}
	}
}
