package worker

import (
	"fmt"
	"slices"

	"nixbastion/internal/nix/wire"
)

// Version is a version of the protocol in its wire form, major<<8 | minor.
type Version uint64

// The versions that this package speaks, from that of Nix 2.3 on. There is no
// 1.39: newer abilities are named features.
const (
	Oldest Version = 1<<8 | 21
	Latest Version = 1<<8 | 38
)

// What came with which version.
const (
	sinceOutputMap          Version = 1<<8 | 22
	sinceFramedNar          Version = 1<<8 | 23
	sinceContentMethod      Version = 1<<8 | 25
	sinceStructuredErrors   Version = 1<<8 | 26
	sinceSubstituteFlag     Version = 1<<8 | 27
	sinceRealisations       Version = 1<<8 | 27
	sinceBuiltOutputs       Version = 1<<8 | 28
	sinceBuildTimes         Version = 1<<8 | 29
	sinceDerivedPaths       Version = 1<<8 | 30
	sinceRealisationJSON    Version = 1<<8 | 31
	sinceAddMultipleToStore Version = 1<<8 | 32
	sinceDaemonVersion      Version = 1<<8 | 33
	sinceBuildResults       Version = 1<<8 | 34
	sinceTrust              Version = 1<<8 | 35
	sinceCPUTimes           Version = 1<<8 | 37
	sinceFeatures           Version = 1<<8 | 38
	// Clients before it do not look at an error in reply to NarFromPath.
	sinceNarErrors Version = 1<<8 | 38
)

// String returns "1.38" for example.
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.major(), uint64(v)&0xff) }

func (v Version) major() uint64 { return uint64(v) >> 8 }

// VersionError says that the peer's version is not spoken here.
type VersionError struct {
	// Peer is "client" or "daemon".
	Peer string
	// Got is the peer's version, Min the least that is spoken here.
	Got, Min Version
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("this Nix %s speaks version %s of the worker protocol; %s or a newer 1.x is needed (%s)",
		e.Peer, e.Got, e.Min, releaseOf(e.Min))
}

func releaseOf(v Version) string {
	switch v {
	case Oldest:
		return "Nix 2.3"
	case sinceAddMultipleToStore:
		return "Nix 2.4"
	}
	return "see Nix's release notes"
}

// Features that this package can speak. Who opens a connection names those that
// it wants to offer.
const (
	// FeatureRealisationPaths names outputs by the path of their derivation
	// instead of its hash. Nix 2.35 and newer offer it.
	FeatureRealisationPaths = "realisation-with-path-not-hash"
	// FeatureDeleteReferrers changes the form of CollectGarbage. Nix 2.35 and
	// newer offer it.
	FeatureDeleteReferrers = "delete-dead-specific-referrers"
)

// dialect is what the two ends of a connection agreed to speak.
type dialect struct {
	version  Version
	features []string
}

func (d *dialect) has(feature string) bool { return slices.Contains(d.features, feature) }

// agree sets the version to the smaller of both, or fails if the peer's is
// below least or of another major version.
func (d *dialect) agree(peer string, theirs, ours, least Version) error {
	if theirs.major() != Latest.major() || theirs < least {
		return &VersionError{Peer: peer, Got: theirs, Min: least}
	}
	d.version = min(theirs, ours)
	return nil
}

func (d *dialect) agreeFeatures(theirs, ours []string) {
	d.features = nil
	for _, f := range ours {
		if slices.Contains(theirs, f) {
			d.features = append(d.features, f)
		}
	}
}

// conn is one end of a connection: what the readers and writers of messages
// need. Reading and writing are independent of each other.
type conn struct {
	r *wire.Reader
	w *wire.Writer
	dialect
	limits Limits
}

// readMessage starts a message: what it takes of memory counts from here.
func (c *conn) readMessage() { c.r.Budget(c.limits.MessageBytes) }
