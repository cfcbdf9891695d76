package route

import (
	"errors"
	"fmt"
	"strings"
)

// ErrQueueFull says that as many requests wait as may.
var ErrQueueFull = errors.New("too many builds are waiting for a builder")

// Kind is why there is no builder for a request.
type Kind uint8

const (
	// NoneMatches: no builder of the domain can ever run it.
	NoneMatches Kind = iota
	// AllDown: some could run it, and of those that are not excluded all are down.
	AllDown
	// AllExcluded: wherever it could run it must not go.
	AllExcluded
)

// NoBuilderError says that waiting is of no use. Its text is for the user.
type NoBuilderError struct {
	Kind Kind
	// Name, Domain, System and Features are the request's.
	Name     string
	Domain   string
	System   string
	Features []string
	// Builders are all builders of the domain, each with what is in the way.
	Builders []BuilderReason
}

// BuilderReason is a builder with what is in the way of a request there.
type BuilderReason struct {
	Name   string
	Reason string
}

// Error has a line for each builder.
func (e *NoBuilderError) Error() string {
	var s strings.Builder
	s.WriteString(requirement(e.System, e.Features) + " is required to build")
	if e.Name != "" {
		fmt.Fprintf(&s, " '%s'", e.Name)
	}
	s.WriteString(", but " + e.cause())
	for _, b := range e.Builders {
		fmt.Fprintf(&s, "\n  %s: %s", b.Name, b.Reason)
	}
	return s.String()
}

func (e *NoBuilderError) cause() string {
	switch {
	case len(e.Builders) == 0:
		return fmt.Sprintf("domain '%s' has no builder", e.Domain)
	case e.Kind == AllDown:
		return "no builder that can run it is up:"
	case e.Kind == AllExcluded:
		return "no builder that can run it is left:"
	}
	return "no builder can run it:"
}
