package nix

import (
	"errors"
	"fmt"
)

// ErrNotFound says that a store does not have a path, or that the asker may not
// know that it has.
var ErrNotFound = errors.New("path is not valid")

// UserError is an error whose text is meant for the user at the other end. Any
// other error is logged and reaches the user as a general sentence, since it
// may tell what is not his business.
type UserError struct {
	// Message is for people and may have several lines.
	Message string
	// Err is what the log should know besides; nil if nothing.
	Err error
}

// Refuse makes a UserError of a sentence.
func Refuse(format string, args ...any) *UserError {
	return &UserError{Message: fmt.Sprintf(format, args...)}
}

func (e *UserError) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

func (e *UserError) Unwrap() error { return e.Err }

// RemoteError is an error that a daemon reported for an operation. The session
// is usable afterwards unless the codec says otherwise.
type RemoteError struct {
	// Message may hold ANSI colours and several lines.
	Message string
	Level   uint64
	Traces  []string
	// Status is the exit status that peers before 1.26 send instead, else 0.
	Status uint32
}

func (e *RemoteError) Error() string { return e.Message }
