package policy

import (
	"cmp"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"gopkg.in/yaml.v3"
)

// settings reads the mapping that the whole file is.
func (d *decoder) settings(n *yaml.Node) {
	p := d.pol
	values := d.mapping(n, "",
		setting{"include", d.included},
		setting{"listen", func(n *yaml.Node) { p.Listen = d.listen(n) }},
		setting{"drain_timeout", func(n *yaml.Node) { d.durationInto(&p.DrainTimeout, n, 0, maxDrain) }},
		setting{"state_dir", func(n *yaml.Node) { p.StateDir, _ = d.path(n) }},
		setting{"ssh", d.ssh},
		setting{"cache", d.cache},
		setting{"limits", d.limits},
		setting{"log", d.log},
		setting{"commands", d.commands},
		setting{"trusted_public_keys", func(n *yaml.Node) { p.TrustedPublicKeys = d.trustedKeys(n) }},
		setting{"admin", d.admin},
		setting{"audit", d.audit},
		setting{"metrics", d.metrics},
		setting{"domains", d.domains},
		setting{"load", func(n *yaml.Node) { d.usualLoad = d.load(n, "load.", d.usualLoad) }},
		setting{"builders", func(n *yaml.Node) { d.list(n, d.builder) }},
		setting{"principals", func(n *yaml.Node) { d.list(n, d.principal) }},
		setting{"revoked_keys", d.revokedKeys},
		setting{"scheduling", d.scheduling},
		setting{"reload", d.reload},
		setting{"build_limits", func(n *yaml.Node) { d.rules(n, d.buildLimit) }},
	)
	d.lacks(n, values, "the file", // or those that it includes: no single one must have it
		[2]string{"state_dir", "name the directory for the host key and the cache: state_dir: /var/lib/nixbastion"})
	if p.Cache.SpoolReserve < 0 {
		p.Cache.SpoolReserve = p.Cache.Size / defaultReserveShare
	}
	if p.Admin.Socket == "" {
		p.Admin.Socket = filepath.Join(p.StateDir, defaultAdminSocket)
	}
	d.auditFile()
}

func (d *decoder) listen(n *yaml.Node) []string {
	all := d.texts(n, checkListen)
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.mistake(n, `name an address, as ":22"`, "there is nothing to listen on")
	}
	return all
}

// path reads the name of a file or directory. What is relative starts from the
// directory of the file that names it.
func (d *decoder) path(n *yaml.Node) (string, bool) {
	text, ok := d.text(n)
	if !ok {
		return "", false
	}
	full, err := fullPath(d.dirOf(n), text)
	if err = cmp.Or(notSecret(text), err, notForCredentials(text)); err != nil {
		d.mistake(n, hintOf(err), "%v", err)
		return full, false
	}
	d.fullPaths[n] = full
	return full, true
}

func (d *decoder) ssh(n *yaml.Node) {
	d.mapping(n, "ssh.", append(d.frontLimits(),
		setting{"ciphers", func(n *yaml.Node) { d.pol.SSH.Ciphers = d.ciphers(n) }},
		setting{"host_certificate", d.hostCertificate},
	)...)
}

// ciphers are those that the front can offer, the fastest first.
var ciphers = []string{
	ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305,
	ssh.CipherAES128CTR, ssh.CipherAES192CTR, ssh.CipherAES256CTR,
}

func (d *decoder) ciphers(n *yaml.Node) []string {
	all := d.texts(n, func(name string) error {
		if !slices.Contains(ciphers, name) {
			return refuse("known ciphers: "+strings.Join(ciphers, ", "), "unknown cipher %s", quote(name))
		}
		return nil
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.mistake(n, "remove the key, and the proxy chooses for each client", "no cipher is left to offer")
	}
	return all
}

func (d *decoder) cache(n *yaml.Node) {
	c := &d.pol.Cache
	values := d.mapping(n, "cache.",
		setting{"size", func(n *yaml.Node) { d.sizeInto(&c.Size, n, 1) }},
		setting{"spool_reserve", func(n *yaml.Node) { d.sizeInto(&c.SpoolReserve, n, 0) }},
		setting{"scrub_rate", func(n *yaml.Node) { d.sizeInto(&c.ScrubRate, n, 0) }},
	)
	if at := values["spool_reserve"]; at != nil && c.SpoolReserve >= c.Size {
		d.mistake(at, "a tenth of the size is usual", "spool_reserve (%s) must be less than the size of the cache (%s), of which it is a part",
			sizeText(c.SpoolReserve), sizeText(c.Size))
	}
}

func (d *decoder) sizeInto(to *int64, n *yaml.Node, least int64) {
	if bytes, ok := d.size(n, least); ok {
		*to = bytes
	}
}

func (d *decoder) limits(n *yaml.Node) {
	l := &d.pol.Limits
	d.mapping(n, "limits.",
		setting{"nar_size", func(n *yaml.Node) { d.sizeInto(&l.NarSize, n, 1<<10) }},
		setting{"build_log", func(n *yaml.Node) { d.sizeInto(&l.BuildLog, n, 1<<10) }},
		setting{"build_logs", func(n *yaml.Node) { d.sizeInto(&l.BuildLogs, n, 0) }},
		setting{"build_history", func(n *yaml.Node) {
			if count, ok := d.count(n, 0, maxHistory); ok {
				l.BuildHistory = count
			}
		}},
	)
}

// maxHistory bounds what is kept in memory of builds that have ended, to some 50 MiB.
const maxHistory = 50_000

func (d *decoder) log(n *yaml.Node) {
	l := &d.pol.Log
	d.mapping(n, "log.",
		setting{"level", func(n *yaml.Node) {
			l.Level, _ = choice(d, n, map[string]slog.Level{
				"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
			})
		}},
		setting{"format", func(n *yaml.Node) {
			l.Format, _ = choice(d, n, map[string]string{"json": "json", "text": "text"})
		}},
	)
}

// shareWords are those of the policy file.
var shareWords = map[string]Share{"none": ShareNone, "public": SharePublic}

// domains adds those of the file to the one that is always there.
func (d *decoder) domains(n *yaml.Node) {
	d.list(n, func(item *yaml.Node) {
		d.domain(item)
	})
}

func (d *decoder) domain(n *yaml.Node) {
	var dom Domain
	var mode Signing
	values := d.mapping(n, "domains.",
		setting{"name", func(n *yaml.Node) { dom.Name, _ = d.checkedText(n, checkName) }},
		setting{"signing_keys", func(n *yaml.Node) { dom.SigningKeys = d.signingKeys(n, dom.Name) }},
		setting{"sign", func(n *yaml.Node) { mode, _ = choice(d, n, signingWords) }},
		setting{"share", func(n *yaml.Node) {
			dom.Share, _ = choice(d, n, shareWords)
		}},
	)
	d.require(n, values, "a domain", [2]string{"name", "name it: - name: ci"})
	d.signing(values, &dom, mode)
	d.addDomain(dom, values["name"])
}

// addDomain notes a domain whose name stands at a node. That of the name default
// is there already and gets its settings.
func (d *decoder) addDomain(domain Domain, at *yaml.Node) {
	if domain.Name == "" || !d.domainsSeen.add(d, "domain", domain.Name, at) {
		return
	}
	if known := d.pol.DomainNamed(domain.Name); known != nil { // the one that is always there
		*known = domain
		return
	}
	d.pol.Domains = append(d.pol.Domains, domain)
}
