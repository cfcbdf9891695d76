package policy

import (
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// saidElsewhere are fields about whose changes there are sentences of their own.
var saidElsewhere = map[string]bool{
	"ssh.host_certificate": true, "revoked_keys": true, "trusted_public_keys": true, "scheduling.needs": true, "build_limits": true,
	"domains.name": true, "domains.signing_keys": true, "builders.name": true, "builders.domains": true,
	"principals.name": true, "principals.role": true, "principals.domain": true,
}

// areaOf says what fields are about whose path begins so; the longest counts.
var areaOf = map[string]Area{
	"": AreaServer, "ssh.": AreaTrust, "commands.": AreaTrust, "admin.users": AreaAccess, "domains.": AreaTrust,
	"cache.": AreaCache, "limits.": AreaLimits, "scheduling.": AreaScheduling,
	"builders.": AreaBuilders, "builders.address": AreaTrust, "builders.protocol": AreaTrust, "builders.user": AreaTrust, "builders.identity_file": AreaTrust,
	"builders.host_keys": AreaTrust, "builders.known_hosts": AreaTrust, "builders.remote_program": AreaTrust, "builders.builder_content": AreaTrust,
	"builders.wake": AreaTrust, "builders.sleep": AreaTrust, "builders.load": AreaScheduling,
	"principals.": AreaAccess, "principals.max_jobs": AreaLimits, "principals.max_connections": AreaLimits,
	"principals.class": AreaScheduling, "principals.weight": AreaScheduling, "principals.no_builder": AreaScheduling,
}

func areaOfPath(path string) Area {
	for end := len(path); end > 0; end-- {
		if area, ok := areaOf[path[:end]]; ok {
			return area
		}
	}
	return areaOf[""]
}

// somebodysGain are fields of which more is somebody's gain; unset is then as much as
// is said here, 0 for any number.
var somebodysGain = map[string]float64{
	"principals.max_jobs": 0, "principals.max_connections": usualConnections, "principals.class": 0, "principals.weight": 0, "principals.publish": 0,
	"principals.check_builds": 0, "principals.repair_builds": 0, "limits.nar_size": 0, "limits.build_log": 0,
	"commands.remote_store": 0, "commands.remote_program": 0, "domains.sign": 0, "domains.share": 0,
	"builders.max_jobs": 0, "builders.speed_factor": 0,
}

// usualConnections is the front's own bound for a principal, as the example says.
const usualConnections = 1000

// ranks are words by how much they allow.
var ranks = map[any]float64{
	word("bulk"): 0, word("normal"): 1, word("interactive"): 2, word("refuse"): 0, word("allow"): 1, word("ignore"): 1, word("accept"): 1,
	word("none"): 0, word("proven"): 1, word("domain"): 2, word("public"): 1, false: 0, true: 1,
}

// fields compares two lists of fields with the same keys. Lists of what has names are
// compared item by item; the other lists of mappings have sentences of their own.
func (c *comparison) fields(subject, path string, old, next []field) {
	for _, f := range next {
		at := path + f.key
		before := valueOfField(old, f.key)
		if saidElsewhere[at] || reflect.DeepEqual(before, f.value) {
			continue
		}
		switch value := f.value.(type) {
		case [][]field:
			c.named(at, before.([][]field), value)
			continue
		case []field:
			if was, both := before.([]field); both {
				c.fields(subject, at+".", was, value)
				continue
			}
		}
		c.field(subject, at, before, f.value)
	}
}

func valueOfField(fields []field, key string) any {
	for _, f := range fields {
		if f.key == key {
			return f.value
		}
	}
	return nil
}

// singular are the names of items of lists.
var singular = map[string]string{"builders": "builder", "principals": "principal"}

// named compares what is in both of two lists of the same name.
func (c *comparison) named(path string, old, next [][]field) {
	if singular[path] == "" {
		return
	}
	before := make(map[any][]field, len(old))
	for _, item := range old {
		before[valueOfField(item, "name")] = item
	}
	for _, item := range next {
		name := valueOfField(item, "name")
		if was := before[name]; was != nil {
			c.fields(singular[path]+" "+name.(string), path+".", meant(path, was), meant(path, item))
		}
	}
}

// withoutMeaning are fields that principals with role read do not have, as they have
// the other role: so that a change of the role is not one of these.
var withoutMeaning = map[string]any{
	"class": word("normal"), "weight": word("1"), "publish": false, "check_builds": word("allow"), "repair_builds": word("refuse"),
}

func meant(path string, fields []field) []field {
	if path != "principals" {
		return fields
	}
	for i := range fields {
		if usual, ok := withoutMeaning[fields[i].key]; ok && fields[i].value == nil {
			fields[i].value = usual
		}
	}
	return fields
}

// field says how one field changes.
func (c *comparison) field(subject, path string, old, next any) {
	area, effect := areaOfPath(path), effectOf(path, old, next)
	was, isList := old.([]string)
	is, _ := next.([]string)
	if isList && is != nil && !slices.Contains(wholeLists, path) && !slices.Equal(sorted(was), sorted(is)) {
		c.items(area, subject, path, was, is)
		return
	}
	switch phrase := phrases[path][fieldText(next)]; {
	case phrase != "" && subject != "":
		c.add(area, effect, subject, "%s; it was %s", phrase, fieldText(old))
	case subject == "": // a setting of the whole proxy is its own subject
		c.add(area, effect, path, "is %s, was %s", fieldText(next), fieldText(old))
	default:
		c.add(area, effect, subject, "has %s: %s, was %s", keyOfItem(path), fieldText(next), fieldText(old))
	}
}

// keyOfItem is a path within the item of a list.
func keyOfItem(path string) string { return path[strings.IndexByte(path, '.')+1:] }

// phrases say what words mean.
var phrases = map[string]map[string]string{
	"domains.share": {
		"public": "shows all that it vouches for to every domain, so that its full keys can plant paths for all of them (share: public)",
		"none":   "keeps what it vouches for to itself (share: none)",
	},
	"domains.sign": {
		"domain": "signs all that it vouches for, so that its full keys can plant any path for whoever trusts its signing keys (sign: domain)",
		"proven": "signs only what is proven (sign: proven)",
		"none":   "signs nothing (sign: none)",
	},
	"principals.publish": {"true": "has its domain vouch for what it uploads (publish: true)", "false": "only claims what it uploads (publish: false)"},
	"builders.builder_content": {
		"accept": "builds with inputs that it holds already, whatever their bytes (builder_content: accept)",
		"match":  "gets no build for which it holds an input with other bytes (builder_content: match)",
	},
	"principals.check_builds":  {"allow": "may have outputs built again to compare them (check_builds: allow)", "refuse": "may not have outputs built again to compare them (check_builds: refuse)"},
	"principals.repair_builds": {"allow": "may have outputs built again and replaced (repair_builds: allow)", "refuse": "may not have outputs replaced (repair_builds: refuse)"},
}

// wholeLists are those of which an item is nobody's gain or loss.
var wholeLists = []string{"ssh.ciphers", "scheduling.soft_features", "scheduling.alone", "builders.wake.command", "builders.sleep.command", "builders.mandatory_features"}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

// itemWords are sentences about what lists gain and lose.
var itemWords = map[string][2]string{
	"principals.jump":   {"may jump through the proxy to %s", "may no longer jump to %s"},
	"builders.features": {"offers the feature %s", "no longer offers the feature %s"},
	"admin.users":       {"lets %s ask on the admin's socket", "no longer lets %s ask"},
}

// items says what a list gains and loses.
func (c *comparison) items(area Area, subject, path string, old, next []string) {
	words, known := itemWords[path]
	switch {
	case subject == "":
		subject = path
		if !known {
			words = [2]string{"has %s now", "no longer has %s"}
		}
	case !known:
		words = [2]string{"has %s in " + keyOfItem(path), "no longer has %s in " + keyOfItem(path)}
	}
	for _, item := range without(next, old) {
		c.add(area, Gains, subject, words[0], item)
	}
	for _, item := range without(old, next) {
		c.add(area, Loses, subject, words[1], item)
	}
}

// effectOf says what a change is to whom the field is about.
func effectOf(path string, old, next any) Effect {
	unset, known := somebodysGain[path]
	if !known {
		return Changes
	}
	before, ok1 := rank(old, unset)
	now, ok2 := rank(next, unset)
	if !ok1 || !ok2 {
		return Changes
	}
	return moreOrLess(before, now)
}

// rank is how much a value allows.
func rank(value any, unset float64) (float64, bool) {
	switch v := value.(type) {
	case nil:
		if unset == 0 {
			return maxAmount, true
		}
		return unset, true
	case int:
		return float64(v), true
	case word:
		if size, err := parseSize(string(v)); err == nil {
			return float64(size), true
		}
		if number, err := strconv.ParseFloat(string(v), 64); err == nil {
			return number, true
		}
	}
	r, ok := ranks[value]
	return r, ok
}

// fieldText writes a value in a sentence.
func fieldText(value any) string {
	switch v := value.(type) {
	case nil:
		return "not set"
	case []field:
		var all []string
		for _, f := range v {
			all = append(all, f.key+" "+fieldText(f.value))
		}
		return strings.Join(all, ", ")
	case []string:
		if len(v) == 0 {
			return "empty"
		}
		return clipped(strings.Join(v, ", "))
	case map[string]word:
		return mapText(v, func(w word) string { return string(w) })
	case map[string]int64:
		return mapText(v, func(n int64) string { return strconv.FormatInt(n, 10) })
	case string:
		return clipped(v)
	}
	return valueText(value)
}

func mapText[T any](m map[string]T, text func(T) string) string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		all = append(all, key+" "+text(m[key]))
	}
	return clipped(strings.Join(all, ", "))
}

// clipped keeps a value on its line.
func clipped(text string) string {
	const most = 400
	if len(text) > most {
		text = text[:most] + "..."
	}
	return unquoted(text)
}
