package proxy

import (
	"errors"

	"nixbastion/internal/audit"
	"nixbastion/internal/nix"
)

// event begins one about the client of a session.
func (s *session) event(kind audit.Kind) audit.Event {
	e := s.who.event(kind)
	e.Principal, e.Domain = s.principal.Name, s.domain()
	return e
}

// mayChange refuses what could not be kept.
func (s *session) mayChange() error {
	if err := s.builds.audit.Fault(); err != nil {
		s.log.Warn("refused without an audit log", "error", err)
		return errNoAudit
	}
	return nil
}

// noteRefusal keeps that an operation was refused, if that is what its error says.
func (s *session) noteRefusal(operation string, path nix.StorePath, err error) {
	var refusal *nix.UserError
	if !errors.As(err, &refusal) {
		return
	}
	e := s.event(audit.Refused)
	e.Command, e.Reason = operation, err.Error()
	if !path.IsZero() {
		e.Path = path.String()
	}
	s.builds.audit.Record(e)
}

// uploaded keeps that a path was brought.
func (s *session) uploaded(info *nix.PathInfo, outcome string) {
	e := s.event(audit.Upload)
	e.Path, e.Size, e.NarHash, e.Result = info.Path.String(), info.NarSize, info.NarHash.String(), outcome
	s.builds.audit.Record(e)
}

// signaturesAdded keeps that a path got signatures that the client has brought.
func (s *session) signaturesAdded(info *nix.PathInfo, sigs []nix.Signature) {
	e := s.event(audit.Sign)
	e.Path, e.NarHash, e.SigningKeys = info.Path.String(), info.NarHash.String(), namesOf(sigs)
	s.builds.audit.Record(e)
}

// known keeps that a client asked for a build whose outputs were here.
func (s *session) known(drvPath nix.StorePath, drv *nix.BasicDerivation, result *nix.BuildResult) error {
	e := s.event(audit.Build)
	e.Drv, e.System, e.Result = drvPath.String(), drv.Platform, result.Status.String()
	e.Outputs = s.builds.auditOutputs(s.domain(), result)
	if s.builds.audit.Commit(e) != nil {
		return errNoAudit
	}
	return nil
}
