package policy

import (
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
)

// Policy is a valid policy file with its defaults filled in. Only Load makes
// one; it does not change afterwards and may be read by anybody.
type Policy struct {
	// Listen are the addresses (host:port) of the SSH front.
	Listen []string
	// DrainTimeout is how long running builds and sessions get to end when the proxy
	// is stopped; 0 is no time at all.
	DrainTimeout time.Duration
	// StateDir holds the host key, the cache and temporary files.
	StateDir   string
	SSH        SSH
	Cache      Cache
	Limits     Limits
	Log        Log
	Domains    []Domain
	Builders   []Builder
	Principals []Principal

	// Included are the files that were read as parts of the policy, in their order.
	Included []string
	// Commands says what clients may put into the command that they ask for.
	Commands Commands
	// TrustedPublicKeys are those whose signatures prove a store path, as in
	// Nix's setting of that name.
	TrustedPublicKeys []TrustedKey
	// Admin is the socket for the admin's own questions.
	Admin Admin
	// Audit is the log of what was done, by whom.
	Audit Audit
	// Metrics is where the proxy tells how it does.
	Metrics Metrics
	// RevokedKeys is the file with keys and certificates that open nothing, whatever
	// else is said; "" for none.
	RevokedKeys string
	// Scheduling says where and when builds run.
	Scheduling Scheduling
	// Reload says how a changed policy gets into force.
	Reload Reload
	// BuildLimits bound builds, the first rule that applies before the others.
	BuildLimits []BuildLimit

	// FileHash is the SHA-256 of the file's bytes, in hex, followed by those of the files
	// that it includes, in the order of Included.
	FileHash string

	keys        map[string]*grant   // by the key's wire form
	authorities map[string][]*grant // by the wire form of a key that signs certificates, in the order of the file
	revoked     *revocations        // nil: nothing is
}

// Commands says what clients may put into the command that they ask for. What is
// run never depends on it: nothing is.
type Commands struct {
	// RemoteStore says what happens to --store (the store parameter remote-store).
	RemoteStore RemoteStore
	// PlainProgram refuses programs with a directory before their name (the store
	// parameter remote-program).
	PlainProgram bool
}

// RemoteStore says what happens to a command that names another store. The zero
// value is the strict one.
type RemoteStore int

const (
	// RemoteStoreRefuse refuses the command.
	RemoteStoreRefuse RemoteStore = iota
	// RemoteStoreIgnore serves the proxy's own store all the same.
	RemoteStoreIgnore
)

// Admin is a unix socket on which the proxy answers the admin.
type Admin struct {
	// Socket is its path. Its mode is 0660. Longer ones than sockets can have are
	// possible, if they follow from the state directory.
	Socket string
	// Users are the accounts that may ask besides root and the proxy's own.
	Users []string
}

// SSH adjusts the front that clients meet.
type SSH struct {
	// Ciphers, when set, are offered to every client in this order. Empty: the
	// proxy chooses by the client's identification line.
	Ciphers []string
	// HostCertificate vouches for the proxy's host key; nil for none. It was read
	// and checked, and may be out of its time all the same: see
	// [HostCertificate.Fault].
	HostCertificate *HostCertificate
	// Limits are what clients can take.
	Limits FrontLimits
	// Penalties keep sources out that fail to log in.
	Penalties Penalties
	// ProxyProtocol are networks of load balancers: connections from there begin with
	// a PROXY header (v1 or v2), and those from elsewhere never do.
	ProxyProtocol []netip.Prefix
}

// Cache bounds the store on disk, in bytes.
type Cache struct {
	// Size is the high watermark of what is kept.
	Size int64
	// SpoolReserve is free space kept for uploads when the cache is full.
	SpoolReserve int64
	// ScrubRate is how much of it is read again each second to find what rotted on
	// disk; 0 is off.
	ScrubRate int64
}

// Limits bound what one client can take, and what is kept of builds.
type Limits struct {
	// BuildLog is how much of one build's log is kept and shown, in bytes.
	BuildLog int64
	// BuildLogs is how much is kept of all logs of builds that have ended, in bytes,
	// and BuildHistory of how many of them it is known how they ended.
	BuildLogs    int64
	BuildHistory int
	// NarSize is the largest NAR that is accepted, in bytes.
	NarSize int64
}

// Log is how the proxy logs, on standard error.
type Log struct {
	Level slog.Level
	// Format is "json" or "text".
	Format string
}

// TrustedKey is a key whose signatures prove a store path.
type TrustedKey struct {
	nix.PublicKey
	// Public says that what the key signed may be shown to every domain, once one
	// of them has brought it.
	Public bool
}

// Domain is a set of keys that trust each other, and the namespace of what they
// upload and have built.
type Domain struct {
	Name string
	// SigningKeys sign as Sign says, all of them. None: nothing is signed.
	SigningKeys []nix.SigningKey
	Sign        Signing
	// Share says who else sees what the domain vouches for.
	Share Share
}

// Share says who sees what a domain vouches for, besides itself. The zero value is
// the strict one.
type Share int

const (
	// ShareNone keeps everything in the domain but what a public key has signed.
	ShareNone Share = iota
	// SharePublic shows it to every domain, apart from what is merely claimed.
	SharePublic
)

// Content says what happens when a builder holds an input with other bytes than
// ours. The zero value is the strict one.
type Content int

const (
	// ContentMatch keeps such a builder from the build.
	ContentMatch Content = iota
	// ContentAccept uses what the builder holds, as Nix does.
	ContentAccept
)

// Protocol is how a builder is spoken to.
type Protocol int

const (
	// ProtocolWorker is that of nix-daemon --stdio (ssh-ng).
	ProtocolWorker Protocol = iota
	// ProtocolServe is that of nix-store --serve (ssh), for builders with a
	// forced command or a Nix older than 2.4.
	ProtocolServe
)

// Builder is a machine that builds.
type Builder struct {
	Name string
	// Socket is the path of the daemon's socket on this machine, for a builder
	// that is not reached over SSH; Address, User, IdentityFile, HostKeys,
	// KnownHosts and RemoteProgram are empty then. Else it is empty.
	Socket string
	// Protocol is spoken with a builder that is reached over SSH.
	Protocol Protocol
	// Address is host:port.
	Address string
	User    string
	// IdentityFile is the private key that opens the account.
	IdentityFile string
	// HostKeys are the keys that the builder may show; with none, KnownHosts is
	// the file that has them.
	HostKeys   []ssh.PublicKey
	KnownHosts string
	// RemoteProgram is the nix-daemon, or with ProtocolServe the nix-store, to run
	// there; "" tries the usual places.
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
	// Resources are what builds need of it besides a slot, by name: as much as all
	// its builds together may take.
	Resources map[string]int64
	Load      LoadLimits
	Wake      Wake
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
	// ConnectionsPerMinute and BuildsPerMinute are how many it may begin.
	ConnectionsPerMinute, BuildsPerMinute Rate
	NoBuilder                             NoBuilder
	// Publish says that the domain vouches for what the principal uploads, as for
	// its own builds. Without it an upload that nothing proves is a claim.
	Publish bool
	// CheckBuilds and RepairBuilds let the principal ask for builds of that mode.
	CheckBuilds, RepairBuilds bool
	// Jump are the targets that the principal may reach through the proxy, as a
	// jump host. None: it may reach nothing.
	Jump []JumpTarget
	// Class says before and behind whom its builds wait, and Weight how much it gets
	// against others of its class; 1 is usual.
	Class  Class
	Weight float64
}

// JumpTarget is a pattern of targets of the bastion. Two are the same if == says
// so.
type JumpTarget struct {
	// Builder is the name of a builder that is reached over SSH; or, if that is
	// empty:
	Builder string
	// Host is a host name in lower case without a last dot, in which a label "*"
	// stands for exactly one label; or, if that is empty, Net has the addresses, of
	// IPv4 never as IPv6.
	Host string
	Net  netip.Prefix
	// Port is the one that may be reached; 0 stands for every port, and for a
	// builder for its own.
	Port uint16
}
