package proxy

import (
	"errors"
	"strings"
	"time"

	"nixbastion/internal/audit"
)

// loginRefused keeps that a login was refused. The caller holds the lock of auth.
func (c *frontConn) loginRefused(reason string) {
	c.front.audit.Record(audit.Event{
		Kind: audit.LoginRefused, Address: c.remote.Addr().String(), Port: c.remote.Port(),
		User: c.auth.user, Keys: c.auth.keys, Client: c.ident, Reason: reason,
	})
}

func (c *frontConn) loggedInAs(who *Identity) {
	e := who.event(audit.Login)
	e.User, e.Client = who.User, c.ident
	c.front.audit.Record(e)
}

// refusedTo keeps that something was refused to who has logged in.
func (f *Front) refusedTo(who *Identity, what, reason string) {
	e := who.event(audit.Refused)
	e.Command, e.Reason = what, reason
	f.audit.Record(e)
}

// event begins one about a jump.
func (j *jump) event(kind audit.Kind) audit.Event {
	e := j.who.event(kind)
	e.Target = strings.Trim(j.asked, `"`)
	return e
}

func (j *jump) opened(dialled string) {
	e := j.event(audit.Jump)
	e.Dialled = dialled
	j.conn.front.audit.Record(e)
}

func (j *jump) ended(dialled string, start time.Time, why string) {
	e := j.event(audit.JumpEnd)
	e.Dialled, e.Sent, e.Received, e.Seconds, e.Reason = dialled, j.up.moved.Load(), j.down.moved.Load(), time.Since(start).Seconds(), why
	j.conn.front.audit.Record(e)
}

func (j *jump) refusedFor(err error) {
	e := j.event(audit.JumpRefused)
	e.Reason = err.Error()
	if no := (*JumpRefusal)(nil); errors.As(err, &no) {
		e.Reason = no.Reason
	}
	j.conn.front.audit.Record(e)
}
