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
		{key: "drain_timeout", value: durationWord(p.DrainTimeout)},
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
			{key: "build_history", value: p.Limits.BuildHistory},
			{key: "build_logs", value: sizeWord(p.Limits.BuildLogs)},
		}},
		{key: "reload", value: []field{
			{key: "watch", value: p.Reload.Watch},
			{key: "running_builds", value: wordOf(runningBuildsWords, p.Reload.RunningBuilds)},
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
		{key: "audit", value: p.Audit.value()},
		{key: "metrics", value: p.Metrics.value()},
		{key: "domains", value: each(p.Domains, (*Domain).fields)},
		{key: "scheduling", value: p.Scheduling.fields()},
		{key: "build_limits", value: each(p.BuildLimits, (*BuildLimit).fields)},
		{key: "builders", value: each(p.Builders, (*Builder).fields)},
		{key: "principals", value: each(p.Principals, (*Principal).fields)},
		{key: "revoked_keys", value: orNothing(p.RevokedKeys)},
	}
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
