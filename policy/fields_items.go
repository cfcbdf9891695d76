package policy

import "time"

func (b *Builder) fields() []field {
	address := b.Address
	if b.Socket != "" {
		address = socketScheme + b.Socket
	}
	all := []field{
		{key: "name", value: b.Name},
		{key: "address", value: address},
		{key: "protocol", value: wordOf(protocolWords, b.Protocol)},
		{key: "user", value: orNothing(b.User)},
		{key: "identity_file", value: orNothing(b.IdentityFile)},
		{key: "host_keys", value: b.hostKeyLines()},
		{key: "known_hosts", value: orNothing(b.KnownHosts)},
		{key: "systems", value: b.systemSpeeds()},
		{key: "features", value: list(b.Features)},
		{key: "mandatory_features", value: list(b.MandatoryFeatures)},
		{key: "max_jobs", value: b.MaxJobs},
		{key: "speed_factor", value: speedWord(b.SpeedFactor)},
		{key: "remote_program", value: orNothing(b.RemoteProgram)},
		{key: "domains", value: list(b.Domains)},
		{key: "builder_content", value: wordOf(contentWords, b.Content)},
		{key: "resources", value: amounts(b.Resources)},
		{key: "load", value: b.Load.value(), as: "load"},
		{key: "wake", value: commandFields(b.Wake.Command, "timeout", b.Wake.Timeout)},
		{key: "sleep", value: commandFields(b.Wake.Sleep, "after", b.Wake.After)},
	}
	if b.Socket != "" { // it has none of these
		for i := range all {
			if isRemoteOnly(all[i].key) {
				all[i].value = nil
			}
		}
	}
	return all
}

func (b *Builder) systemSpeeds() map[string]word {
	speeds := map[string]word{}
	for system, speed := range b.Systems {
		speeds[system] = speedWord(speed)
	}
	return speeds
}

func isRemoteOnly(key string) bool {
	for _, r := range remoteOnly {
		if r.key == key {
			return true
		}
	}
	return false
}

func (b *Builder) hostKeyLines() any {
	if len(b.HostKeys) == 0 {
		return nil
	}
	lines := make([]string, len(b.HostKeys))
	for i, key := range b.HostKeys {
		lines[i] = keyLine(key)
	}
	return lines
}

func (l LoadLimits) value() any {
	if l.Off {
		return word("off")
	}
	return []field{
		{key: "every", value: durationWord(l.Every)},
		{key: "max_load", value: speedWord(l.MaxLoad)},
		{key: "max_pressure", value: speedWord(l.MaxPressure)},
		{key: "min_memory", value: sizeWord(l.MinMemory)},
		{key: "min_disk", value: sizeWord(l.MinDisk)},
	}
}

func commandFields(command []string, key string, value time.Duration) any {
	if len(command) == 0 {
		return nil
	}
	return []field{{key: "command", value: list(command)}, {key: key, value: durationWord(value)}}
}

// fields leaves out the keys: those of a policy are by their wire form.
func (q *Principal) fields() []field {
	jump := make([]string, len(q.Jump))
	for i, target := range q.Jump {
		jump[i] = target.String()
	}
	all := []field{
		{key: "name", value: q.Name},
		{key: "role", value: word(q.Role.String())},
		{key: "keys"},
		{key: "authorized_keys"},
		{key: "domain", value: q.Domain},
		{key: "max_jobs", value: some(q.MaxJobs)},
		{key: "max_connections", value: some(q.MaxConnections)},
		{key: "connections_per_minute", value: int(q.ConnectionsPerMinute)},
		{key: "builds_per_minute", value: int(q.BuildsPerMinute)},
		{key: "no_builder", value: wordOf(noBuilderWords, q.NoBuilder)},
		{key: "jump", value: jump},
		{key: "class", value: word(q.Class.String())},
		{key: "weight", value: speedWord(q.Weight)},
		{key: "publish", value: q.Publish},
		{key: "check_builds", value: wordOf(allowWords, q.CheckBuilds)},
		{key: "repair_builds", value: wordOf(allowWords, q.RepairBuilds)},
	}
	if q.Role == RoleRead { // nothing of this has a meaning for it
		for i := range all {
			if _, without := withoutMeaning[all[i].key]; without {
				all[i].value = nil
			}
		}
	}
	return all
}
