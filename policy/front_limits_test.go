package policy

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

const manyFrontLimits = `ssh:
  login_grace_time: 7s
  max_auth_tries: 3
  max_startups: 1:20:9
  per_source_max_startups: 4
  per_source_penalties: {authfail: 1m, noauth: 0, grace_exceeded: 2s, crash: 3s, min: 1s, max: 1h, exempt: [192.0.2.1, "2001:db8::/32"]}
  max_connections: 50
  max_sessions: 6
  client_alive_interval: 8s
  client_alive_count_max: 2
  unused_connection_timeout: 1h
  write_timeout: 30s
  session_memory: 1GiB
  proxy_protocol: [10.0.0.0/8, "::ffff:192.0.2.9"]
`

// Guards against a limit that is read and does not arrive, or arrives in the place of
// another.
func TestFrontLimitsArriveWhereTheyBelong(t *testing.T) {
	prefix := netip.MustParsePrefix
	d := newDir(t)
	got := d.load(t, minimal+manyFrontLimits).SSH
	want := SSH{
		Limits: FrontLimits{
			LoginGraceTime: 7 * time.Second, MaxAuthTries: 3, MaxStartups: MaxStartups{1, 20, 9}, PerSourceMaxStartups: 4,
			MaxConnections: 50, MaxSessions: 6, ClientAliveInterval: 8 * time.Second, ClientAliveCountMax: 2,
			UnusedConnectionTimeout: time.Hour, WriteTimeout: 30 * time.Second, SessionMemory: 1 << 30,
		},
		Penalties: Penalties{
			AuthFail: time.Minute, GraceExceeded: 2 * time.Second, Crash: 3 * time.Second, Min: time.Second, Max: time.Hour,
			Exempt: []netip.Prefix{prefix("192.0.2.1/32"), prefix("2001:db8::/32")},
		},
		ProxyProtocol: []netip.Prefix{prefix("10.0.0.0/8"), prefix("192.0.2.9/32")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if pol := d.load(t, minimal+"ssh: {per_source_penalties: off}\n"); !pol.SSH.Penalties.Off {
		t.Error("the word off is not taken")
	}
}

// Guards against defaults that leave a door open.
func TestFrontLimitsHaveSafeDefaults(t *testing.T) {
	d := newDir(t)
	got := d.load(t, withKey("anna"))
	want := SSH{Limits: defaultFrontLimits(), Penalties: DefaultPenalties()}
	if !reflect.DeepEqual(got.SSH, want) || want.Penalties.Off || len(want.ProxyProtocol) != 0 {
		t.Errorf("got %+v", got.SSH)
	}
	if p := got.Principals[0]; p.ConnectionsPerMinute <= 0 || p.BuildsPerMinute <= 0 {
		t.Errorf("principal without rates: %+v", p)
	}
}

// Guards against limits that the description keeps to itself, and against what makes
// them useless without a word.
func TestDescribeSaysFrontLimits(t *testing.T) {
	d := newDir(t)
	got := describe(t, d.load(t, minimal+manyFrontLimits+"principals:\n  - {name: anna, role: full, keys: ["+authorizedLine("anna")+
		"], connections_per_minute: 7, builds_per_minute: 1}\n"), "proxy")
	for _, want := range []string{
		"A login has 7s and 3 refused keys. Of connections that have not logged in there are at most 9 (max_startups 1:20:9), 4 slow ones of one address.",
		"An address is kept out when its penalties sum up to 1s, for 1h at most, but for 192.0.2.1, 2001:db8::/32: 1m for a refused login, 0 for none, 2s for one without end, 3s for a crash.",
		"There are at most 50 connections with 6 sessions each; one that is never used is closed after 1h, a client that is silent for 24s or reads nothing for 30s is cut off.",
		"Sessions may take 1GiB of memory, one principal what it leaves free.",
		"Connections from 10.0.0.0/8, 192.0.2.9 must begin with a PROXY header, and count as from the address in it.",
		"    anna: 1 key, at most 7 connections a minute, at most 1 build a minute",
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("no line %q in:\n%s", want, got)
		}
	}
	got = describe(t, d.load(t, minimal+"ssh: {proxy_protocol: [0.0.0.0/0], per_source_penalties: {exempt: [\"::/0\"]}}\n"), "proxy")
	for _, want := range []string{"warning: everybody may say in a PROXY header", "warning: everybody is exempt from ssh.per_source_penalties"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if got := describe(t, d.load(t, minimal+"ssh: {per_source_penalties: off}\n"), "proxy"); !strings.Contains(got, "may try again at once (per_source_penalties: off)") {
		t.Errorf("penalties are off without a word:\n%s", got)
	}
}
