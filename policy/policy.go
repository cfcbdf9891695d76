package policy

import (
	"log/slog"

	"golang.org/x/crypto/ssh"
)

// Policy is a valid policy file with its defaults filled in. Only Load makes
// one; it does not change afterwards and may be read by anybody.
type Policy struct {
	// Listen are the addresses (host:port) of the SSH front.
	Listen []string
	// StateDir holds the host key, the cache and temporary files.
	StateDir   string
	SSH        SSH
	Cache      Cache
	Limits     Limits
	Log        Log
	Domains    []Domain
	Builders   []Builder
	Principals []Principal

	keys map[string]*grant // by the key's wire form
}

// SSH adjusts the front that clients meet.
type SSH struct {
	// Ciphers, when set, are offered to every client in this order. Empty: the
	// proxy chooses by the client's identification line.
	Ciphers []string
}

// Cache bounds the store on disk, in bytes.
type Cache struct {
	// Size is the high watermark of what is kept.
	Size int64
	// SpoolReserve is free space kept for uploads when the cache is full.
	SpoolReserve int64
}

// Limits bound what one client can take, in bytes.
type Limits struct {
	// BuildLog is how much of one build's log is kept and shown.
	BuildLog int64
	// NarSize is the largest NAR that is accepted.
	NarSize int64
}

// Log is how the proxy logs, on standard error.
type Log struct {
	Level slog.Level
	// Format is "json" or "text".
	Format string
}

// Domain is a set of keys that trust each other, and the namespace of what they
// upload and have built.
type Domain struct {
	Name string
}

// Content says what happens when a builder holds an input with other bytes than
// ours. The zero value is the strict one.
type Content int

const (
	// ContentMatch keeps such a builder from the build.
	ContentMatch Content = iota
	// ContentAccept uses what the builder holds, as Nix does.
	ContentAccept
)

// Builder is a machine that builds.
type Builder struct {
	Name string
	// Address is host:port.
	Address string
	User    string
	// IdentityFile is the private key that opens the account.
	IdentityFile string
	// HostKeys are the keys that the builder may show; with none, KnownHosts is
	// the file that has them.
	HostKeys   []ssh.PublicKey
	KnownHosts string
	// RemoteProgram is the nix-daemon to run there; "" tries the usual places.
	RemoteProgram string
	// Systems has the speed of each system as a factor to SpeedFactor.
	Systems           map[string]float64
	Features          []string
	MandatoryFeatures []string
	// MaxJobs is the number of builds at once.
	MaxJobs     int
	SpeedFactor float64
	// Domains are those that may use the builder.
	Domains []string
	Content Content
}

// Role is what a principal may do. The zero value may do nothing.
type Role int

const (
	// RoleNone may do nothing; no loaded principal has it.
	RoleNone Role = iota
	// RoleRead may query and fetch.
	RoleRead
	// RoleFull may also upload and build, as a trusted user of the builders.
	RoleFull
)

// String is the word of the policy file.
func (r Role) String() string {
	switch r {
	case RoleRead:
		return "read"
	case RoleFull:
		return "full"
	}
	return "none"
}

// NoBuilder says what a principal's sessions get while no builder of its domain
// is up.
type NoBuilder int

const (
	// NoBuilderServe answers all that needs no builder.
	NoBuilderServe NoBuilder = iota
	// NoBuilderRefuse refuses the session, so that the client builds by itself.
	NoBuilderRefuse
)

// Principal is who a set of keys belongs to.
type Principal struct {
	Name   string
	Role   Role
	Domain string
	// MaxJobs is how many builds of the principal may run at once; 0 is any number.
	MaxJobs int
	// MaxConnections of the principal at one time; 0 is the front's default.
	MaxConnections int
	NoBuilder      NoBuilder
}
