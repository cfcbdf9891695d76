package serve

import (
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// ErrHangUp says that a client went away while a command ran for it.
var ErrHangUp = wire.ErrHangUp

// ConnError says that a session with a server broke: the connection was lost, or
// the server sent something that the protocol does not have. A server that does
// not want to answer ends the session, too; why is on its standard error.
type ConnError = wire.ConnError

// closingError ends a session with a text for the user.
type closingError struct {
	text string
	// err is what the log should know.
	err error
}

func (e *closingError) Error() string { return e.text }

func (e *closingError) Unwrap() error { return e.err }

// closing keeps from the user what is not for him.
func closing(err error) error {
	text, _ := wire.ForUser(err)
	return &closingError{text: text.Message, err: err}
}

// refuse is the answer to what the protocol cannot ask for.
func refuse(what string) error {
	return nix.Refuse("%s cannot be asked for over the serve protocol (ssh://)", what)
}
