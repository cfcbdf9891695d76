package policy

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"

	"golang.org/x/crypto/ssh"
	"gopkg.in/yaml.v3"
)

// maxBuilderJobs bounds max_jobs of a builder; the sum of all is no surprise then.
const maxBuilderJobs = 10_000

// The words of the policy file.
var (
	protocolWords = map[string]Protocol{"ssh-ng": ProtocolWorker, "ssh": ProtocolServe}
	contentWords  = map[string]Content{"accept": ContentAccept, "match": ContentMatch}
)

// builder reads one builder.
func (d *decoder) builder(n *yaml.Node) {
	b := Builder{MaxJobs: defaultMaxJobs, SpeedFactor: 1, Domains: []string{defaultDomainName}, Content: ContentAccept, Load: d.usualLoad}
	values := d.mapping(n, "builders.",
		setting{"name", func(n *yaml.Node) { b.Name, _ = d.checkedText(n, checkName) }},
		setting{"address", func(n *yaml.Node) { d.place(n, &b) }},
		setting{"protocol", overSSH(&b, func(n *yaml.Node) {
			b.Protocol, _ = choice(d, n, protocolWords)
		})},
		setting{"user", overSSH(&b, func(n *yaml.Node) { b.User, _ = d.checkedText(n, checkAccount) })},
		setting{"identity_file", overSSH(&b, func(n *yaml.Node) { b.IdentityFile = d.identityFile(n, &b) })},
		setting{"host_keys", overSSH(&b, func(n *yaml.Node) { b.HostKeys = d.hostKeys(n) })},
		setting{"known_hosts", overSSH(&b, func(n *yaml.Node) { b.KnownHosts = d.knownHosts(n, b.Address) })},
		setting{"systems", func(n *yaml.Node) { b.Systems = d.systems(n) }},
		setting{"features", func(n *yaml.Node) { b.Features = d.texts(n, checkWord) }},
		setting{"mandatory_features", func(n *yaml.Node) { b.MandatoryFeatures = d.texts(n, checkWord) }},
		setting{"max_jobs", func(n *yaml.Node) { b.MaxJobs, _ = d.count(n, 1, maxBuilderJobs) }},
		setting{"speed_factor", func(n *yaml.Node) { b.SpeedFactor, _ = d.speed(n) }},
		setting{"remote_program", overSSH(&b, func(n *yaml.Node) { d.remoteProgram(n, &b) })},
		setting{"domains", func(n *yaml.Node) { b.Domains = d.builderDomains(n) }},
		setting{"builder_content", func(n *yaml.Node) { b.Content = d.content(n) }},
		setting{"resources", func(n *yaml.Node) { b.Resources = d.builderResources(n) }},
		setting{"load", func(n *yaml.Node) { b.Load = d.load(n, "builders.load.", b.Load) }},
		setting{"wake", overSSH(&b, func(n *yaml.Node) { d.wake(n, &b.Wake) })},
		setting{"sleep", overSSH(&b, func(n *yaml.Node) { d.sleep(n, &b.Wake) })},
	)
	d.requireOfBuilder(n, values, &b)
	if at := values["name"]; at != nil && b.Name != "" {
		d.buildersSeen.add(d, "builder", b.Name, at)
	}
	d.refer(values["domains"], n, b.Domains)
	d.shared = append(d.shared, sharing{builder: len(d.pol.Builders), at: orNode(values["domains"], n)})
	d.pol.Builders = append(d.pol.Builders, b)
}

func (d *decoder) requireOfBuilder(n *yaml.Node, values map[string]*yaml.Node, b *Builder) {
	what := "a builder"
	if b.Name != "" {
		what = "builder " + quote(b.Name)
	}
	d.require(n, values, what,
		[2]string{"name", "name it: name: builder1"},
		[2]string{"address", "say where it is: address: builder1.example.org:22"},
		[2]string{"systems", "list what it builds for: systems: [x86_64-linux]"},
	)
	d.wakeful(values, what, b)
	if b.Socket != "" {
		d.refuseRemoteOnly(values, what)
		return
	}
	d.requireOfHost(n, values, what, b)
}

// requireOfHost notes what is missing to log in to a builder.
func (d *decoder) requireOfHost(n *yaml.Node, values map[string]*yaml.Node, what string, b *Builder) {
	d.lacks(n, values, what,
		[2]string{"user", "name the account on it that is in trusted-users of its nix.conf: user: nix"},
		[2]string{"identity_file", keygenHint(filepath.Join(d.dir, "builder-key"), b)},
	)
	switch {
	case values == nil:
	case values["host_keys"] == nil && values["known_hosts"] == nil:
		d.mistake(n, hostKeyHint(b.Address), "%s has neither %q nor %q: without one nobody can tell it from an impostor", what, "host_keys", "known_hosts")
	case values["host_keys"] != nil && values["known_hosts"] != nil:
		d.mistake(values["known_hosts"], "remove one of them", "%s has both %q and %q", what, "host_keys", "known_hosts")
	}
}

func orNode(n, otherwise *yaml.Node) *yaml.Node {
	if n != nil {
		return n
	}
	return otherwise
}

var accountGrammar = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,63}\$?$`)

func checkAccount(name string) error {
	if !accountGrammar.MatchString(name) {
		return refuse("write the name of an account on the builder, as nix", "%s is not the name of an account", quote(name))
	}
	return nil
}

var programGrammar = regexp.MustCompile(`^/[A-Za-z0-9_./+-]+$`)

// checkProgram keeps out whatever the shell of the builder would understand as
// more than a path.
func checkProgram(path string, protocol Protocol) error {
	if program := remotePrograms[protocol]; len(path) > 1024 || !programGrammar.MatchString(path) {
		return refuse("write the full path of "+program+" on the builder and nothing else, as /run/current-system/sw/bin/"+program,
			"%s is not the path of a program", quote(path))
	}
	return nil
}

// systems reads a list of systems, or a mapping of systems to their speed.
func (d *decoder) systems(n *yaml.Node) map[string]float64 {
	systems := map[string]float64{}
	if n.Kind == yaml.MappingNode {
		d.pairs(n, func(key, value *yaml.Node) {
			system, ok := d.checkedText(key, checkSystem)
			if speed, valid := d.speed(value); ok && valid {
				systems[system] = speed
			}
		})
	} else {
		for _, system := range d.texts(n, checkSystem) {
			systems[system] = 1
		}
	}
	if len(n.Content) == 0 && n.Kind != yaml.ScalarNode {
		d.mistake(n, "list what it builds for, as [x86_64-linux]", "no system is listed, so nothing can ever be built there")
	}
	return systems
}

func (d *decoder) builderDomains(n *yaml.Node) []string {
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.mistake(n, "name one, or remove the key to have [default]", "no domain is listed, so nobody may use the builder")
	}
	return d.texts(n, nil)
}

func (d *decoder) content(n *yaml.Node) Content {
	c, _ := choice(d, n, contentWords)
	return c
}

// identityFile reads the name of a private key and looks whether it can be used.
func (d *decoder) identityFile(n *yaml.Node, b *Builder) string {
	path, ok := d.keyFile(n)
	if !ok {
		return ""
	}
	if err := d.checkIdentity(path, b); err != nil {
		d.mistake(n, hintOf(err), "%v", err)
	}
	return path
}

func (d *decoder) hostKeys(n *yaml.Node) []ssh.PublicKey {
	var keys []ssh.PublicKey
	d.list(n, func(item *yaml.Node) {
		text, ok := d.text(item)
		if !ok {
			return
		}
		key, err := parseHostKey(text)
		if err != nil {
			d.mistake(item, hintOf(err), "%v", err)
			return
		}
		keys = append(keys, key)
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.mistake(n, hostKeyHint(""), "no host key is listed: nobody could tell the builder from an impostor")
	}
	return keys
}

// knownHosts reads the name of a known_hosts file and looks whether it knows the
// builder.
func (d *decoder) knownHosts(n *yaml.Node, address string) string {
	path, ok := d.keyFile(n)
	if !ok {
		return ""
	}
	if err := d.checkKnownHosts(path, address); err != nil {
		d.mistake(n, hintOf(err), "%v", err)
	}
	return path
}

func (d *decoder) checkKnownHosts(path, address string) error {
	_, mode, err := d.disk.read(path, maxKeysBytes)
	switch {
	case err != nil:
		return refuse(hostKeyHint(address), "known_hosts: %v", err)
	case mode&othersMayWrite != 0:
		return refuse("chmod o-w "+path, "everybody may write %s (mode %#o), and so replace host keys", path, mode)
	case address == "":
		return nil // that is a mistake of its own
	}
	types, err := d.disk.hostKeyTypes(path, address)
	if err != nil {
		return refuse("correct that file", "known_hosts: %v", err)
	}
	if len(types) == 0 {
		return refuse(hostKeyHint(address), "%s has no key of %s", path, address)
	}
	return nil
}

// hostKeyHint says how to get the host key of a builder; address may be "".
func hostKeyHint(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = "BUILDER", defaultSSHPort
	}
	return fmt.Sprintf("on the builder: cat /etc/ssh/ssh_host_ed25519_key.pub; or over a network that you trust: ssh-keyscan -t ed25519 -p %s %s", port, host)
}
