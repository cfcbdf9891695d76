package policy

import (
	"encoding/base64"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
)

const (
	// hostKeyFile is where the front keeps the public half of its host key, in the
	// state directory.
	hostKeyFile     = "ssh_host_ed25519_key.pub"
	maxHostKeyBytes = 16 << 10

	// clientKeyFile is the usual place; clients that have their key elsewhere
	// change the line.
	clientKeyFile = "/root/.ssh/id_ed25519"

	// A client should send what it has: the proxy queues, says what each build
	// waits for, and starts the next in the moment that a slot is free.
	jobsPerSlot   = 4
	minClientJobs = 32
)

// paste prints the lines for clients: those of the machines file differ by domain.
func (t *description) paste(host string) {
	hostKey := t.hostKey()
	for _, domain := range t.pol.Domains {
		if len(t.pol.buildersOf(domain.Name)) == 0 || !t.pol.hasFull(domain.Name) {
			continue
		}
		t.line(0, "\nFor clients that build in domain %s, one line in /etc/nix/machines (%s is the client's own key):", domain.Name, clientKeyFile)
		t.line(1, "%s", t.pol.machine(domain.Name, host, hostKey))
	}
	if len(t.pol.Principals) == 0 {
		return
	}
	t.knownHosts(host, hostKey)
	t.substituters(host)
	t.sshConfig(host)
}

// machine returns the line of a machines file: the union of all builders of a
// domain.
func (p *Policy) machine(domain, host, hostKey string) string {
	systems, features, slots := p.offers(domain)
	return strings.Join([]string{
		storeURI(host), union(systems), clientKeyFile,
		strconv.Itoa(max(jobsPerSlot*slots, minClientJobs)), "1", union(features), "-", hostKeyField(hostKey),
	}, " ")
}

// offers are the systems, features and slots of all builders of a domain
// together. No single builder need have them all.
func (p *Policy) offers(domain string) (systems, features []string, slots int) {
	for _, b := range p.Builders {
		if !slices.Contains(b.Domains, domain) {
			continue
		}
		systems = slices.AppendSeq(systems, maps.Keys(b.Systems))
		features = append(append(features, b.Features...), b.MandatoryFeatures...)
		slots += b.MaxJobs
	}
	slices.Sort(systems)
	slices.Sort(features)
	return slices.Compact(systems), slices.Compact(features), slots
}

// hostKeyField is the last field of a line of a machines file.
func hostKeyField(hostKey string) string {
	if hostKey == "" {
		return "-"
	}
	return base64.StdEncoding.EncodeToString([]byte(hostKey))
}

// knownHosts prints the line for known_hosts, if the proxy has its key already.
func (t *description) knownHosts(host, hostKey string) {
	if hostKey == "" {
		t.line(0, "\nThe proxy makes its host key when it first serves; after that this check prints the line for known_hosts.")
		return
	}
	t.line(0, "\nFor all clients, one line in /root/.ssh/known_hosts:")
	t.line(1, "%s %s", host, hostKey)
	t.hostCertificate(host)
	t.fingerprint(hostKey)
}

// sshConfig prints how to reach a port that is not ssh's own: most versions of
// Nix take no port in a URL.
func (t *description) sshConfig(host string) {
	lines := t.pol.sshConfig(host)
	if lines == nil {
		return
	}
	t.line(0, "\nThe proxy does not listen on port %s, so clients need in /root/.ssh/config:", defaultSSHPort)
	for _, line := range lines {
		t.line(1, "%s", line)
	}
}

// sshConfig returns the lines for ssh_config, nil if none are needed.
func (p *Policy) sshConfig(host string) []string {
	port := p.port()
	if port == defaultSSHPort {
		return nil
	}
	return []string{"Host " + host, "  Port " + port, "  HostKeyAlias " + host}
}

// port is where clients should knock: ssh's own, or the first of the list.
func (p *Policy) port() string {
	var ports []string
	for _, address := range p.Listen {
		_, port, _ := net.SplitHostPort(address) // it was checked
		ports = append(ports, port)
	}
	if slices.Contains(ports, defaultSSHPort) {
		return defaultSSHPort
	}
	return ports[0]
}

// hostKey returns the proxy's public host key without its comment, "" if it has
// none yet or keeps it from us.
func (t *description) hostKey() string {
	key := hostKeyOf(realDisk{}, t.pol.StateDir)
	if key == nil {
		return ""
	}
	return keyLine(key)
}

// union joins what a field of a machines file lists.
func union(all []string) string {
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, ",")
}

// storeURI is what clients write for the proxy.
func storeURI(host string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return "ssh-ng://" + host
}
