package audit

import "time"

// Kind is what happened. Kinds are words of the file format: none ever changes its
// meaning.
type Kind string

// What happens to the log itself.
const (
	// Begin is the first line of each file: Reason says why there is a new one, After
	// names the file before.
	Begin Kind = "begin"
	// Recovered ends what a crash left of a line: Bytes of it, with the hash SHA256.
	Recovered Kind = "recovered"
	// Dropped says that Count events are missing here, since they could not be written.
	Dropped Kind = "dropped"
)

// What happens in the proxy.
const (
	// Start and Stop are the proxy's own, with Version, and at the start File and
	// FileHash of the policy.
	Start Kind = "start"
	Stop  Kind = "stop"
	// Login is a client that has proved to own a key.
	Login Kind = "login"
	// LoginRefused is one that was not let in. At most one a second is written beyond
	// a first hundred, or anybody could push everything else out of the files;
	// Suppressed counts those that were left out before this one.
	LoginRefused Kind = "login_refused"
	// Refused is something that a client asked for, Command, and may not have.
	Refused Kind = "refused"
	// Upload is a path that a client brought. Result is added, or already valid, or
	// differs if the store has other bytes, which stay.
	Upload Kind = "upload"
	// Build is a build as it ended, or one more client who asked for it (Shared).
	// Result is Nix's word, AlreadyValid with no Builder for what the store had, or
	// Canceled for what was given up.
	Build Kind = "build"
	// OutputRefused is an output whose bytes are not what the builder had announced.
	OutputRefused Kind = "output_refused"
	// BuilderRefused is a builder that was not spoken to as it is not the one that
	// the policy names: it showed another host key.
	BuilderRefused Kind = "builder_refused"
	// Sign is a signature by each of SigningKeys on a path that became valid, or, with a
	// Principal, one by somebody else's key that a client has brought for it.
	Sign Kind = "sign"
	// Resign is a pass over the store after a change of keys: Count paths got
	// signatures.
	Resign Kind = "resign"
	// Jump is a connection through the proxy to Target, which was Dialled; JumpEnd its
	// end, with bytes. JumpRefused is one that was not made.
	Jump        Kind = "jump"
	JumpEnd     Kind = "jump_end"
	JumpRefused Kind = "jump_refused"
	// Policy is a policy file that was loaded while the proxy ran, or refused.
	Policy Kind = "policy"
	// Admin is a Command on the admin's socket that changes something.
	Admin Kind = "admin"
)

// Kinds are all of them, in the order of the documentation.
var Kinds = []Kind{
	Begin, Recovered, Dropped, Start, Stop, Login, LoginRefused, Refused, Upload, Build,
	OutputRefused, BuilderRefused, Sign, Resign, Jump, JumpEnd, JumpRefused, Policy, Admin,
}

// Event is one thing that happened. Fields that are zero are not written. Text may
// be anybody's: what does not print is escaped, and it is cut (see maxText).
type Event struct {
	Kind Kind `json:"event"`
	// Time is when; the zero value is when it is recorded.
	Time time.Time `json:"time"`

	// Who, as far as it is known.
	Address string `json:"address"` // of the client, without its port
	Port    uint16 `json:"port"`
	// User is the login name that the client chose. It proves nothing.
	User      string `json:"user"`
	Principal string `json:"principal"`
	Domain    string `json:"domain"`
	// Key is the fingerprint of the key that was verified, Keys of those that were
	// only shown.
	Key  string   `json:"key"`
	Keys []string `json:"keys"`
	// Certificate has key id, serial and authority.
	Certificate string `json:"certificate"`
	// Client is its identification line.
	Client string `json:"client"`
	// UID is the number of the account on the admin's socket.
	UID string `json:"uid"`

	// What.
	Command  string `json:"command"`
	Path     string `json:"path"`
	Size     uint64 `json:"size"` // of the NAR, in bytes
	NarHash  string `json:"nar_hash"`
	Drv      string `json:"drv"`
	System   string `json:"system"`
	Mode     string `json:"mode"` // check or repair
	Builder  string `json:"builder"`
	Shared   bool   `json:"shared"`
	Attempts int    `json:"attempts"`
	// Inputs is how many paths the build was given, InputBytes their NARs together.
	Inputs     int      `json:"inputs"`
	InputBytes uint64   `json:"input_bytes"`
	Outputs    []Output `json:"outputs"`
	// SigningKeys are the names of keys.
	SigningKeys []string `json:"signing_keys"`
	Target      string   `json:"target"`
	Dialled     string   `json:"dialled"`
	// Sent and Received are bytes to and from the target.
	Sent     int64   `json:"sent"`
	Received int64   `json:"received"`
	Version  string  `json:"version"`
	File     string  `json:"file"`
	FileHash string  `json:"file_hash"` // SHA-256, hex
	Count    uint64  `json:"count"`
	Seconds  float64 `json:"seconds"`

	// How it went.
	Result     string `json:"result"`
	Reason     string `json:"reason"`
	Suppressed uint64 `json:"suppressed"`

	// Of the log itself.
	After  string `json:"after"`
	Bytes  uint64 `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Output is one output of a build. NarHash and Size are missing where the build
// changed nothing.
type Output struct {
	Name    string `json:"name"`
	Path    string `json:"path"`
	NarHash string `json:"nar_hash"`
	Size    uint64 `json:"size"`
}

const (
	// maxText is how much of a text is written, in bytes before it is escaped, and
	// maxPath of one that holds a store path, a file or a sentence of ours.
	maxText = 128
	maxPath = 512
	// maxList is how many items of a list are written.
	maxList = 256
)

// fields takes the fields of an event one by one, in the order of the file.
type fields interface {
	text(name, value string, limit int)
	number(name string, value uint64)
	texts(name string, values []string, limit int)
	yes(name string)
	seconds(name string, value float64)
	outputs(name string, values []Output)
}

// each gives the fields that are set to f. It is the one list of them.
func (e *Event) each(f fields) {
	f.text("address", e.Address, maxText)
	f.number("port", uint64(e.Port))
	f.text("user", e.User, maxText)
	f.text("principal", e.Principal, maxText)
	f.text("domain", e.Domain, maxText)
	f.text("key", e.Key, maxText)
	f.texts("keys", e.Keys, maxText)
	f.text("certificate", e.Certificate, maxPath)
	f.text("client", e.Client, maxText)
	f.text("uid", e.UID, maxText)
	f.text("command", e.Command, maxText)
	f.text("path", e.Path, maxPath)
	f.number("size", e.Size)
	f.text("nar_hash", e.NarHash, maxText)
	f.text("drv", e.Drv, maxPath)
	f.text("system", e.System, maxText)
	f.text("mode", e.Mode, maxText)
	f.text("builder", e.Builder, maxText)
	if e.Shared {
		f.yes("shared")
	}
	f.number("attempts", positive(e.Attempts))
	f.number("inputs", positive(e.Inputs))
	f.number("input_bytes", e.InputBytes)
	f.outputs("outputs", e.Outputs)
	f.texts("signing_keys", e.SigningKeys, maxText)
	f.text("target", e.Target, maxPath)
	f.text("dialled", e.Dialled, maxText)
	f.number("sent", positive(e.Sent))
	f.number("received", positive(e.Received))
	f.text("version", e.Version, maxText)
	f.text("file", e.File, maxPath)
	f.text("file_hash", e.FileHash, maxText)
	f.number("count", e.Count)
	f.seconds("seconds", e.Seconds)
	f.text("result", e.Result, maxText)
	f.text("reason", e.Reason, maxPath)
	f.number("suppressed", e.Suppressed)
	f.text("after", e.After, maxPath)
	f.number("bytes", e.Bytes)
	f.text("sha256", e.SHA256, maxText)
}

// positive is a number that is never below zero.
func positive[N int | int64](n N) uint64 { return uint64(max(n, 0)) }
