package policy

import (
	"fmt"
	"strings"
)

// alsoCalled are words that other programs use for our keys.
var alsoCalled = map[string]string{
	"host": "address", "hostname": "address", "ssh_user": "user", "login": "user",
	"ssh_key": "identity_file", "key_file": "identity_file", "host_key": "host_keys", "public_host_key": "host_keys",
	"system": "systems", "jobs": "max_jobs", "speed": "speed_factor", "supported_features": "features",
	"users": "principals", "clients": "principals", "machines": "builders", "authorized_keys_file": "authorized_keys",
	"public_keys": "keys", "max_size": "size", "address": "listen", "port": "listen", "state": "state_dir",
	"max_silent_time": "max_silent", "silent_timeout": "max_silent", "max_build_log_size": "max_log_size", "max_time": "timeout", "build_timeout": "timeout",
	"retries": "attempts", "max_attempts": "attempts", "tries": "attempts", "priority": "class", "share": "weight", "consumables": "resources",
	"requires": "feature", "features": "feature", "pattern": "name", "pname": "name", "idle": "after", "wake_up": "wake", "suspend": "sleep",
	"trusted_keys": "trusted_public_keys", "permit_open": "jump", "permitopen": "jump", "jump_hosts": "jump", "targets": "jump",
}

// didYouMean returns the hint for a key that nobody knows.
func didYouMean(got string, settings []setting) string {
	plain := plainKey(got)
	best, distance := "", 3
	for _, s := range settings {
		if alsoCalled[plain] == s.key {
			return fmt.Sprintf("did you mean %q?", s.key)
		}
		if far := edits(plain, plainKey(s.key)); far < distance && far*2 <= len(s.key) {
			best, distance = s.key, far
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "known keys: " + keyList(settings)
}

// plainKey makes maxJobs, max-jobs and max_jobs one.
func plainKey(key string) string {
	const longest = 40 // no key is nearly as long
	var b strings.Builder
	for i, r := range key[:min(len(key), longest)] {
		if r >= 'A' && r <= 'Z' && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ReplaceAll(strings.ToLower(b.String()), "-", "_")
}

// edits is how many letters must be put in, left out or changed to make b of a.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
