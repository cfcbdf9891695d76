package proxy

import (
	"errors"
	"net/netip"
	"testing"

	"nixbastion/policy"
)

// yard is a policy with builders for jumps.
var yard = &policy.Policy{Builders: []policy.Builder{
	{Name: "builder1", Address: "builder1.example.org:22", Domains: []string{"default"}},
	{Name: "Odd", Address: "192.0.2.9:2222", Domains: []string{"default"}},
	{Name: "odd", Address: "192.0.2.10:22", Domains: []string{"default"}},
	{Name: "foreign", Address: "[2001:db8::5]:22", Domains: []string{"other"}},
	{Name: "here", Address: "127.0.0.1:31022", Domains: []string{"default"}},
	{Name: "local", Socket: "/nix/var/nix/daemon-socket/socket", Address: "192.0.2.66:22", Domains: []string{"default"}},
	{Name: "2130706433", Address: "number.example.org:22", Domains: []string{"default"}},
}}

func onBuilder(name string) policy.JumpTarget { return policy.JumpTarget{Builder: name} }

func onHost(pattern string, port uint16) policy.JumpTarget {
	return policy.JumpTarget{Host: pattern, Port: port}
}

func onNet(prefix string, port uint16) policy.JumpTarget {
	return policy.JumpTarget{Net: netip.MustParsePrefix(prefix), Port: port}
}

func accessTo(list ...policy.JumpTarget) *policy.Access {
	return &policy.Access{Principal: &policy.Principal{Name: "alice", Domain: "default", Jump: list}}
}

// leads is where a jump leads, or "" if it is refused as it should be.
func leads(t *testing.T, access *policy.Access, host string, port uint32) string {
	t.Helper()
	g, err := goalOf(yard, access, host, port)
	if no := (*JumpRefusal)(nil); err != nil && !errors.As(err, &no) {
		t.Errorf("%q port %d: %v is no refusal", host, port, err)
	}
	switch {
	case err != nil:
		return ""
	case g.addr.IsValid():
		return netip.AddrPortFrom(g.addr, g.port).String()
	}
	return g.host + ":" + netip.AddrPortFrom(netip.IPv4Unspecified(), g.port).String()[len("0.0.0.0:"):]
}

type wish struct {
	host string
	port uint32
	want string // where it leads, "" if nowhere
}

func wantLeads(t *testing.T, access *policy.Access, wishes ...wish) {
	t.Helper()
	for _, w := range wishes {
		if got := leads(t, access, w.host, w.port); got != w.want {
			t.Errorf("%q port %d leads to %q, want %q", w.host, w.port, got, w.want)
		}
	}
}

// Guards against a bastion that is open because nobody said that it is closed.
func TestNothingIsReachedThatIsNotListed(t *testing.T) {
	for _, host := range append([]string{"builder1", "builder1.example.org", "local", "192.0.2.9", "localhost"}, hostileHosts...) {
		wantLeads(t, accessTo(), wish{host, 22, ""})
	}
	everything := []policy.JumpTarget{onBuilder("builder1"), onHost("*.example.org", 22), onNet("192.0.2.0/24", 22)}
	wantLeads(t, accessTo(everything...),
		wish{"foreign", 22, ""}, wish{"2001:db8::5", 22, ""}, wish{"example.org", 22, ""}, wish{"example.com", 22, ""}, wish{"192.0.3.1", 22, ""})
	closed := accessTo(everything...)
	closed.NoJump = true
	wantLeads(t, closed, wish{"builder1", 22, ""}, wish{"git.example.org", 22, ""}, wish{"192.0.2.9", 22, ""})
}

// Guards against `ssh -J PROXY builder1` that goes anywhere else than to the
// address in the policy: clients ask for port 22 where they were told none.
func TestListedBuilderIsReachedByName(t *testing.T) {
	access := accessTo(onBuilder("builder1"), onBuilder("Odd"), onBuilder("foreign"), onBuilder("local"))
	wantLeads(t, access,
		wish{"builder1", 22, "builder1.example.org:22"}, wish{"BUILDER1", 22, "builder1.example.org:22"},
		wish{"builder1", 2222, ""}, wish{"builder1", 80, ""}, wish{"builder1", 0, ""}, wish{"builder1", 65558, ""},
		wish{"Odd", 22, "192.0.2.9:2222"}, wish{"odd", 22, "192.0.2.9:2222"}, wish{"odd", 2222, "192.0.2.9:2222"}, wish{"odd", 23, ""},
		wish{"odd", 65536 + 2222, ""},
		wish{"foreign", 22, "[2001:db8::5]:22"}, // listed, so its domain does not matter
		wish{"local", 22, ""},
		// The name is listed, not the address behind it.
		wish{"builder1.example.org", 22, ""}, wish{"192.0.2.9", 2222, ""},
	)
	wantLeads(t, accessTo(onBuilder("Odd"), onBuilder("odd")), wish{"Odd", 22, "192.0.2.9:2222"}, wish{"odd", 22, "192.0.2.10:22"})
	// A port of its own beside the builder's, should a list have one.
	other := accessTo(policy.JumpTarget{Builder: "Odd", Port: 80})
	wantLeads(t, other, wish{"odd", 80, "192.0.2.9:80"}, wish{"odd", 22, ""}, wish{"odd", 2222, ""})
	own := accessTo(policy.JumpTarget{Builder: "Odd", Port: 2222})
	wantLeads(t, own, wish{"odd", 22, "192.0.2.9:2222"}, wish{"odd", 2222, "192.0.2.9:2222"})
}

// Guards against a pattern or a network that opens builders by their names, whose
// addresses may be anywhere.
func TestPatternsDoNotOpenBuilders(t *testing.T) {
	wantLeads(t, accessTo(onHost("*", 22), onNet("0.0.0.0/0", 22)),
		wish{"builder1", 22, "builder1:22"}, // a host of that name, if there is one
		wish{"local", 22, "local:22"},
		wish{"foreign", 22, "foreign:22"})
}

// Guards against a number that is taken for an address because a builder is called
// so, and the other way round.
func TestBuilderWhoseNameIsANumber(t *testing.T) {
	wantLeads(t, accessTo(onBuilder("2130706433")), wish{"2130706433", 22, "number.example.org:22"})
	wantLeads(t, accessTo(onNet("127.0.0.0/8", 22), onHost("*", 22)), wish{"2130706433", 22, ""})
}

// Guards against patterns that match more than they say.
func TestPatternsMatchWholeLabels(t *testing.T) {
	access := accessTo(onHost("*.example.org", 22), onHost("git.example.com", 0), onHost("a.*.c", 22), onNet("192.0.2.0/25", 0), onNet("2001:db8::/32", 443))
	wantLeads(t, access,
		wish{"git.example.org", 22, "git.example.org:22"}, wish{"GIT.Example.ORG", 22, "git.example.org:22"}, wish{"git.example.org", 2222, ""},
		wish{"a.b.example.org", 22, ""}, wish{"example.org", 22, ""}, wish{".example.org", 22, ""}, wish{"gitxexample.org", 22, ""},
		wish{"git.example.org.evil.com", 22, ""}, wish{"git.example.org.", 22, ""}, wish{"*.example.org", 22, ""},
		wish{"git.example.com", 22, "git.example.com:22"}, wish{"git.example.com", 65535, "git.example.com:65535"}, wish{"hub.example.com", 22, ""},
		wish{"a.b.c", 22, "a.b.c:22"}, wish{"a.c", 22, ""}, wish{"a.b.b.c", 22, ""},
		wish{"192.0.2.127", 9, "192.0.2.127:9"}, wish{"192.0.2.128", 9, ""}, wish{"::ffff:192.0.2.1", 22, "192.0.2.1:22"}, wish{"::192.0.2.1", 22, ""},
		wish{"2001:db8::1", 443, "[2001:db8::1]:443"}, wish{"2001:db8::1", 22, ""},
	)
}

// Guards against a key that may do more than its own line of authorized_keys or
// its certificate permits, and against a line that opens what the list does not.
func TestPermitOpenNarrowsTheList(t *testing.T) {
	access := accessTo(onBuilder("builder1"), onBuilder("Odd"), onHost("*.example.org", 0), onNet("192.0.2.0/24", 22))
	narrow := func(to ...policy.JumpTarget) *policy.Access {
		narrowed := *access
		narrowed.PermitOpen = append([]policy.JumpTarget{}, to...)
		return &narrowed
	}
	wantLeads(t, narrow(), wish{"builder1", 22, ""}, wish{"git.example.org", 22, ""}, wish{"192.0.2.1", 22, ""})
	wantLeads(t, narrow(onHost("builder1", 22), onHost("odd", 22)),
		wish{"builder1", 22, "builder1.example.org:22"}, wish{"Odd", 22, "192.0.2.9:2222"}, wish{"git.example.org", 22, ""}, wish{"192.0.2.1", 22, ""})
	wantLeads(t, narrow(onHost("odd", 2222)), wish{"odd", 22, "192.0.2.9:2222"}, wish{"builder1", 22, ""})
	wantLeads(t, narrow(onHost("odd", 80)), wish{"odd", 22, ""})
	wantLeads(t, narrow(onHost("git.example.org", 22), onNet("192.0.2.7/32", 0)),
		wish{"git.example.org", 22, "git.example.org:22"}, wish{"git.example.org", 80, ""}, wish{"hub.example.org", 22, ""},
		wish{"192.0.2.7", 22, "192.0.2.7:22"}, wish{"192.0.2.7", 80, ""}, wish{"192.0.2.8", 22, ""}, wish{"builder1", 22, ""})
	wantLeads(t, narrow(onHost("elsewhere.org", 22), onNet("198.51.100.0/24", 22)), wish{"elsewhere.org", 22, ""}, wish{"198.51.100.1", 22, ""})
}
