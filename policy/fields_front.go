package policy

// Fields of what faces the network, and of the record of what is done.

func (s *SSH) fields() []field {
	var ciphers, certificate, memory any
	if len(s.Ciphers) > 0 {
		ciphers = s.Ciphers
	}
	if s.HostCertificate != nil {
		certificate = s.HostCertificate.File
	}
	l := &s.Limits
	if l.SessionMemory != 0 {
		memory = sizeWord(l.SessionMemory)
	}
	return []field{
		{key: "host_certificate", value: certificate},
		{key: "ciphers", value: ciphers},
		{key: "login_grace_time", value: durationWord(l.LoginGraceTime)},
		{key: "max_auth_tries", value: l.MaxAuthTries},
		{key: "max_startups", value: l.MaxStartups.String()},
		{key: "per_source_max_startups", value: l.PerSourceMaxStartups},
		{key: "per_source_penalties", value: s.Penalties.value()},
		{key: "max_connections", value: l.MaxConnections},
		{key: "max_sessions", value: l.MaxSessions},
		{key: "client_alive_interval", value: durationWord(l.ClientAliveInterval)},
		{key: "client_alive_count_max", value: l.ClientAliveCountMax},
		{key: "unused_connection_timeout", value: durationWord(l.UnusedConnectionTimeout)},
		{key: "write_timeout", value: durationWord(l.WriteTimeout)},
		{key: "session_memory", value: memory},
		{key: "proxy_protocol", value: networkTexts(s.ProxyProtocol)},
	}
}

func (p *Penalties) value() any {
	if p.Off {
		return word("off")
	}
	return []field{
		{key: "authfail", value: durationWord(p.AuthFail)},
		{key: "noauth", value: durationWord(p.NoAuth)},
		{key: "grace_exceeded", value: durationWord(p.GraceExceeded)},
		{key: "crash", value: durationWord(p.Crash)},
		{key: "min", value: durationWord(p.Min)},
		{key: "max", value: durationWord(p.Max)},
		{key: "exempt", value: networkTexts(p.Exempt)},
	}
}

func (a *Audit) value() any {
	if a.File == "" {
		return word("off")
	}
	return []field{
		{key: "file", value: a.File, as: "state_dir"},
		{key: "sync", value: wordOf(auditSyncWords, a.SyncAlways)},
		{key: "rotate_size", value: sizeWord(a.RotateSize)},
		{key: "rotate_age", value: durationWord(a.RotateAge)},
		{key: "keep", value: a.Keep},
		{key: "on_failure", value: wordOf(auditFailureWords, a.Continue)},
	}
}

// value is nil without an address: no file may say that.
func (m *Metrics) value() any {
	if m.Listen == "" {
		return nil
	}
	return []field{{key: "listen", value: m.Listen}, {key: "allow_remote", value: m.AllowRemote}}
}
