package wire

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

// The defaults of Limits.
const (
	DefaultMessageBytes = 64 << 20
	DefaultPaths        = 1 << 20
	DefaultNarSize      = 64 << 30
)

// WithDefaults returns the limits with nothing left at zero.
func (l Limits) WithDefaults() Limits {
	return Limits{
		MessageBytes: cmp.Or(l.MessageBytes, DefaultMessageBytes),
		Paths:        cmp.Or(l.Paths, DefaultPaths),
		NarSize:      cmp.Or(l.NarSize, DefaultNarSize),
	}
}

// Limits that nobody needs to move.
const (
	// MaxString is for names, hashes, signatures and versions, in bytes: far
	// above every real one, and a page of memory for a lying one.
	MaxString = 64 << 10
	// MaxReferences and MaxSigs are per path. System profiles have some
	// thousand references.
	MaxReferences = 10_000
	MaxSigs       = 100
	// MaxOutputs is per derivation; the largest in nixpkgs have about 20.
	MaxOutputs = 256
	// MaxArguments and MaxEnv bound a derivation beside its bytes.
	MaxArguments = 100_000
	MaxEnv       = 100_000
	// KeepText is how much is kept of a text for people, in bytes; what follows
	// is skipped, since a program may print megabytes without a newline.
	KeepText = 64 << 10
	// MaxText is where such a text is a lie.
	MaxText = 64 << 20
	// maxGreeting is how much is read and shown of what a peer says instead of
	// the protocol, in bytes: enough for a shell's complaint.
	maxGreeting = 2 << 10
)
