package worker

import "cmp"

// Limits bound what a peer can make this end hold or take. Nix sets none of
// them. A zero field means the default.
type Limits struct {
	// MessageBytes is the memory that all strings of one request or reply may
	// take. The default of 64 MiB holds the largest derivations known (flakes
	// put JSON into their environment) and sets of some 500,000 paths.
	MessageBytes int64
	// Paths is how many paths a set may have and how many an upload. Default
	// 1,048,576, more than any store in use holds.
	Paths int
	// NarSize is the largest NAR taken or fetched, in bytes. Default 64 GiB.
	NarSize uint64
}

const (
	defaultMessageBytes = 64 << 20
	defaultPaths        = 1 << 20
	defaultNarSize      = 64 << 30
)

func (l Limits) withDefaults() Limits {
	return Limits{
		MessageBytes: cmp.Or(l.MessageBytes, defaultMessageBytes),
		Paths:        cmp.Or(l.Paths, defaultPaths),
		NarSize:      cmp.Or(l.NarSize, defaultNarSize),
	}
}

// Limits that nobody needs to move.
const (
	// maxString is for names, hashes, signatures and versions, in bytes: far
	// above every real one, and a page of memory for a lying one.
	maxString = 64 << 10
	// maxReferences and maxSigs are per path. System profiles have some
	// thousand references.
	maxReferences = 10_000
	maxSigs       = 100
	// maxOutputs is per derivation; the largest in nixpkgs have about 20.
	maxOutputs = 256
	// maxArguments and maxEnv bound a derivation beside its bytes.
	maxArguments = 100_000
	maxEnv       = 100_000
	// keepText is how much is kept of a text for people, in bytes; what follows
	// is skipped, since a program may print megabytes without a newline.
	keepText = 64 << 10
	// maxText is where such a text is a lie.
	maxText = 64 << 20
	// maxFields is per log message; Nix sends up to four.
	maxFields = 64
	// maxTraces is per error.
	maxTraces = 1024
	// maxFeatures and maxFeatureName bound the feature exchange.
	maxFeatures    = 64
	maxFeatureName = 256
	// maxOverrides is per SetOptions: Nix has some 200 settings.
	maxOverrides = 1024
	// maxGreeting is how much is read and shown of what a peer says instead of
	// the protocol, in bytes: enough for a shell's complaint.
	maxGreeting = 2 << 10
)
