package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/metrics"
)

// The bastion: clients go through the proxy to another host, as they do with
// `ssh -J PROXY HOST`, which asks for a channel "direct-tcpip" (RFC 4254, 7.2) and
// speaks SSH with HOST inside it.
//
//	bastion.go          one channel, from open to close: room, answer, audit
//	bastion_flow.go     the bytes both ways, and what ends them
//	bastion_target.go   the grammar of what a client asks for
//	bastion_policy.go   which targets a key may reach
//	bastion_address.go  addresses that are no targets unless they are listed
//	bastion_dial.go     resolve once, check, dial what was checked
//
// The proxy cannot read what passes, so none of its rules for stores hold behind
// a jump: the account that is reached there must not be the trusted one that the
// proxy itself uses.

// jumpRefused is all that a client learns about a target that it may not reach.
const jumpRefused = "nixbastion: this key may not go there; the proxy's admin lists targets under jump"

// jump is one channel and the connection to its target.
type jump struct {
	conn     *frontConn
	who      *Identity
	asked    string // the target in the client's words, quoted
	channel  ssh.Channel
	requests <-chan *ssh.Request
	target   JumpConn
	flows
}

// serveJump runs in a goroutine of its own, which gliderlabs/ssh started.
func (c *frontConn) serveJump(conn *ssh.ServerConn, channel ssh.NewChannel) {
	defer c.front.recovered("jump")
	opens, ok := c.countOpen()
	if !ok {
		return
	}
	if refusal := c.takeJump(opens); refusal != "" {
		c.front.metrics.Jump(metrics.JumpRefused)
		c.front.refusals.note(RefusedSession, slog.LevelWarn, "ssh jump refused", append(c.where(), "reason", refusal)...)
		c.refuse(channel, ssh.ResourceShortage, "nixbastion: "+refusal)
		return
	}
	defer c.releaseJump()
	seen := c.front.reviews.Load()
	who, err := c.identityOf(conn)
	if err != nil {
		c.logRefusedKey("jump", who, err)
		c.refuse(channel, ssh.Prohibited, "nixbastion: this key is not accepted any more")
		return
	}
	j := &jump{conn: c, who: who, flows: flows{stuck: make(chan string, 1)}}
	if j.target, err = j.open(channel.ExtraData()); err != nil {
		j.refuse(channel, err)
		return
	}
	defer j.target.Close()
	if j.channel, j.requests, err = channel.Accept(); err == nil {
		c.refuseStderr(j.channel)
		defer enrol(c, &c.carrying, j, seen)()
		j.run()
	}
}

// takeJump returns why there is no room for another jump, "" if there is. A jump
// takes a file descriptor; all of them together leave most to those who build.
func (c *frontConn) takeJump(opens int) (refusal string) {
	limits := c.front.limits
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended || c.front.isStopping():
		return "shutting down"
	case c.leaving.Load() != nil:
		return c.dismissed().Error()
	case opens > limits.OpensPer10s:
		return fmt.Sprintf("more than %d channels opened in 10 s", limits.OpensPer10s)
	case c.jumping >= limits.Jumps:
		return fmt.Sprintf("more than %d jumps on one connection", limits.Jumps)
	case !c.front.takeJump():
		return "too many jumps at once on this host"
	case !c.openIntake():
		c.front.releaseJump()
		return noMemory
	}
	c.jumping++
	c.sessions.Add(1)
	c.unused.Stop()
	return ""
}

func (c *frontConn) releaseJump() {
	c.front.releaseJump()
	c.closeIntake()
	c.mu.Lock()
	c.jumping--
	c.quietSince = time.Now()
	c.mu.Unlock()
	c.sessions.Done()
}

// jumpShare is the part of all file descriptors that jumps may take: one in so
// many.
const jumpShare = 4

// jumpPlaces is how many jumps there may be at one time on all connections.
func (l Limits) jumpPlaces() int {
	return max(1, l.openConnections()/jumpShare)
}

// takeJump takes a place and a descriptor, or nothing.
func (f *Front) takeJump() bool {
	select {
	case f.jumps <- struct{}{}:
	default:
		return false
	}
	select {
	case f.slots <- struct{}{}:
	default:
		<-f.jumps
		return false
	}
	return true
}

func (f *Front) releaseJump() {
	<-f.slots
	<-f.jumps
}

// open connects to what the client asks for, within [Limits.JumpDial].
func (j *jump) open(payload []byte) (JumpConn, error) {
	var msg struct {
		Host       string
		Port       uint32
		Originator string // where the client says that it comes from; it proves nothing
		OriginPort uint32
	}
	if len(payload) > maxChannelPayload || ssh.Unmarshal(payload, &msg) != nil {
		return nil, refuseJump("malformed request of %d bytes", len(payload))
	}
	j.asked = quotePeer(net.JoinHostPort(msg.Host, strconv.FormatUint(uint64(msg.Port), 10)))
	if j.conn.front.jump == nil {
		return nil, refuseJump("this host is no bastion")
	}
	if j.conn.front.audit.Fault() != nil {
		return nil, errNoAudit
	}
	ctx, cancel := context.WithTimeout(j.conn.ctx, j.conn.front.limits.JumpDial)
	defer cancel()
	return j.dial(ctx, msg.Host, msg.Port)
}

var errJumpPanic = errors.New("internal error")

// dial keeps a panic from leaving the client without an answer.
func (j *jump) dial(ctx context.Context, host string, port uint32) (target JumpConn, err error) {
	defer func() {
		if p := recover(); p != nil {
			j.conn.front.log.Error("panic", j.line("where", "jump",
				"panic", quotePeer(fmt.Sprint(p)), "stack", string(debug.Stack()))...)
			target, err = nil, errJumpPanic
		}
	}()
	return j.conn.front.jump(ctx, j.who, host, port)
}

// refuse answers the channel: one sentence for all that is not allowed, and no
// address of ours in the others.
func (j *jump) refuse(channel ssh.NewChannel, err error) {
	j.refusedFor(err)
	if no := (*JumpRefusal)(nil); errors.As(err, &no) {
		j.conn.front.metrics.Jump(metrics.JumpRefused)
		j.conn.front.log.Warn("ssh jump refused", j.line("reason", quotePeer(no.Reason))...)
		j.conn.refuse(channel, ssh.Prohibited, jumpRefused)
		return
	}
	j.conn.front.metrics.Jump(metrics.JumpFailed)
	j.conn.front.log.Warn("ssh jump failed", j.line("reason", quotePeer(err.Error()))...)
	j.conn.refuse(channel, ssh.ConnectionFailed, "nixbastion: "+jumpFailure(err))
}

// run is a jump from its confirmation on.
func (j *jump) run() {
	j.conn.commandSeen.Store(true)
	dialled := j.target.RemoteAddr().String()
	start := time.Now()
	j.conn.front.metrics.Jump(metrics.JumpOpened)
	j.conn.front.log.Info("ssh jump opened", j.line("dialled", dialled)...)
	j.opened(dialled)
	why := j.carry()
	j.conn.front.log.Info("ssh jump ended", j.line("dialled", dialled, "sent", j.up.moved.Load(), "received", j.down.moved.Load(),
		"seconds", time.Since(start).Seconds(), "reason", why)...)
	j.ended(dialled, start, why)
}

// line is a line about the jump, for the log.
func (j *jump) line(more ...any) []any {
	line := append(j.conn.where(), "principal", j.who.Principal, "key", j.who.Fingerprint, "target", j.asked)
	return append(line, more...)
}
