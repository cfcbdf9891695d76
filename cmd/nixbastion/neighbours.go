package main

import (
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Who asks for a reload, besides admins and files.
const (
	byBefore = "process before"
	byNext   = "process after"
)

// reloading is told of each attempt to load the policy again, whoever wants it, and tells
// those who have to know: the service manager, and the processes that were here before and
// have come after, but not the one that wants it.
func (s *server) reloading(by string) (over func(error)) {
	s.notify(reloading())
	return func(err error) {
		status := "policy loaded"
		if err != nil {
			status = "policy refused, the old one stays: " + strings.ReplaceAll(err.Error(), "\n", " ")
		} else {
			s.tellNeighbours(by)
		}
		s.notify(daemon.SdNotifyReady, statusText("%s", status))
	}
}

// notify is for the process that the service manager takes for the main one.
func (s *server) notify(states ...string) {
	if !s.isReplaced() {
		notify(s.log, states...)
	}
}

func (s *server) tellNeighbours(by string) {
	if s.before != nil && by != byBefore {
		s.before.tell(lineReload)
	}
	if next := s.next.Load(); next != nil && by != byNext {
		next.tell(lineReload)
	}
}

// doFor does what a neighbour wants.
func (s *server) doFor(by string) func(word string) {
	return func(word string) {
		switch word {
		case lineReload:
			s.reload(by)
		case lineDrains:
			s.proxy.LookAtDrains()
			if s.before != nil {
				s.before.tell(lineDrains)
			}
		}
	}
}

// reload loads the policy again. The error is logged where it comes from.
func (s *server) reload(by string) { _, _ = s.proxy.Reload(by) }

// hearNoMore ends the listening, as nothing can be done any more.
func (s *server) hearNoMore() {
	if s.before != nil {
		s.before.conn.Close()
	}
	if next := s.next.Load(); next != nil {
		next.conn.Close()
	}
	s.hearing.Wait()
}
