package upstream

import "testing"

// Guards against a daemon that is trusted with what only later ones do right,
// because of how its version is written.
func TestReleasesAreTold(t *testing.T) {
	for version, want := range map[string]bool{
		"2.34.8": true, "2.34": true, "2.34.0pre20260101_abcdef": true, "2.35.2 (nixbastion 1)": true, "3.0.0": true,
		"2.33.9": false, "2.8.0": false, "older than 2.7": false, "": false, "2": false, "1.99": false, "nix 2.34": false,
		"2.93.3": false, "2.94.0-lix": false,
	} {
		if got := releaseAtLeast(version, 2, 34); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}
