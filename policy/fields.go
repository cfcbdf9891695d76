package policy

import (
	"slices"
	"strings"
	"time"

	"nixbastion/internal/nix"
)

// field is one setting of a policy in effect, as a file would say it: what
// Policy.Compare compares, and what [Print] writes where a file says nothing. Every key
// of the schema has one.
type field struct {
	key string
	// value is text, a word, a number, a truth value, a list of texts, a map, fields (of
	// a mapping) or lists of fields (of a list of mappings). It is nil if nothing is
	// set and no file could say so.
	value any
	// as names the setting that this one follows where it is not set.
	as string
}

// isSet reports whether there is anything to write.
func (f *field) isSet() bool {
	if fields, ok := f.value.([]field); ok {
		return slices.ContainsFunc(fields, func(f field) bool { return f.isSet() })
	}
	return f.value != nil
}

// word is text that a file has without quotes.
type word string

func sizeWord(bytes int64) word             { return word(sizeText(bytes)) }
func durationWord(value time.Duration) word { return word(durationText(value)) }
func speedWord(value float64) word          { return word(speedText(value)) }

// orNothing is nil for text that is empty.
func orNothing(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// some is nil for a number that is not set.
func some(n int) any {
	if n == 0 {
		return nil
	}
	return n
}

// list is never nil: an empty list is a list.
func list(all []string) []string { return append([]string{}, all...) }

// each makes the fields of every item of a list.
func each[T any](all []T, fields func(*T) []field) [][]field {
	out := make([][]field, len(all))
	for i := range all {
		out[i] = fields(&all[i])
	}
	return out
}

// wordOf finds the word of a value.
func wordOf[T comparable](words map[string]T, value T) any {
	for text, v := range words {
		if v == value {
			return word(text)
		}
	}
	return nil
}

// fields are those of the whole file, in the order in which the example has them.
func (p *Policy) fields() []field {
	return []field{
		{key: "listen", value: list(p.Listen)},
		{key: "state_dir", value: p.StateDir},
		{key: "ssh", value: p.SSH.fields()},
		{key: "cache", value: []field{
			{key: "size", value: sizeWord(p.Cache.Size)},
			{key: "spool_reserve", value: sizeWord(p.Cache.SpoolReserve)},
			{key: "scrub_rate", value: sizeWord(p.Cache.ScrubRate)},
		}},
		{key: "limits", value: []field{
			{key: "nar_size", value: sizeWord(p.Limits.NarSize)},
			{key: "build_log", value: sizeWord(p.Limits.BuildLog)},
		}},
		{key: "log", value: []field{
			{key: "level", value: word(strings.ToLower(p.Log.Level.String()))},
			{key: "format", value: word(p.Log.Format)},
		}},
		{key: "commands", value: []field{
			{key: "remote_store", value: wordOf(remoteStoreWords, p.Commands.RemoteStore)},
			{key: "remote_program", value: wordOf(remoteProgramWords, p.Commands.PlainProgram)},
		}},
		{key: "trusted_public_keys", value: each(p.TrustedPublicKeys, (*TrustedKey).fields)},
		{key: "admin", value: p.adminFields()},
		{key: "domains", value: each(p.Domains, (*Domain).fields)},
		{key: "scheduling", value: p.Scheduling.fields()},
		{key: "build_limits", value: each(p.BuildLimits, (*BuildLimit).fields)},
		{key: "builders", value: each(p.Builders, (*Builder).fields)},
		{key: "principals", value: each(p.Principals, (*Principal).fields)},
		{key: "revoked_keys", value: orNothing(p.RevokedKeys)},
	}
}

func (s *SSH) fields() []field {
	var ciphers, certificate any
	if len(s.Ciphers) > 0 {
		ciphers = s.Ciphers
	}
	if s.HostCertificate != nil {
		certificate = s.HostCertificate.File
	}
	return []field{{key: "host_certificate", value: certificate}, {key: "ciphers", value: ciphers}}
}

func (p *Policy) adminFields() []field {
	socket := any(p.Admin.Socket)
	if p.hasDefaultSocket() && len(p.Admin.Socket) > maxSocketPath {
		socket = nil // no file may say it
	}
	return []field{{key: "socket", value: socket, as: "state_dir"}, {key: "users", value: list(p.Admin.Users)}}
}

func (k *TrustedKey) fields() []field {
	return []field{{key: "key", value: k.String()}, {key: "public", value: k.Public}}
}

func (d *Domain) fields() []field {
	var keys any
	if len(d.SigningKeys) > 0 {
		keys = keyTexts(publicOf(d.SigningKeys))
	}
	return []field{
		{key: "name", value: d.Name},
		{key: "signing_keys", value: keys},
		{key: "sign", value: word(d.Sign.String())},
		{key: "share", value: wordOf(shareWords, d.Share)},
	}
}

func publicOf(keys []nix.SigningKey) []nix.PublicKey {
	all := make([]nix.PublicKey, len(keys))
	for i, key := range keys {
		all[i] = key.Public()
	}
	return all
}

func (s *Scheduling) fields() []field {
	return []field{
		{key: "soft_features", value: list(s.SoftFeatures)},
		{key: "alone", value: list(s.Alone)},
		{key: "needs", value: each(s.Needs, (*Need).fields)},
		{key: "startup_grace", value: durationWord(s.StartupGrace)},
		{key: "starve_after", value: durationWord(s.StarveAfter)},
		{key: "attempts", value: s.Attempts},
		{key: "hung_after", value: durationWord(s.HungAfter)},
		{key: "linger", value: durationWord(s.Linger)},
		{key: "feed_ahead", value: s.FeedAhead},
		{key: "feed_ahead_limit", value: sizeWord(s.FeedAheadLimit)},
		{key: "history", value: orNothing(s.History)},
	}
}

func (r *Need) fields() []field {
	return []field{
		{key: "feature", value: orNothing(r.Feature)},
		{key: "name", value: orNothing(r.Name)},
		{key: "attribute", value: orNothing(r.Attribute)},
		{key: "value", value: orNothing(r.Value)},
		{key: "resources", value: amounts(r.Resources)},
		{key: "amount_of", value: orNothing(r.AmountOf)},
	}
}

func amounts(resources map[string]int64) any {
	if len(resources) == 0 {
		return nil
	}
	return resources
}

func (l *BuildLimit) fields() []field {
	limit := func(set bool, value any) any {
		if !set {
			return nil
		}
		return value
	}
	return []field{
		{key: "principal", value: orNothing(l.Principal)},
		{key: "system", value: orNothing(l.System)},
		{key: "name", value: orNothing(l.Name)},
		{key: "max_silent", value: limit(l.MaxSilent != 0, durationWord(l.MaxSilent))},
		{key: "timeout", value: limit(l.Timeout != 0, durationWord(l.Timeout))},
		{key: "max_log_size", value: limit(l.MaxLogSize != 0, sizeWord(l.MaxLogSize))},
		{key: "cores", value: some(l.Cores)},
	}
}

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
		{key: "no_builder", value: wordOf(noBuilderWords, q.NoBuilder)},
		{key: "jump", value: jump},
		{key: "class", value: word(q.Class.String())},
		{key: "weight", value: speedWord(q.Weight)},
		{key: "publish", value: q.Publish},
		{key: "check_builds", value: wordOf(allowWords, q.CheckBuilds)},
		{key: "repair_builds", value: wordOf(allowWords, q.RepairBuilds)},
	}
	if q.Role == RoleRead { // nothing of this has a meaning for it
		all = all[:len(all)-5]
		for _, key := range []string{"class", "weight", "publish", "check_builds", "repair_builds"} {
			all = append(all, field{key: key})
		}
	}
	return all
}
