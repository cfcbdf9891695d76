package proxy

import "nixbastion/policy"

// frontLimits are those of the policy. What it does not name has its default.
func frontLimits(l policy.FrontLimits) Limits {
	return Limits{
		LoginGrace: l.LoginGraceTime, AuthTries: l.MaxAuthTries,
		Pending: l.MaxStartups.Full, PendingStart: l.MaxStartups.Start, PendingRate: l.MaxStartups.Rate, PendingPerSource: l.PerSourceMaxStartups,
		Connections: l.MaxConnections, Sessions: l.MaxSessions,
		KeepAlive: l.ClientAliveInterval, KeepAliveMisses: l.ClientAliveCountMax,
		Unused: l.UnusedConnectionTimeout, WriteStall: l.WriteTimeout,
		SessionMemory: l.SessionMemory,
	}
}

// Refusals are how many were turned away, or made to wait, since the start, by the
// reason. A reason that never was is not there.
func (p *Proxy) Refusals() map[Refusal]uint64 { return p.refusals.counts() }
