package proxy

import (
	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// Who has to go when the policy has changed, and what is left to a session whose
// client has to go but may wait for its builds.

// review says whether a connection may go on under the policy in force, as
// [FrontOptions.Review]. What a key gains counts for the next session; a session that
// runs keeps what it has, so one that has more than its key is given now must end.
func (p *Proxy) review(login *Login) *Dismissal {
	pol := p.policy.Current()
	reason := reviewed(pol, login)
	if reason == nil {
		return nil
	}
	finish := pol.Reload.RunningBuilds == policy.FinishRunningBuilds && !pol.Revoked(login.Key)
	return &Dismissal{Reason: reason, Finish: finish}
}

// reviewed returns why a connection must not go on, in words for its client; what may
// stay is nil.
func reviewed(pol *policy.Policy, login *Login) error {
	now, err := pol.Still(login.Key, login.Remote.Addr(), login.Since)
	switch {
	case err != nil && pol.Revoked(login.Key):
		return nix.Refuse("your key was revoked")
	case err != nil && pol.PrincipalNamed(login.Principal) == nil:
		return nix.Refuse("principal %q was removed from the proxy's policy", login.Principal)
	case err != nil:
		return nix.Refuse("your key is not accepted any more: the proxy's policy was changed")
	}
	if err := changed(login.Data.(*policy.Access), now); err != nil {
		return err
	}
	for _, running := range login.Running {
		if err := lost(running.Data.(*policy.Access), now); err != nil {
			return err
		}
	}
	return nil
}

// changed says that a key belongs to somebody else than at the login.
func changed(before, now *policy.Access) error {
	was, is := before.Principal, now.Principal
	switch {
	case was.Name != is.Name:
		return nix.Refuse("your key belongs to principal %q now: the proxy's policy was changed; connect again", is.Name)
	case was.Domain != is.Domain:
		return nix.Refuse("principal %q is in domain %q now: the proxy's policy was changed; connect again", is.Name, is.Domain)
	}
	return nil
}

// lost says what a session has that its key is not given any more. All else that a
// principal may is looked up when it is needed.
func lost(before, now *policy.Access) error {
	if err := changed(before, now); err != nil {
		return err
	}
	switch is := now.Principal; {
	case before.Principal.Role > is.Role:
		return nix.Refuse("principal %q has the role %s now: the proxy's policy was changed; connect again", is.Name, is.Role)
	case now.Command != "" && before.Command != now.Command:
		return nix.Refuse("what your key may run was changed in the proxy's policy; connect again")
	}
	return nil
}

// reviewJump says whether a jump may go on, as [FrontOptions.ReviewJump].
func (p *Proxy) reviewJump(login *Login, target JumpConn) error {
	pol := p.policy.Current()
	access, err := pol.Still(login.Key, login.Remote.Addr(), login.Since)
	if err != nil {
		return err
	}
	self, err := ownMachine(p.front.ownDoors())
	if err != nil {
		return err
	}
	return self.stillLeads(pol, access, target.(*reachedConn))
}

// endLingering ends the builds that go on for clients of principals that are not in the
// policy any more, or not as they were, unless these may finish.
func (p *Proxy) endLingering(before, now *policy.Policy) {
	if now.Reload.RunningBuilds == policy.FinishRunningBuilds {
		return
	}
	p.builds.inflight.endLingering(func(principal string) bool {
		was, is := before.PrincipalNamed(principal), now.PrincipalNamed(principal)
		return was != nil && (is == nil || is.Domain != was.Domain || is.Role < was.Role)
	})
}

// serves binds a session to the command that it answers.
func (s *session) serves(x *Exec) {
	s.feeder.client.remote = x.Identity.Remote.Addr()
	s.lost, s.dismissed, s.working, s.who, s.operates = x.Lost, x.Dismissed, x.Working, x.Identity, x.operates
}

// work counts a build until the function returned is called.
func (s *session) work() (done func()) {
	if s.working == nil {
		return func() {}
	}
	s.working.Add(1)
	return func() { s.working.Add(-1) }
}

// sentAway refuses what begins something new for a client that has to go.
func (s *session) sentAway() error {
	if s.dismissed == nil {
		return nil
	}
	return s.dismissed()
}

// mayFetch lets a client that has to go have the outputs that it has waited for, and
// nothing else.
func (s *session) mayFetch(path nix.StorePath) error {
	if err := s.sentAway(); err != nil && !s.own[path] {
		return err
	}
	return nil
}

// refresh takes over what the policy says of the principal by now. The role stays what
// the client was told: who loses it has to go, and who gains it connects again.
func (s *session) refresh() {
	now := s.policy().PrincipalNamed(s.principal.Name)
	if now != nil && now.Role == s.principal.Role && now.Domain == s.principal.Domain {
		s.principal = now
	}
}
