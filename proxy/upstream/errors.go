package upstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/serve"
	"nixbastion/internal/nix/worker"
	"nixbastion/policy"
)

// ErrNotSeenToEnd says that a session was given up without a sign that its
// program on the builder ended: a build may still run there.
var ErrNotSeenToEnd = errors.New("session was not seen to end")

// Kind says in which of its duties a builder failed.
type Kind uint8

// The kinds of errors.
const (
	// Unreachable: no connection, or one that did not answer in time.
	Unreachable Kind = iota + 1
	// HostKey: the builder did not show a key that is on file for it.
	HostKey
	// Auth: the builder does not let our account in.
	Auth
	// Untrusted: the builder's daemon does not let our account build.
	Untrusted
	// Protocol: what answered is not a daemon in working order.
	Protocol
	// TooOld: the builder's Nix is older than 2.4, or with the serve protocol 2.0.
	TooOld
	// Lost: the connection or the program ended in the middle of an operation.
	Lost
	// Refused: the builder's Nix gave up an operation with a reason, for which the
	// serve protocol has no other words than the end of the session.
	Refused
	// Hung: the builder gave no sign of life for too long; see [Session.Hung].
	Hung
)

var kindNames = [...]string{"failed", "unreachable", "host key", "auth", "untrusted", "protocol", "too old", "lost", "refused", "hung"}

// String names the kind for logs.
func (k Kind) String() string { return kindNames[min(int(k), len(kindNames)-1)] }

// Error says what is wrong with a builder. Its text names the builder and what
// an admin can do; users may read it.
type Error struct {
	Builder string
	Kind    Kind
	// Err is what happened.
	Err error
	// Hint is a sentence on what to do about it, or "".
	Hint string
	// Until is when the builder is tried again, if nothing was tried this time
	// because of an earlier failure.
	Until time.Time
}

func (e *Error) Error() string {
	text := fmt.Sprintf("builder '%s': %s", e.Builder, e.Reason())
	if !e.Until.IsZero() {
		text += e.Until.UTC().Format(" (tried again at 15:04:05 UTC)")
	}
	return text
}

// Reason is the text without the builder's name, for those who print that
// themselves, and without Until.
func (e *Error) Reason() string {
	if e.Hint == "" {
		return wordsOf(e.Err)
	}
	return wordsOf(e.Err) + "; " + e.Hint
}

// wordsOf is the text of an error that may have words of a peer, of which there can be
// any number.
func wordsOf(err error) string {
	const most = 2 * keepStderr
	text := err.Error()
	if len(text) > most {
		text = text[:most] + "..."
	}
	return clean(text)
}

func (e *Error) Unwrap() error { return e.Err }

// Broken reports whether an operation failed because the builder did, so that
// another builder may be tried. An error that a daemon in good order reported is
// an answer and not that; neither is the end of the caller's own context.
func Broken(err error) bool {
	var fault *Error
	var session *worker.ConnError
	return errors.As(err, &fault) || errors.As(err, &session)
}

// fault makes an Error of what went wrong at a builder; err is returned as it is
// if somebody made one already or if the caller's context ended.
func (t *target) fault(kind Kind, err error) error {
	var known *Error
	if err == nil || errors.As(err, &known) || errors.Is(err, context.Canceled) {
		return err
	}
	return &Error{Builder: t.name, Kind: kind, Err: err}
}

func (t *target) faultf(kind Kind, hint, format string, args ...any) *Error {
	return &Error{Builder: t.name, Kind: kind, Err: fmt.Errorf(format, args...), Hint: hint}
}

// daemonFault explains why a command did not lead to a session with a daemon.
func (t *target) daemonFault(command string, err error, said remark) error {
	var mismatch *worker.MismatchError
	var workerVersion *worker.VersionError
	var serveVersion *serve.VersionError
	var refused *nix.RemoteError
	switch {
	case errors.As(err, &mismatch) && t.socket == "":
		return t.faultf(Protocol, "a login message or a shell's start-up file must not print anything",
			"answers with text instead of Nix's protocol: %q%s", mismatch.Got, said)
	case errors.As(err, &workerVersion), errors.As(err, &serveVersion):
		return t.faultf(TooOld, "", "%w", err)
	case errors.As(err, &refused):
		return t.faultf(Untrusted, "", "its nix-daemon refuses account '%s': %s", t.user, clean(refused.Message))
	case errors.Is(err, context.DeadlineExceeded):
		return t.faultf(Unreachable, "", "no answer from '%s' in time%s", command, said)
	}
	return t.faultf(Protocol, t.silentHint(said), "no Nix answers to '%s'%s: %w", command, said, err)
}

// silentHint says what to do about a program that ends without an answer.
func (t *target) silentHint(said remark) string {
	mismatch := strings.Contains(said.stderr, "protocol mismatch")
	switch {
	case t.socket != "":
		return fmt.Sprintf("account '%s', as which the proxy runs, must be in allowed-users of this machine's nix.conf", t.user)
	case mismatch && t.protocol == policy.ProtocolServe:
		return "if the account is bound to 'nix-daemon --stdio' there, the policy must say protocol: ssh-ng"
	case mismatch:
		return "if the account is bound to 'nix-store --serve' there, the policy must say protocol: ssh"
	}
	return ""
}

// untrusted is the refusal of a builder that would not build for us.
func (t *target) untrusted() error { return t.faultf(Untrusted, "", "%s", t.trustHint()) }

func (t *target) trustHint() string {
	if t.socket != "" {
		return fmt.Sprintf("account '%s', as which the proxy runs, must be in trusted-users of this machine's nix.conf (its daemon is builder '%s', %s)",
			t.user, t.name, t.address)
	}
	return fmt.Sprintf("account '%s' on builder '%s' (%s) must be in trusted-users of its nix.conf", t.user, t.name, t.address)
}

// refused is what untrusted is where only an operation shows it.
func (t *target) refused(reason string) error {
	return t.faultf(Untrusted, t.trustHint(), "its Nix says %q", reason)
}

// refusesAccount recognises what Nix says to accounts that it does not trust.
func refusesAccount(text string) bool {
	return strings.Contains(text, "you are not privileged to ") ||
		strings.Contains(text, "lacks a signature by a trusted key") ||
		strings.Contains(text, "lacks a valid signature") // before 2.4
}

// gaveUp makes an error of the last words of a program.
func (t *target) gaveUp(command, op string, said remark) error {
	switch {
	case refusesAccount(said.stderr):
		return t.refused(said.stderr)
	case strings.Contains(said.stderr, "importing paths is not allowed"), strings.Contains(said.stderr, "building paths is not allowed"):
		return t.faultf(Untrusted, fmt.Sprintf("account '%s' there must be bound to 'nix-store --serve --write'", t.user), "its Nix says %q", said.stderr)
	}
	return t.faultf(Refused, "", "'%s' gave up %s: %s", command, op, said.stderr)
}
