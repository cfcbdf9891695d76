package metrics

import "slices"

// The results of events are numbers here, so that no text of a peer's can become a
// label. Their words are those that the table in docs/monitoring explains.

// ConnectionResult is what became of a new connection.
type ConnectionResult uint8

// The results of a connection.
const (
	ConnectionAdmitted ConnectionResult = iota
	ConnectionRefused                   // too many wait for their login
)

var connectionResults = [...]string{ConnectionAdmitted: "admitted", ConnectionRefused: "refused"}

// LoginResult is how a login ended.
type LoginResult uint8

// The results of a login.
const (
	LoginSuccess LoginResult = iota
	LoginRefused             // after a key was shown, or another method tried
	LoginFailed              // in the handshake, before anything was shown
)

var loginResults = [...]string{LoginSuccess: "success", LoginRefused: "refused", LoginFailed: "failed"}

// JumpResult is what became of a jump.
type JumpResult uint8

// The results of a jump.
const (
	JumpOpened  JumpResult = iota
	JumpRefused            // by the policy, or for want of room
	JumpFailed             // the target was not reached
)

var jumpResults = [...]string{JumpOpened: "opened", JumpRefused: "refused", JumpFailed: "failed"}

// RequestResult is how a request for a build came to its build.
type RequestResult uint8

// The results of a request for a build.
const (
	RequestStarted RequestResult = iota // it is the first that asks
	RequestJoined                       // an equal build runs already
	RequestKnown                        // the outputs are in the cache
)

var requestResults = [...]string{RequestStarted: "started", RequestJoined: "joined", RequestKnown: "known"}

// refusalResults are what turns somebody away, or makes him wait: most have the name of
// the key of the policy that says so.
var refusalResults = [...]string{
	"max_startups", "per_source_penalties", "proxy_protocol", "handshake", "login", "max_connections", "connections_per_minute",
	"session", "session_memory", "builds_per_minute", "files", "penalised",
}

// refusalsBy sums by those words, all of which it has.
func refusalsBy(n map[string]uint64) map[string]uint64 {
	sums := make(map[string]uint64, len(refusalResults)+1)
	for _, word := range refusalResults {
		sums[word] = 0
	}
	for word, n := range n {
		if !slices.Contains(refusalResults[:], word) {
			word = Other
		}
		sums[word] += n
	}
	return sums
}

// ReloadResult is what became of a reload.
type ReloadResult uint8

// The results of a reload.
const (
	ReloadSuccess ReloadResult = iota
	ReloadRefused
)

var reloadResults = [...]string{ReloadSuccess: "success", ReloadRefused: "refused"}

// BuildResult is how a build ended.
type BuildResult uint8

// The results of a build.
const (
	BuildBuilt        BuildResult = iota
	BuildAlreadyThere             // the builder had the outputs, or substituted them
	BuildFailed                   // for a reason of its own
	BuildTimedOut
	BuildLogLimit
	BuildNoBuilder // none can run it, or none is left that did not fail
	BuildQueueFull
	BuildCanceled // nobody waits for it any more, an admin ended it, or the proxy stops
	BuildError    // the proxy could not have it built
)

var buildResults = [...]string{
	BuildBuilt: "built", BuildAlreadyThere: "already_there", BuildFailed: "failed", BuildTimedOut: "timed_out", BuildLogLimit: "log_limit",
	BuildNoBuilder: "no_builder", BuildQueueFull: "queue_full", BuildCanceled: "canceled", BuildError: "error",
}

// AttemptResult is how an attempt at a build ended on its builder.
type AttemptResult uint8

// The results of an attempt.
const (
	AttemptAnswered    AttemptResult = iota // built, or failed for a reason of the build's
	AttemptFault                            // the builder failed, and would fail others
	AttemptMismatch                         // this builder and this build do not go together
	AttemptInputLost                        // the builder lost an input
	AttemptDoubtful                         // another builder is to confirm the failure
	AttemptUnreachable                      // the builder was not reached
)

var attemptResults = [...]string{
	AttemptAnswered: "answered", AttemptFault: "fault", AttemptMismatch: "mismatch", AttemptInputLost: "input_lost",
	AttemptDoubtful: "doubtful", AttemptUnreachable: "unreachable",
}
