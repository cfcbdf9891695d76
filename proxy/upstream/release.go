package upstream

import (
	"fmt"

	"nixbastion/policy"
)

// lixMinor is from which minor release of 2 on a version is one of Lix, whose
// numbers do not say which of Nix's faults it has.
const lixMinor = 90

// AtLeast reports whether the other end is a daemon of Nix that says to be of this
// release or a later one. It is false where that is not known: of the serve
// protocol, of Lix, and of daemons that do not tell.
func (s *Session) AtLeast(major, minor int) bool {
	if s.d.builder.target.protocol == policy.ProtocolServe {
		return false
	}
	return releaseAtLeast(s.d.nix, major, minor)
}

func releaseAtLeast(version string, major, minor int) bool {
	var gotMajor, gotMinor int
	if n, err := fmt.Sscanf(version, "%d.%d", &gotMajor, &gotMinor); n != 2 || err != nil {
		return false
	}
	if gotMajor == 2 && gotMinor >= lixMinor {
		return false
	}
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}
