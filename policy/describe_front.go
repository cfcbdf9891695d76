package policy

import (
	"net/netip"
	"strings"
	"time"
)

// frontLimits says what strangers and clients can take from the SSH front.
func (t *description) frontLimits() {
	l := t.pol.SSH.Limits
	t.line(0, "A login has %s and %s. Of connections that have not logged in there are at most %d (max_startups %s), %d slow ones of one address.",
		durationText(l.LoginGraceTime), CountOf(l.MaxAuthTries, "refused key"), l.MaxStartups.Full, l.MaxStartups, l.PerSourceMaxStartups)
	t.penalties(t.pol.SSH.Penalties)
	t.line(0, "There are at most %s with %s each; one that is never used is closed after %s, a client that is silent for %s or reads nothing for %s is cut off.",
		CountOf(l.MaxConnections, "connection"), CountOf(l.MaxSessions, "session"), durationText(l.UnusedConnectionTimeout),
		durationText(l.ClientAliveInterval*time.Duration(l.ClientAliveCountMax+1)), durationText(l.WriteTimeout))
	if l.SessionMemory > 0 {
		t.line(0, "Sessions may take %s of memory, one principal what it leaves free.", sizeText(l.SessionMemory))
	} else {
		t.line(0, "Sessions may take up to a quarter of the memory limit (session_memory), one principal what it leaves free.")
	}
	if networks := t.pol.SSH.ProxyProtocol; len(networks) > 0 {
		t.line(0, "Connections from %s must begin with a PROXY header, and count as from the address in it.", strings.Join(networkTexts(networks), ", "))
	}
}

func (t *description) penalties(p Penalties) {
	if p.Off {
		t.line(0, "An address that fails to log in may try again at once (per_source_penalties: off).")
		return
	}
	exempt := ""
	if len(p.Exempt) > 0 {
		exempt = ", but for " + strings.Join(networkTexts(p.Exempt), ", ")
	}
	t.line(0, "An address is kept out when its penalties sum up to %s, for %s at most%s: %s for a refused login, %s for none, %s for one without end, %s for a crash.",
		durationText(p.Min), durationText(p.Max), exempt,
		durationText(p.AuthFail), durationText(p.NoAuth), durationText(p.GraceExceeded), durationText(p.Crash))
}

// frontWarnings names what is set and hardly meant.
func (t *description) frontWarnings(warn func(format string, args ...any)) {
	everybody := func(networks []netip.Prefix) bool {
		for _, network := range networks {
			if network.Bits() == 0 {
				return true
			}
		}
		return false
	}
	if everybody(t.pol.SSH.ProxyProtocol) {
		warn("everybody may say in a PROXY header where he comes from (ssh.proxy_protocol), so from= of keys and all limits by address mean nothing")
	}
	if everybody(t.pol.SSH.Penalties.Exempt) {
		warn("everybody is exempt from ssh.per_source_penalties; write off if that is meant")
	}
}
