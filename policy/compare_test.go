package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// compared are the changes between two policies, one a line, with their area.
func (d dir) compared(t *testing.T, old, next string) string {
	t.Helper()
	diff := d.load(t, old).Compare(d.load(t, next))
	var lines []string
	for _, c := range diff.Changes {
		lines = append(lines, fmt.Sprintf("%s %s %s %s", c.Area, c.sign(), c.Subject, c.Text))
	}
	if len(diff.Restart) > 0 {
		lines = append(lines, "restart "+strings.Join(diff.Restart, " "))
	}
	return strings.Join(lines, "\n")
}

// changedPolicy has every key of a kind that changes below.
const changedPolicy = `state_dir: state
listen: [":22"]
cache: {size: 10GiB, spool_reserve: 1GiB, scrub_rate: 1MiB}
drain_timeout: 1m
ssh: {login_grace_time: 20s, max_auth_tries: 5, max_startups: "10:30:100", per_source_max_startups: 5, max_connections: 9, max_sessions: 8, client_alive_interval: 2s, client_alive_count_max: 3, unused_connection_timeout: 4s, write_timeout: 5s, session_memory: 64MiB, proxy_protocol: [192.0.2.1], per_source_penalties: {authfail: 1s, noauth: 2s, grace_exceeded: 3s, crash: 4s, min: 5s, max: 6s, exempt: [192.0.2.2]}}
audit: {file: a.jsonl, sync: every_second, rotate_size: 1MiB, rotate_age: 2h, keep: 3, on_failure: refuse}
metrics: {listen: "127.0.0.1:9822", allow_remote: false}
reload: {watch: false, running_builds: end}
limits: {nar_size: 1GiB, build_log: 1MiB, build_history: 7, build_logs: 3MiB}
log: {level: info, format: json}
commands: {remote_store: refuse, remote_program: refuse}
admin: {socket: a.sock, users: [anna]}
domains: [{name: default, share: none}, {name: ci, signing_keys: [ci-1.secret], sign: proven}]
scheduling: {soft_features: [a], alone: [b], startup_grace: 1s, starve_after: 1m, attempts: 2, hung_after: 2s, linger: 3s, feed_ahead: true, feed_ahead_limit: 1MiB, history: h}
load: {every: 1s, max_load: 1, max_pressure: 1, min_memory: 1B, min_disk: 1B}
builders:
  - {name: b1, address: b1, protocol: ssh-ng, user: nix, identity_file: builder-key, host_keys: [HOST1], systems: [x86_64-linux], features: [kvm], mandatory_features: [m], max_jobs: 2, speed_factor: 1, domains: [default], builder_content: accept, resources: {mem: 8}, wake: {command: [w], timeout: 1m}, sleep: {command: [s], after: 1m}}
  - {name: b2, address: b2, user: nix, identity_file: builder-key, known_hosts: hosts, systems: [x86_64-linux], max_jobs: 3, domains: [ci], builder_content: match}
principals:
  - {name: anna, role: full, keys: [ANNA], max_jobs: 4, max_connections: 50, connections_per_minute: 60, builds_per_minute: 70, no_builder: serve, publish: false, check_builds: allow, repair_builds: refuse, jump: [b1], class: normal, weight: 1}
  - {name: otto, role: read, domain: ci, keys: [OTTO], authorized_keys: otto.keys}
build_limits: [{timeout: 1h}]
`

func changedKeys() *strings.Replacer {
	return strings.NewReplacer("HOST1", authorizedLine("b1"), "ANNA", authorizedLine("anna"), "OTTO", authorizedLine("otto"), "MORE", Fingerprint(testKey("more")))
}

// Guards against changes that diff keeps quiet about, calls by a wrong name, or takes
// for less than they are. That no key is missing is held by the tests of fields.
func TestEveryChangeIsSaid(t *testing.T) {
	d := newDir(t)
	d.write("hosts", "b2 "+authorizedLine("b2")+"\n", 0o644)
	d.write("hosts2", "b2 "+authorizedLine("b2")+"\n", 0o644)
	d.write("otto.keys", "", 0o644)
	d.write("more.keys", authorizedLine("more")+"\n", 0o644)
	d.write("revoked", "serial: 7-9\nid: x\n"+authorizedLine("anna")+"\n", 0o644)
	d.write("own.yaml", "limits: {nar_size: 2GiB}\n", 0o644)
	d.write("cert.pub", hostCertificateOf(t, nil), 0o644)
	keys := changedKeys()
	base := keys.Replace(changedPolicy)
	for _, c := range []struct{ key, old, next, want string }{
		{"listen", `[":22"]`, `[":22", ":23"]`, "server + listen has :23 now\nrestart listen"},
		{"state_dir", "state_dir: state", "state_dir: other", "server ~ state_dir is .*/other, was .*/state\nrestart state_dir"},
		{"ssh.ciphers", "ssh: {", "ssh: {ciphers: [aes128-ctr], ", "trust ~ ssh.ciphers is aes128-ctr, was not set\nrestart ssh"},
		{"ssh.host_certificate", "ssh: {", "ssh: {host_certificate: cert.pub, ", "trust + the host key has a certificate: authority SHA256:.*"},
		{"drain_timeout", "drain_timeout: 1m", "drain_timeout: 0", "server ~ drain_timeout is 0, was 1m"},
		{"ssh.login_grace_time", "time: 20s", "time: 30s", "limits ~ ssh.login_grace_time is 30s, was 20s\nrestart ssh"},
		{"ssh.max_auth_tries", "tries: 5", "tries: 6", "limits ~ ssh.max_auth_tries is 6, was 5\nrestart ssh"},
		{"ssh.max_startups", "10:30:100", "10:30:101", "limits ~ ssh.max_startups is 10:30:101, was 10:30:100\nrestart ssh"},
		{"ssh.per_source_max_startups", "startups: 5", "startups: 6", "limits ~ ssh.per_source_max_startups is 6, was 5\nrestart ssh"},
		{"ssh.max_connections", "max_connections: 9", "max_connections: 10", "limits ~ ssh.max_connections is 10, was 9\nrestart ssh"},
		{"ssh.max_sessions", "max_sessions: 8", "max_sessions: 9", "limits ~ ssh.max_sessions is 9, was 8\nrestart ssh"},
		{"ssh.client_alive_interval", "interval: 2s", "interval: 3s", "limits ~ ssh.client_alive_interval is 3s, was 2s\nrestart ssh"},
		{"ssh.client_alive_count_max", "count_max: 3", "count_max: 4", "limits ~ ssh.client_alive_count_max is 4, was 3\nrestart ssh"},
		{"ssh.unused_connection_timeout", "timeout: 4s", "timeout: 5s", "limits ~ ssh.unused_connection_timeout is 5s, was 4s\nrestart ssh"},
		{"ssh.write_timeout", "write_timeout: 5s", "write_timeout: 6s", "limits ~ ssh.write_timeout is 6s, was 5s\nrestart ssh"},
		{"ssh.session_memory", "session_memory: 64MiB, ", "", "limits ~ ssh.session_memory is not set, was 64MiB\nrestart ssh"},
		{"ssh.proxy_protocol", "[192.0.2.1]", "[10.0.0.0/8]", "trust + ssh.proxy_protocol believes 10.0.0.0/8 from where its connections come\ntrust - ssh.proxy_protocol no longer believes 192.0.2.1 from where its connections come"},
		{"ssh.per_source_penalties", "per_source_penalties: {authfail: 1s, noauth: 2s, grace_exceeded: 3s, crash: 4s, min: 5s, max: 6s, exempt: [192.0.2.2]}", "per_source_penalties: off",
			"access + ssh.per_source_penalties keep nobody out, however often a login fails (off); it was authfail 1s, .*"},
		{"ssh.per_source_penalties.authfail", "authfail: 1s", "authfail: 9s", "access ~ ssh.per_source_penalties.authfail is 9s, was 1s"},
		{"ssh.per_source_penalties.noauth", "noauth: 2s", "noauth: 9s", "access ~ ssh.per_source_penalties.noauth is 9s, was 2s"},
		{"ssh.per_source_penalties.grace_exceeded", "exceeded: 3s", "exceeded: 9s", "access ~ ssh.per_source_penalties.grace_exceeded is 9s, was 3s"},
		{"ssh.per_source_penalties.crash", "crash: 4s", "crash: 9s", "access ~ ssh.per_source_penalties.crash is 9s, was 4s"},
		{"ssh.per_source_penalties.min", "min: 5s", "min: 6s", "access ~ ssh.per_source_penalties.min is 6s, was 5s"},
		{"ssh.per_source_penalties.max", "max: 6s", "max: 9s", "access ~ ssh.per_source_penalties.max is 9s, was 6s"},
		{"ssh.per_source_penalties.exempt", "[192.0.2.2]", "[192.0.2.3]", "access + ssh.per_source_penalties.exempt has 192.0.2.3, which is never kept out\naccess - ssh.per_source_penalties.exempt no longer has 192.0.2.2, which can be kept out"},
		{"audit", "audit: {file: a.jsonl, sync: every_second, rotate_size: 1MiB, rotate_age: 2h, keep: 3, on_failure: refuse}", "audit: off",
			"trust - audit keeps nothing of what is done and by whom (off); it was file .*/a.jsonl, sync every_second, .*\nrestart audit"},
		{"audit.file", "a.jsonl", "b.jsonl", "trust ~ audit.file is .*/b.jsonl, was .*/a.jsonl\nrestart audit"},
		{"audit.sync", "every_second", "always", "trust + audit.sync is always, was every_second\nrestart audit"},
		{"audit.rotate_size", "rotate_size: 1MiB", "rotate_size: 64KiB", "trust - audit.rotate_size is 64KiB, was 1MiB\nrestart audit"},
		{"audit.rotate_age", "rotate_age: 2h", "rotate_age: 3h", "trust ~ audit.rotate_age is 3h, was 2h\nrestart audit"},
		{"audit.keep", "keep: 3", "keep: 2", "trust - audit.keep is 2, was 3\nrestart audit"},
		{"audit.on_failure", "on_failure: refuse", "on_failure: continue", "trust - audit.on_failure lets everything go on while nothing can be written (continue); it was refuse\nrestart audit"},
		{"metrics", "metrics: {listen: \"127.0.0.1:9822\", allow_remote: false}\n", "", "trust - metrics is not set, was listen 127.0.0.1:9822, allow_remote false\nrestart metrics"},
		{"metrics.listen", "127.0.0.1:9822", "127.0.0.1:9823", "trust ~ metrics.listen is 127.0.0.1:9823, was 127.0.0.1:9822\nrestart metrics"},
		{"metrics.allow_remote", "allow_remote: false", "allow_remote: true", "trust + metrics.allow_remote lets other machines ask (true); it was false\nrestart metrics"},
		{"reload.watch", "watch: false", "watch: true", "server ~ reload.watch is true, was false"},
		{"reload.running_builds", "running_builds: end", "running_builds: finish", "access + reload.running_builds lets builds of those who are not let in any more come to their end (finish); it was end"},
		{"limits.build_history", "build_history: 7", "build_history: 8", "limits ~ limits.build_history is 8, was 7"},
		{"limits.build_logs", "build_logs: 3MiB", "build_logs: 4MiB", "limits ~ limits.build_logs is 4MiB, was 3MiB"},
		{"cache.size", "size: 10GiB", "size: 11GiB", "cache ~ cache.size is 11GiB, was 10GiB\nrestart cache"},
		{"cache.spool_reserve", "spool_reserve: 1GiB", "spool_reserve: 0", "cache ~ cache.spool_reserve is 0B, was 1GiB\nrestart cache"},
		{"cache.scrub_rate", "scrub_rate: 1MiB", "scrub_rate: 2MiB", "cache ~ cache.scrub_rate is 2MiB, was 1MiB\nrestart cache"},
		{"limits.nar_size", "nar_size: 1GiB", "nar_size: 1MiB", "limits - limits.nar_size is 1MiB, was 1GiB"},
		{"limits.build_log", "build_log: 1MiB", "build_log: 2MiB", "limits + limits.build_log is 2MiB, was 1MiB"},
		{"log.level", "level: info", "level: warn", "server ~ log.level is warn, was info\nrestart log"},
		{"log.format", "format: json", "format: text", "server ~ log.format is text, was json\nrestart log"},
		{"commands.remote_store", "remote_store: refuse", "remote_store: ignore", "trust + commands.remote_store is ignore, was refuse"},
		{"commands.remote_program", "remote_program: refuse", "remote_program: accept", "trust + commands.remote_program is accept, was refuse"},
		{"admin.socket", "a.sock", "b.sock", "server ~ admin.socket is .*/b.sock, was .*/a.sock\nrestart admin.socket"},
		{"admin.users", "users: [anna]", "users: [otto]", "access + admin.users lets otto ask on the admin's socket\naccess - admin.users no longer lets anna ask"},
		{"trusted_public_keys", "cache:", "trusted_public_keys: [{key: " + trustedText("new-1") + ", public: true}]\ncache:",
			"trust + key new-1:.* is trusted: what it signed is proven, and is shown to every domain (public)\ntrust - key cache.nixos.org-1:.* is no longer trusted: .*"},
		{"trusted_public_keys.public", "cache:", "trusted_public_keys: [{key: \"" + defaultTrustedKey + "\", public: true}]\ncache:", "trust + key cache.nixos.org-1:.* opens what it signed to every domain (public: true)"},
		{"domains.share", "share: none", "share: public", "trust + domain default shows all that it vouches for to every domain, .* (share: public); it was none"},
		{"domains.sign", "sign: proven", "sign: domain", "trust + domain ci signs all that it vouches for, .* (sign: domain); it was proven"},
		{"domains.signing_keys", "ci-1.secret", "ci-2.secret", "trust + domain ci has the signing key ci-2:.*\ntrust - domain ci no longer has the signing key ci-1:.*"},
		{"domains.name", "domains: [", "domains: [{name: new}, ", "access ~ domain new is new"},
		{"domains", "domains: [{name: default, share: none}, ", "domains: [", ""}, // it is always there
		{"scheduling.soft_features", "soft_features: [a]", "soft_features: []", "scheduling ~ scheduling.soft_features is empty, was a"},
		{"scheduling.alone", "alone: [b]", "alone: [b, c]", "scheduling ~ scheduling.alone is b, c, was b"},
		{"scheduling.needs", "scheduling: {", "scheduling: {needs: [{name: \"x-*\", resources: {mem: 4}}], ", "scheduling ~ builds named x-[*] need 4 mem (needs): a new rule"},
		{"scheduling.startup_grace", "startup_grace: 1s", "startup_grace: 0", "scheduling ~ scheduling.startup_grace is 0, was 1s"},
		{"scheduling.starve_after", "starve_after: 1m", "starve_after: 2m", "scheduling ~ scheduling.starve_after is 2m, was 1m"},
		{"scheduling.attempts", "attempts: 2", "attempts: 1", "scheduling ~ scheduling.attempts is 1, was 2"},
		{"scheduling.hung_after", "hung_after: 2s", "hung_after: 3s", "scheduling ~ scheduling.hung_after is 3s, was 2s"},
		{"scheduling.linger", "linger: 3s", "linger: 0", "scheduling ~ scheduling.linger is 0, was 3s"},
		{"scheduling.feed_ahead", "feed_ahead: true", "feed_ahead: false", "scheduling ~ scheduling.feed_ahead is false, was true"},
		{"scheduling.feed_ahead_limit", "feed_ahead_limit: 1MiB", "feed_ahead_limit: 2MiB", "scheduling ~ scheduling.feed_ahead_limit is 2MiB, was 1MiB"},
		{"scheduling.history", "history: h", "history: g", "scheduling ~ scheduling.history is .*/g, was .*/h\nrestart scheduling.history"},
		{"load", "load: {every: 1s, max_load: 1, max_pressure: 1, min_memory: 1B, min_disk: 1B}", "load: off",
			"scheduling ~ builder b1 has load: off, was every 1s, max_load 1, max_pressure 1, min_memory 1B, min_disk 1B\nscheduling ~ builder b2 has load: off, .*"},
		{"load.every", "every: 1s", "every: 2s", "scheduling ~ builder b1 has load.every: 2s, was 1s\nscheduling ~ builder b2 .*"},
		{"load.max_load", "max_load: 1", "max_load: 2", "scheduling ~ builder b1 has load.max_load: 2, was 1\nscheduling ~ builder b2 .*"},
		{"load.max_pressure", "max_pressure: 1", "max_pressure: 2", "scheduling ~ builder b1 has load.max_pressure: 2, was 1\nscheduling ~ builder b2 .*"},
		{"load.min_memory", "min_memory: 1B", "min_memory: 2B", "scheduling ~ builder b1 has load.min_memory: 2B, was 1B\nscheduling ~ builder b2 .*"},
		{"load.min_disk", "min_disk: 1B", "min_disk: 2B", "scheduling ~ builder b1 has load.min_disk: 2B, was 1B\nscheduling ~ builder b2 .*"},
		{"builders.load", "resources:", "load: {max_load: 3}, resources:", "scheduling ~ builder b1 has load.max_load: 3, was 1"},
		{"builders.name", "name: b2,", "name: b3,", "builders + builder b3 is new, reached as nix@b2:22: 3 builds at once of x86_64-linux, for domain ci\nbuilders - builder b2 is gone: .*"},
		{"builders.address", "address: b1,", "address: c1,", "access ~ principal anna jumps by the name of builder b1 to c1:22, which was b1:22\ntrust ~ builder b1 has address: c1:22, was b1:22"},
		{"builders.protocol", "protocol: ssh-ng", "protocol: ssh", "trust ~ builder b1 has protocol: ssh, was ssh-ng"},
		{"builders.user", "b1, protocol: ssh-ng, user: nix", "b1, protocol: ssh-ng, user: root", "trust ~ builder b1 has user: root, was nix"},
		{"builders.identity_file", "user: nix, identity_file: builder-key, host", "user: nix, identity_file: " + d.write("key2", privatePEM(testPrivateKey("builder")), 0o600) + ", host", "trust ~ builder b1 has identity_file: .*/key2, was .*/builder-key"},
		{"builders.host_keys", authorizedLine("b1"), authorizedLine("b2"), "trust + builder b1 has ssh-ed25519 .* in host_keys\ntrust - builder b1 no longer has ssh-ed25519 .* in host_keys"},
		{"builders.known_hosts", "known_hosts: hosts", "known_hosts: hosts2", "trust ~ builder b2 has known_hosts: .*/hosts2, was .*/hosts"},
		{"builders.systems", "systems: [x86_64-linux], features", "systems: {i686-linux: 0.5}, features",
			"builders + domain default can build for i686-linux\nbuilders ~ builder b1 has systems: i686-linux 0.5, was x86_64-linux 1\nbuilders - domain default can no longer build for x86_64-linux"},
		{"builders.features", "features: [kvm]", "features: [big]",
			"builders + domain default has a builder with the feature big\nbuilders + builder b1 offers the feature big\nbuilders - domain default no longer has a builder with the feature kvm\nbuilders - builder b1 no longer offers the feature kvm"},
		{"builders.mandatory_features", "mandatory_features: [m]", "mandatory_features: [m, kvm]", "builders ~ builder b1 has mandatory_features: m, kvm, was m"},
		{"builders.max_jobs", "max_jobs: 2", "max_jobs: 1", "builders - domain default has 1 build at once, had 2\nbuilders - builder b1 has max_jobs: 1, was 2"},
		{"builders.speed_factor", "speed_factor: 1", "speed_factor: 2", "builders + builder b1 has speed_factor: 2, was 1"},
		{"builders.remote_program", "resources:", "remote_program: /bin/nix-daemon, resources:", "trust ~ builder b1 has remote_program: /bin/nix-daemon, was not set"},
		{"builders.domains", "domains: [ci]", "domains: [default]", "trust + domain default may use builder b2\ntrust - domain ci may no longer use builder b2\nbuilders + domain default has 5 builds at once, had 2\n" +
			"builders - domain ci can no longer build for x86_64-linux\nbuilders - domain ci has 0 builds at once, had 3"},
		{"builders.builder_content", "builder_content: accept", "builder_content: match", "trust ~ builder b1 gets no build for which it holds an input with other bytes (builder_content: match); it was accept"},
		{"builders.resources", "resources: {mem: 8}", "resources: {mem: 9}", "builders ~ builder b1 has resources: mem 9, was mem 8"},
		{"builders.wake", "wake: {command: [w], timeout: 1m}, sleep: {command: [s], after: 1m}", "remote_program: /x/nix-daemon", "trust ~ builder b1 has remote_program: /x/nix-daemon, was not set\ntrust ~ builder b1 has wake: not set, was command w, timeout 1m\ntrust ~ builder b1 has sleep: not set, was command s, after 1m"},
		{"builders.wake.command", "[w]", "[v, x]", "trust ~ builder b1 has wake.command: v, x, was w"},
		{"builders.wake.timeout", "timeout: 1m}", "timeout: 2m}", "trust ~ builder b1 has wake.timeout: 2m, was 1m"},
		{"builders.sleep.command", "[s]", "[r]", "trust ~ builder b1 has sleep.command: r, was s"},
		{"builders.sleep.after", "after: 1m}", "after: 2m}", "trust ~ builder b1 has sleep.after: 2m, was 1m"},
		{"builders.sleep", ", sleep: {command: [s], after: 1m}", "", "trust ~ builder b1 has sleep: not set, was .*"},
		{"builders", "{name: b2,", "{name: b4, address: b4, user: nix, identity_file: builder-key, known_hosts: hosts4, systems: [aarch64-linux], max_jobs: 7, wake: {command: [w]}}\n  - {name: b2,",
			"trust ~ builder b4 has the proxy run \\[w\\]\nbuilders + domain default can build for aarch64-linux\nbuilders + domain default has 9 builds at once, had 2\nbuilders + builder b4 is new, .*"},
		{"principals.name", "name: otto", "name: eva", "access + principal eva is new: may fetch (role read) in domain ci, with 1 key\naccess + principal eva can log in with key SHA256:.*, which was that of principal otto\n" +
			"access - principal otto is gone: nobody can log in as it, who could fetch (role read) in domain ci\naccess - principal otto can no longer log in with key SHA256:.*, which is that of principal eva"},
		{"principals.role", "role: read", "role: full", "access + principal otto may upload and build (role full, was read); can plant any store path for everybody of domain ci, and is as good as a trusted user of b2"},
		{"principals.domain", "domain: ci, keys", "domain: default, keys", "access + principal otto comes into domain default and may fetch (role read) there\naccess - principal otto leaves domain ci, with all that it had there"},
		{"principals.keys", authorizedLine("anna"), authorizedLine("eva"), "access + principal anna can log in with key SHA256:.*\naccess - principal anna can no longer log in with key SHA256:.*"},
		{"principals.authorized_keys", "otto.keys", "more.keys", "access + principal otto can log in with key MORE"},
		{"principals.max_jobs", "max_jobs: 4, ", "", "limits + principal anna has max_jobs: not set, was 4"},
		{"principals.max_connections", "max_connections: 50, ", "", "limits + principal anna has max_connections: not set, was 50"},
		{"principals.connections_per_minute", "connections_per_minute: 60", "connections_per_minute: 61", "limits + principal anna has connections_per_minute: 61, was 60"},
		{"principals.builds_per_minute", "builds_per_minute: 70", "builds_per_minute: 69", "limits - principal anna has builds_per_minute: 69, was 70"},
		{"principals.no_builder", "no_builder: serve", "no_builder: refuse", "scheduling ~ principal anna has no_builder: refuse, was serve"},
		{"principals.publish", "publish: false", "publish: true", "access + principal anna has its domain vouch for what it uploads (publish: true); it was false"},
		{"principals.check_builds", "check_builds: allow", "check_builds: refuse", "access - principal anna may not have outputs built again .*; it was allow"},
		{"principals.repair_builds", "repair_builds: refuse", "repair_builds: allow", "access + principal anna may have outputs built again and replaced .*; it was refuse"},
		{"principals.jump", "jump: [b1]", "jump: [b2]", "access + principal anna may jump through the proxy to b2\naccess - principal anna may no longer jump to b1"},
		{"principals.class", "class: normal", "class: bulk", "scheduling - principal anna has class: bulk, was normal"},
		{"principals.weight", "weight: 1}", "weight: 1.5}", "scheduling + principal anna has weight: 1.5, was 1"},
		{"principals", "  - {name: otto, role: read, domain: ci, keys: [" + authorizedLine("otto") + "], authorized_keys: otto.keys}\n", "", "access - principal otto is gone: .*\naccess - principal otto can no longer log in .*"},
		{"revoked_keys", "cache:", "revoked_keys: revoked\ncache:", "access - certificate with id \"x\" is revoked and opens nothing\naccess - certificate with serials 7-9 is revoked and opens nothing\n" +
			"access - key SHA256:.* is revoked and opens nothing: it is that of principal anna"},
		{"build_limits", "timeout: 1h", "timeout: 2h", "limits ~ builds .*2h.*: a new rule\nlimits ~ builds no longer .*1h.*: the rule is gone"},
		{"include", "limits: {nar_size: 1GiB, ", "include: own.yaml\nlimits: {", "limits + limits.nar_size is 2GiB, was 1GiB"},
	} {
		d.write("hosts4", "b4 "+authorizedLine("b2")+"\n", 0o644)
		d.write("hosts", "b2,b3 "+authorizedLine("b2")+"\n", 0o644)
		if strings.Count(base, c.old) < 1 {
			t.Fatalf("%s: nothing to change", c.key)
		}
		changed := strings.Replace(base, c.old, c.next, 1)
		got := d.compared(t, base, changed)
		want := strings.NewReplacer("(", `\(`, ")", `\)`, "+", `\+`).Replace(keys.Replace(c.want))
		if !regexp.MustCompile("^" + want + "$").MatchString(got) {
			t.Errorf("%s: got\n%s\nwant\n%s", c.key, got, keys.Replace(c.want))
		}
		back := d.compared(t, changed, base)
		if (back == "") != (c.want == "") || strings.Count(back, " + ") != strings.Count(got, " - ") || strings.Count(back, " - ") < strings.Count(got, " + ") {
			t.Errorf("%s, taken back: got\n%s\nafter\n%s", c.key, back, got)
		}
	}
}

// Guards against a policy that differs from itself, or from what is printed of it.
func TestAPolicyIsTheSameAsItself(t *testing.T) {
	d, text := example(t)
	all := commentedOut.ReplaceAllString(text, "$1$2")
	if got := d.compared(t, all, all); got != "" {
		t.Errorf("got %s", got)
	}
	if got := d.compared(t, text, d.printed(t, text)); got != "" {
		t.Errorf("printed: got %s", got)
	}
}

// Guards against an order of rules that changes in silence: the first counts.
func TestTheOrderOfBuildLimitsIsAChange(t *testing.T) {
	d := newDir(t)
	a, b := "{system: a-linux, timeout: 1h}", "{system: b-linux, timeout: 2h}"
	got := d.compared(t, minimal+"build_limits: ["+a+", "+b+"]\n", minimal+"build_limits: ["+b+", "+a+"]\n")
	if !strings.HasPrefix(got, "limits ~ build_limits has its rules in another order, and for each limit the first counts: ") || strings.Index(got, "b-linux") > strings.Index(got, "a-linux") {
		t.Errorf("got %s", got)
	}
	same := "{system: a-linux, timeout: 1h}, {system: a-linux, cores: 2}"
	if got := d.compared(t, minimal+"build_limits: ["+same+"]\n", minimal+"build_limits: ["+same+"]\n"); got != "" {
		t.Errorf("got %s", got)
	}
}

// Guards against a new full key whose whole power is said nowhere.
func TestNewFullKeysAreSaidToPlantPaths(t *testing.T) {
	d := newDir(t)
	base := minimal + "domains: [{name: ci, signing_keys: [ci-1.secret], share: public}]\n" + builderText("    domains: [ci]\n")
	got := d.compared(t, base, base+"principals: [{name: eva, role: full, domain: ci, publish: true, repair_builds: allow, jump: [b1], keys: ["+authorizedLine("eva")+"]}]\n")
	want := "access + principal eva is new: may upload, build and fetch (role full) in domain ci, with 1 key; can plant any store path for everybody of every domain and for everyone who trusts key ci-1, " +
		"and is as good as a trusted user of b1; may jump through the proxy to b1; its domain vouches for what it uploads (publish); may have outputs built again and replaced (repair_builds)\n"
	if !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Guards against a widening that stands below the small print: what somebody gains in
// rights comes before everything else, and what a narrowed key loses is called a loss.
func TestChangesAreSortedByImportance(t *testing.T) {
	d := newDir(t)
	policy := func(cache, anna, rest string) string {
		return minimal + "cache: {size: " + cache + "}\nprincipals: [{name: anna, role: read, keys: ['" + anna + authorizedLine("anna") + "']}" + rest + "]\n"
	}
	diff := d.load(t, policy("1GiB", "", "")).Compare(d.load(t, policy("2GiB", `from="192.0.2.1" `, ", {name: eva, role: full, keys: ["+authorizedLine("eva")+"]}")))
	var out bytes.Buffer
	if err := diff.Write(&out); err != nil {
		t.Fatal(err)
	}
	print := func(name string) string { return Fingerprint(testKey(name)) }
	want := "Who may do what\n" +
		"  + principal eva is new: may upload, build and fetch (role full) in domain default, with 1 key; can plant any store path for everybody of domain default\n" +
		"  + principal eva can log in with key " + print("eva") + "\n" +
		"  - principal anna can log in with key " + print("anna") + " (only from 192.0.2.1); that was without restrictions\n" +
		"The store\n  ~ cache.size is 2GiB, was 1GiB\n  ~ cache.spool_reserve is 214748364B, was 107374182B\n\nCounts only after a restart: cache\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	text, err := json.Marshal(diff)
	if err != nil || !strings.HasPrefix(string(text), `{"changes":[{"area":"access","effect":"gains","subject":"principal eva","text":"is new: `) || !strings.HasSuffix(string(text), `"restart":["cache"]}`) {
		t.Errorf("got %s, %v", text, err)
	}
}

// Guards against a list that is new in the policy and that nobody taught diff.
func TestListsWithoutSentencesOfTheirOwnAreCompared(t *testing.T) {
	list := func(word string) []field {
		return []field{{key: "new", value: [][]field{{{key: "a", value: word}, {key: "b", value: 1}}}}}
	}
	c := &comparison{}
	c.fields("", "", list("x"), list("y"))
	if want := (Change{AreaServer, Changes, "new", "is a y, b 1, was a x, b 1"}); len(c.changes) != 1 || c.changes[0] != want {
		t.Errorf("got %+v, want %+v", c.changes, want)
	}
}
