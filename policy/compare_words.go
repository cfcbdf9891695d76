package policy

// The words in which changes of fields are said, and what they are about.

// saidElsewhere are fields about whose changes there are sentences of their own.
var saidElsewhere = map[string]bool{
	"ssh.host_certificate": true, "revoked_keys": true, "trusted_public_keys": true, "domains": true, "scheduling.needs": true, "build_limits": true,
	"domains.name": true, "domains.signing_keys": true, "builders.name": true, "builders.domains": true,
	"principals.name": true, "principals.role": true, "principals.domain": true,
}

// areaOf says what fields are about whose path begins so; the longest counts.
var areaOf = map[string]Area{
	"": AreaServer, "ssh.": AreaLimits, "commands.": AreaTrust, "admin.users": AreaAccess, "domains.": AreaTrust,
	"ssh.host_certificate": AreaTrust, "ssh.ciphers": AreaTrust, "ssh.proxy_protocol": AreaTrust, "ssh.per_source_penalties": AreaAccess,
	"audit": AreaTrust, "metrics": AreaTrust, "reload.running_builds": AreaAccess,
	"cache.": AreaCache, "limits.": AreaLimits, "scheduling.": AreaScheduling,
	"builders.": AreaBuilders, "builders.address": AreaTrust, "builders.protocol": AreaTrust, "builders.user": AreaTrust, "builders.identity_file": AreaTrust,
	"builders.host_keys": AreaTrust, "builders.known_hosts": AreaTrust, "builders.remote_program": AreaTrust, "builders.builder_content": AreaTrust,
	"builders.wake": AreaTrust, "builders.sleep": AreaTrust, "builders.load": AreaScheduling,
	"principals.": AreaAccess, "principals.max_jobs": AreaLimits, "principals.max_connections": AreaLimits,
	"principals.connections_per_minute": AreaLimits, "principals.builds_per_minute": AreaLimits,
	"principals.class": AreaScheduling, "principals.weight": AreaScheduling, "principals.no_builder": AreaScheduling,
}

// somebodysGain are fields of which more is somebody's gain; unset is then as much as
// is said here, 0 for any number.
var somebodysGain = map[string]float64{
	"principals.max_jobs": 0, "principals.max_connections": usualConnections, "principals.class": 0, "principals.weight": 0, "principals.publish": 0,
	"principals.check_builds": 0, "principals.repair_builds": 0, "limits.nar_size": 0, "limits.build_log": 0,
	"commands.remote_store": 0, "commands.remote_program": 0, "domains.sign": 0, "domains.share": 0,
	"builders.max_jobs": 0, "builders.speed_factor": 0, "principals.connections_per_minute": 0, "principals.builds_per_minute": 0,
	"audit": 0, "audit.sync": 0, "audit.rotate_size": 0, "audit.keep": 0, // whoever asks later gains a trace
	"metrics": nothing, "metrics.allow_remote": 0, "reload.running_builds": 0,
}

// nothing is what unset is where it is not any number.
const nothing = -1

// somebodysLoss are fields of which more is somebody's loss.
var somebodysLoss = map[string]bool{"ssh.per_source_penalties": true, "audit.on_failure": true}

// usualConnections is the front's own bound for a principal, as the example says.
const usualConnections = 1000

// ranks are words by how much they allow.
var ranks = map[any]float64{
	word("bulk"): 0, word("normal"): 1, word("interactive"): 2, word("refuse"): 0, word("allow"): 1, word("ignore"): 1, word("accept"): 1,
	word("off"): 0, word("end"): 0, word("finish"): 1, word("continue"): 1, word("every_second"): 0, word("always"): 1,
	word("none"): 0, word("proven"): 1, word("domain"): 2, word("public"): 1, false: 0, true: 1,
}

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
	"audit":                    {"off": "keeps nothing of what is done and by whom (off)"},
	"audit.on_failure":         {"continue": "lets everything go on while nothing can be written (continue)", "refuse": "refuses builds, uploads and jumps while nothing can be written (refuse)"},
	"ssh.per_source_penalties": {"off": "keep nobody out, however often a login fails (off)"},
	"metrics.allow_remote":     {"true": "lets other machines ask (true)", "false": "lets only this machine ask (false)"},
	"reload.running_builds": {
		"finish": "lets builds of those who are not let in any more come to their end (finish)",
		"end":    "ends builds of those who are not let in any more (end)",
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

// itemWords are sentences about what lists gain and lose.
var itemWords = map[string][2]string{
	"principals.jump":                 {"may jump through the proxy to %s", "may no longer jump to %s"},
	"builders.features":               {"offers the feature %s", "no longer offers the feature %s"},
	"ssh.proxy_protocol":              {"believes %s from where its connections come", "no longer believes %s from where its connections come"},
	"ssh.per_source_penalties.exempt": {"has %s, which is never kept out", "no longer has %s, which can be kept out"},
	"admin.users":                     {"lets %s ask on the admin's socket", "no longer lets %s ask"},
}

// singular are the names of items of lists.
var singular = map[string]string{"builders": "builder", "principals": "principal"}

// withoutMeaning are fields that principals with role read do not have, as they have
// the other role: so that a change of the role is not one of these.
var withoutMeaning = map[string]any{
	"class": word("normal"), "weight": word("1"), "publish": false, "builds_per_minute": defaultBuildRate, "check_builds": word("allow"), "repair_builds": word("refuse"),
}
