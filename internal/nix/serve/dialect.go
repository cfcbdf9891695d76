package serve

import (
	"fmt"

	"nixbastion/internal/nix/wire"
)

// Version is a version of the protocol in its wire form, major<<8 | minor.
type Version uint64

// The versions that this package speaks. Both ends announce Announced, which
// every Nix since 2.4 speaks and Lix will for ever: programs of Nix 2.4 to 2.10
// send outputs of builds also to those who announce less.
const (
	Oldest    Version = 2<<8 | 1
	Announced Version = 2<<8 | 7
	Latest    Version = 2<<8 | 8
)

// What came with which version.
const (
	sinceLogLimit      Version = 2<<8 | 2
	sinceBuildTimes    Version = 2<<8 | 3
	sinceRepeats       Version = 2<<8 | 3
	sinceNarHash       Version = 2<<8 | 4
	sinceAddToStoreNar Version = 2<<8 | 5
	sinceBuiltOutputs  Version = 2<<8 | 6
	sinceKeepFailed    Version = 2<<8 | 7
	sinceOutputNames   Version = 2<<8 | 8
)

// String returns "2.7" for example.
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.major(), uint64(v)&0xff) }

func (v Version) major() uint64 { return uint64(v) >> 8 }

// VersionError says that the peer's version is not spoken here.
type VersionError struct {
	// Peer is "client" or "server".
	Peer string
	// Got is the peer's version, Min the least that is spoken here.
	Got, Min Version
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("this Nix %s speaks version %s of the serve protocol; %s or a newer 2.x is needed (%s)",
		e.Peer, e.Got, e.Min, releaseOf(e.Min))
}

func releaseOf(v Version) string {
	if v == sinceNarHash {
		return "Nix 2.0"
	}
	return "see Nix's release notes"
}

// dialect is what the two ends of a connection agreed to speak.
type dialect struct{ version Version }

// agree sets the version to the smaller of both, or fails if the peer's is
// below least or of another major version.
func (d *dialect) agree(peer string, theirs, ours, least Version) error {
	if theirs.major() != Latest.major() || theirs < least {
		return &VersionError{Peer: peer, Got: theirs, Min: least}
	}
	d.version = min(theirs, ours)
	return nil
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
