package policy

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh/knownhosts"
)

// Guards against files that ssh reads and the check refuses, or that have nothing
// to tell a builder by and pass.
func TestKnownHostsKnowABuilderInEveryWay(t *testing.T) {
	key := authorizedLine("b1")
	hashed := knownhosts.HashHostname("b1.example.org")
	hashedPort := knownhosts.HashHostname("[b1.example.org]:2222")
	for _, c := range []struct {
		address, text string
		known         bool
	}{
		{"b1.example.org", hashed + " " + key, true},
		{"b2.example.org", hashed + " " + key, false},
		{`"b1.example.org:2222"`, hashedPort + " " + key, true},
		{"b1.example.org", "@cert-authority *.example.org " + key, true},
		{"b1.example.org", "@cert-authority\tb1.example.org " + key, true},
		{"b1.example.com", "@cert-authority *.example.org " + key, false},
		{`"b1.example.org:2222"`, "@cert-authority [b1.example.org]:2222 " + key, true},
		{`"b1.example.org:2222"`, "@cert-authority *.example.org " + key, true},
		{"b1.example.org", "@revoked * " + authorizedLine("stolen") + "\nb1.example.org " + key, true},
		{"b1.example.org", "@revoked b1.example.org " + key, false},
		{"b1.example.org", "# b1.example.org " + key, false},
		{"b1.example.org", "*.example.org,!b1.example.org " + key, false},
		{"192.0.2.7", "192.0.2.7 " + key, true},
		{`"[2001:db8::1]:2222"`, "[2001:db8::1]:2222 " + key, true},
		{`"2001:db8::1"`, "2001:db8::1 " + key, true},
	} {
		d := newDir(t)
		d.write("known_hosts", c.text+"\n", 0o644)
		text := strings.Replace(builderText(""), "host_keys: ["+key+"]", "known_hosts: known_hosts", 1)
		_, err := Load(d.write("policy.yaml", minimal+strings.Replace(text, "address: b1.example.org", "address: "+c.address, 1), 0o644))
		if (err == nil) != c.known {
			t.Errorf("%s in %q: %v", c.address, c.text, err)
		}
	}
}
