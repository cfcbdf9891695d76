package proxy

import (
	"errors"
	"slices"
	"strings"
	"unicode"

	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

// A build fails for reasons of its own, which are an answer, or since its builder
// does, which the client need not know of. No field of the protocol tells the two
// apart: the statuses MiscFailure and TransientFailure are sent for both. What tells
// is the text, and where in it the words stand. The errorMsg of a failed build
// is written by the builder's daemon, but for lines that begin with ">": those are the
// end of the build's own log. What a build prints never makes a builder
// faulty, or any client could take builders from everybody.

// blame says why an attempt at a build gave no outputs.
type blame uint8

const (
	// blameBuild: the build fails, and would do so everywhere.
	blameBuild blame = iota
	// blameBuilder: the builder failed, and would fail others.
	blameBuilder
	// blameMatch: this builder and this build do not go together; others run here.
	blameMatch
	// blameInput: an input is not on the builder any more.
	blameInput
	// blameDoubt: the build failed in a way that a builder in trouble may cause.
	// Another builder shows which it was.
	blameDoubt
	// blameNobody: the builder was not reached, so that nothing was tried.
	blameNobody
)

var blameNames = [...]string{"build", "builder", "match", "input", "doubt", "nobody"}

// String names the blame for logs.
func (b blame) String() string { return blameNames[b] }

// outcome is how an attempt ended.
type outcome struct {
	blame blame
	// result is the answer to the client if the blame is the build's or in doubt.
	result *nix.BuildResult
	// reason is for the client and the log, without the builder's name; err is for
	// the log, and may be nil.
	reason string
	err    error
	// stale says that a session was lost that may have been dead before it was taken.
	stale bool
}

// saying is a text by which something is known.
type saying struct {
	text  string
	blame blame
}

// sayings are parts of the sentences of daemons. The versions are those of Nix that
// write them, of 2.3 to 2.34; Lix has those of 2.18, from which it comes.
var sayings = []saying{
	// The disk of the builder, as the daemon finds it after a build failed: all.
	{"build failure may have been caused by lack of free disk space", blameBuilder},
	// SQLite about the database of the store: all. "is busy" has the file's name before it.
	{"database or disk is full", blameBuilder},
	{"disk I/O error", blameBuilder},
	{"database disk image is malformed", blameBuilder},
	{"file is not a database", blameBuilder},
	{"database is locked", blameBuilder},
	{"SQLite database '/nix/var/nix/db/db.sqlite' is busy", blameBuilder},
	{"attempt to write a readonly database", blameBuilder},
	{"unable to open database file", blameBuilder},
	// Users that build: the first up to 2.3 (later ones wait), the others in all.
	{"all build users are currently in use", blameBuilder},
	{"build users group", blameBuilder},
	{"specified in 'build-users-group' does not exist", blameBuilder},
	// The sandbox: 2.4 and later; all; all; all on Linux.
	{"does not support the kernel namespaces", blameBuilder},
	{"cloning builder process", blameBuilder},
	{"unable to start build process", blameBuilder},
	{"bind mount from", blameBuilder},
	// Memory and processes: all.
	{"unable to fork", blameBuilder},
	{"cannot fork", blameBuilder},
	{"std::bad_alloc", blameBuilder},
	{"out of memory", blameBuilder},
	// A daemon that is stopped, or the one behind it: all; up to 2.3; 2.4 and later; all.
	{"interrupted by the user", blameBuilder},
	{"cannot connect to daemon at", blameBuilder},
	{"cannot connect to socket at", blameBuilder},
	{"disconnected unexpectedly", blameBuilder},
	{"lost connection", blameBuilder},
	{"unexpected end-of-file", blameBuilder},

	// What the builder's own nix.conf does not have, whatever our policy says of it: up
	// to 2.30 and in Lix; 2.31 and later; all; all; 2.4 and later.
	{", but I am a '", blameMatch},
	{"required system or feature not available", blameMatch},
	{"unable to start any build", blameMatch},
	{"Failed to find a machine for remote build", blameMatch},
	{"experimental Nix feature '", blameMatch},
}

// systemErrors are what the C library calls errors of a machine in trouble. Nix
// writes them at the end of a sentence, and since 2.24 the C++ library also before
// the file names, in brackets.
var systemErrors = []string{
	"No space left on device", "Disk quota exceeded", "Read-only file system", "Input/output error",
	"Structure needs cleaning", "Stale file handle", "Transport endpoint is not connected",
	"Cannot allocate memory", "Resource temporarily unavailable",
	"Too many open files", "Too many open files in system",
}

// inputSayings say, of a path that is an input, that the builder lacks it: up to 2.30
// and in Lix; all; all; all; all, of a path whose files are gone.
var inputSayings = []string{
	"does not exist", "is not valid", "is required, but", "No such file or directory", "not in the Nix store",
}

// noInputSaying is what daemons say of inputs that they do not name: all.
const noInputSaying = "some dependencies of '"

// deathSayings are of builds that something killed, as a machine does that goes down or
// has no memory left: all.
var deathSayings = []string{
	"failed due to signal 9 ", "failed due to signal 15 ", "failed due to signal 1 ", "failed due to signal 2 ",
}

// refused says what is to be done about an operation that a daemon refused, or a
// build that it says has failed, in so many words. With none that are known the
// blame is otherwise's.
func (o *order) refused(message string, otherwise blame) (blame, string) {
	own, _ := splitLog(message)
	for _, line := range own {
		if o.lacksInput(line) {
			return blameInput, line
		}
		if said := sayingIn(line); said != nil {
			if o.has(said.text) {
				return blameDoubt, line
			}
			return said.blame, line
		}
	}
	return otherwise, strings.Join(own, " ")
}

// sayingIn returns what is known of a line, or nil.
func sayingIn(line string) *saying {
	for i := range sayings {
		if strings.Contains(line, sayings[i].text) {
			return &sayings[i]
		}
	}
	if text := systemErrorIn(line); text != "" {
		return &saying{text, blameBuilder}
	}
	return nil
}

// has reports whether the derivation itself has a text, from where its daemon may quote
// it: "illegal reference specifier '...'".
func (o *order) has(text string) bool {
	texts := append([]string{o.drv.Builder, o.drv.Platform}, o.drv.Args...)
	for _, v := range o.drv.Env {
		texts = append(texts, v.Name, v.Value)
	}
	return slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(t, text) })
}

// systemErrorIn looks at the end alone, since file names stand before it. What
// cannot be executed is a part of the build.
func systemErrorIn(line string) string {
	if strings.Contains(line, "executing '") {
		return ""
	}
	line, _, _ = strings.Cut(line, " [/")
	for _, text := range systemErrors {
		if before, ok := strings.CutSuffix(strings.TrimRight(line, "."), text); ok && (before == "" || strings.HasSuffix(before, ": ")) {
			return text
		}
	}
	return ""
}

// lacksInput reports whether a line says that an input of the order is not there. Of
// other paths, such as outputs, builds may say what they like.
func (o *order) lacksInput(line string) bool {
	if strings.Contains(line, noInputSaying) && strings.Contains(line, "are missing") {
		return true
	}
	if !containsAny(line, inputSayings) || strings.Contains(line, "executing '") {
		return false
	}
	return slices.ContainsFunc(o.inputs, func(in *nix.PathInfo) bool { return strings.Contains(line, in.Path.HashPart()) })
}

func containsAny(text string, parts []string) bool {
	return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(text, part) })
}

// failed says whose fault a failed build is.
func (o *order) failed(result *nix.BuildResult) outcome {
	out := outcome{blame: blameBuild, result: result}
	switch result.Status {
	case nix.StatusMiscFailure, nix.StatusTransientFailure, nix.StatusInputRejected, nix.StatusDependencyFailed:
		out.blame, out.reason = o.refused(result.ErrorMsg, blameBuild)
	}
	switch result.Status {
	case nix.StatusPermanentFailure, nix.StatusTransientFailure, nix.StatusMiscFailure:
		if reason := suspicious(result.ErrorMsg); out.blame == blameBuild && reason != "" {
			out.blame, out.reason = blameDoubt, reason
		}
	}
	out.reason = brief(out.reason)
	return out
}

// suspicious returns what in the words of a failed build may come from a builder in
// trouble, or "". A compiler that finds the disk full deletes what it wrote, so
// that the daemon finds room again; a machine that goes down kills builds first.
func suspicious(message string) string {
	own, log := splitLog(message)
	for _, line := range own {
		if containsAny(line, deathSayings) {
			return line
		}
	}
	for _, line := range log {
		if strings.Contains(line, "No space left on device") {
			return "its log says: " + line
		}
	}
	return ""
}

// erred says whose fault an error is that ended an attempt, and otherwise is the
// blame for what a daemon refuses in words that are not known.
func (o *order) erred(err error, otherwise blame) outcome {
	out := outcome{blame: blameMatch, err: err, reason: userText(err)}
	var fault *upstream.Error
	var remote *nix.RemoteError
	switch {
	case errors.Is(err, errInputGone):
		out.blame = blameInput
	case errors.As(err, &fault) && fault.Kind == upstream.Refused: // the serve protocol's way to say no
		out.blame, out.reason = o.refused(fault.Reason(), blameMatch)
	case errors.As(err, &fault) && fault.Kind == upstream.Untrusted:
		// Until the admin has seen to it nothing changes: to wait would only put off the
		// sentence that says so.
	case errors.As(err, &fault), errors.Is(err, errFalseOutput):
		out.blame = blameBuilder
	case errors.As(err, &remote):
		out.blame, out.reason = o.refused(remote.Message, otherwise)
		if out.blame == blameBuild {
			out.result = nix.Failure(nix.StatusMiscFailure, "%s", remote.Message)
		}
	}
	out.reason = brief(out.reason)
	return out
}

// userText returns the words of an error that a client may read, without the name
// of a builder.
func userText(err error) string {
	var user *nix.UserError
	var fault *upstream.Error
	switch {
	case errors.As(err, &fault):
		return fault.Reason()
	case errors.As(err, &user):
		return user.Message
	default:
		return "failed"
	}
}

// splitLog takes the words of a daemon apart from the lines of the build's log that it
// quotes. No line of either is empty.
func splitLog(message string) (own, log []string) {
	for line := range strings.Lines(plainText(message)) {
		line = strings.TrimSpace(line)
		switch quoted, isLog := strings.CutPrefix(line, ">"); {
		case line == "":
		case isLog:
			log = append(log, strings.TrimSpace(quoted))
		default:
			own = append(own, line)
		}
	}
	return own, log
}

// briefSize is how much of a reason is shown, in bytes.
const briefSize = 400

// brief makes a reason one line of bounded length that moves no cursor.
func brief(reason string) string {
	reason = strings.TrimPrefix(strings.TrimSpace(reason), "error: ")
	if len(reason) > briefSize {
		reason = reason[:briefSize] + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(reason, ""))
}
