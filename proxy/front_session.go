package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// statusNoShell is the exit status of a client that wants a shell.
	statusNoShell = 1
	// statusRefused is the exit status of what a shell could not find either.
	statusRefused = 127
	// statusInternal is the exit status after a panic, as ssh's own for its errors.
	statusInternal = 255
)

const noShell = "no shell here; this host builds for Nix clients, name it in a store URI: ssh-ng://HOST or ssh://HOST (`ssh HOST help` says more)"

// frontSession is one session channel, from open to close.
type frontSession struct {
	conn     *frontConn
	who      *Identity
	channel  ssh.Channel
	requests <-chan *ssh.Request
	env      map[string]string // made when the first variable comes
	terminal bool              // the client asked for one
	gone     chan struct{}     // closed when the client closed the channel or is gone
	does     occupation        // for the admin to see
	// stdout and stderr are the only writers to the channel.
	stdout, stderr *steadyWriter
	// farewell keeps a last word of the front and the end of our side apart, which the
	// library does not.
	farewell sync.Mutex
}

// serveSession runs in a goroutine of its own, which gliderlabs/ssh started.
func (c *frontConn) serveSession(conn *ssh.ServerConn, channel ssh.NewChannel) {
	defer c.front.recovered("session")
	opens, ok := c.countOpen()
	if !ok {
		return
	}
	if refusal := c.takeSession(opens); refusal != "" {
		c.front.refusals.note(refusedFor(refusal), slog.LevelWarn, "ssh session refused", append(c.where(), "principal", c.granted, "reason", refusal)...)
		c.refuse(channel, ssh.ResourceShortage, "nixbastion: "+refusal)
		return
	}
	defer c.releaseSession()
	if n := len(channel.ExtraData()); n > maxChannelPayload {
		c.front.refusals.note(RefusedSession, slog.LevelWarn, "ssh session refused", append(c.where(), "principal", c.granted, "reason", fmt.Sprintf("%d bytes came with it", n))...)
		c.refuse(channel, ssh.Prohibited, "nixbastion: nothing may come with a session")
		return
	}
	seen := c.front.reviews.Load()
	who, err := c.identityOf(conn)
	if err != nil {
		c.logRefusedKey("session", who, err)
		c.refuse(channel, ssh.Prohibited, "nixbastion: this key is not accepted any more")
		return
	}
	ch, requests, err := channel.Accept()
	if err != nil {
		return // the connection is gone
	}
	c.refuseStderr(ch)
	s := &frontSession{conn: c, who: who, channel: ch, requests: requests, gone: make(chan struct{})}
	s.stdout, s.stderr = s.steady(ch), s.steady(ch.Stderr())
	defer enrol(c, &c.serving, s, seen)()
	s.run()
}

func (c *frontConn) logRefusedKey(what string, who *Identity, err error) {
	line := append(c.where(), "reason", quotePeer(err.Error()))
	if who != nil {
		line = append(line, who.keyText()...)
	}
	c.front.refusals.note(RefusedSession, slog.LevelWarn, "ssh "+what+" refused", line...)
	c.front.refusedTo(who, what, err.Error())
}

// noMemory refuses a session or a jump.
const noMemory = "sessions take too much memory on this host already; try again in a moment"

func refusedFor(refusal string) Refusal {
	if refusal == noMemory {
		return RefusedMemory
	}
	return RefusedSession
}

// takeSession returns why there is no room for another session, "" if there is.
func (c *frontConn) takeSession(opens int) (refusal string) {
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
	case c.running >= limits.Sessions:
		return fmt.Sprintf("more than %d sessions on one connection", limits.Sessions)
	case !c.openIntake():
		return noMemory
	}
	c.running++
	c.front.counters.sessions.Add(1)
	c.sessions.Add(1)
	c.unused.Stop()
	return ""
}

func (c *frontConn) releaseSession() {
	c.closeIntake()
	c.mu.Lock()
	c.running--
	c.front.counters.sessions.Add(-1)
	c.quietSince = time.Now()
	c.mu.Unlock()
	if d := c.leaving.Load(); c.front.isStopping() || d != nil && !d.Finish {
		c.closeIfUnused()
	}
	c.sessions.Done()
}

func (s *frontSession) run() {
	start := s.awaitStart()
	ctx, cancel := context.WithCancel(s.conn.ctx)
	defer cancel()
	s.conn.sessions.Go(func() {
		defer s.conn.front.recovered("requests of a session")
		defer cancel()
		defer close(s.gone)
		s.conn.drain(s.requests)
	})
	if start == nil {
		s.channel.Close()
	} else {
		s.finish(start(ctx))
	}
	s.conn.awaitGone(s.gone)
}

// awaitStart answers requests until one starts something, and returns what. It
// returns nil when none does in time, or after too many.
func (s *frontSession) awaitStart() func(context.Context) int {
	limits := s.conn.front.limits
	patience := s.conn.newPatience(limits.SessionStart, startExtensions)
	defer patience.timer.Stop()
	for n := 1; ; n++ {
		select {
		case req, ok := <-s.requests:
			if !ok {
				return nil
			}
			if n > limits.Requests {
				s.conn.front.log.Warn("ssh session closed", append(s.conn.where(), "reason", "too many requests before a command")...)
				return nil
			}
			start := s.request(req)
			req.Reply(start != nil || s.note(req), nil)
			if start != nil {
				s.conn.commandSeen.Store(true)
				return start
			}
		case <-patience.timer.C:
			if !patience.extend() {
				return nil
			}
		}
	}
}

// request returns what a request starts, nil for one that starts nothing. There
// is no X11 here, no agent forwarding and no subsystem.
func (s *frontSession) request(req *ssh.Request) func(context.Context) int {
	switch req.Type {
	case "shell":
		return func(context.Context) int { return s.refuse(noShell, statusNoShell) }
	case "exec":
		return s.execRequest(req.Payload)
	}
	return nil
}

// note takes in a request that starts nothing and reports whether it is granted.
func (s *frontSession) note(req *ssh.Request) bool {
	switch req.Type {
	case "env":
		return s.setEnv(req.Payload)
	case "pty-req":
		return s.setTerminal(req.Payload)
	}
	return false
}

// setTerminal says yes and gives none: with -t or -tt OpenSSH leaves at a refusal,
// and the person at the other end would never read ours.
func (s *frontSession) setTerminal(payload []byte) bool {
	var msg struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        string
	}
	if err := ssh.Unmarshal(payload, &msg); err != nil {
		return false
	}
	s.terminal = true
	return true
}

func (s *frontSession) execRequest(payload []byte) func(context.Context) int {
	var msg struct{ Command string }
	if err := ssh.Unmarshal(payload, &msg); err != nil {
		return nil
	}
	if limit := s.conn.front.limits.CommandBytes; len(msg.Command) > limit {
		return func(context.Context) int {
			return s.refuse(fmt.Sprintf("command longer than %d bytes", limit), statusRefused)
		}
	}
	return func(ctx context.Context) int { return s.exec(ctx, msg.Command) }
}

// setEnv keeps a variable, if it is small and has a plain name.
func (s *frontSession) setEnv(payload []byte) bool {
	limits := s.conn.front.limits
	var msg struct{ Name, Value string }
	if err := ssh.Unmarshal(payload, &msg); err != nil || !isEnvName(msg.Name) {
		return false
	}
	if len(msg.Name)+len(msg.Value) > limits.EnvBytes || len(s.env) >= limits.EnvVars {
		return false
	}
	if s.env == nil {
		s.env = make(map[string]string)
	}
	s.env[msg.Name] = msg.Value
	return true
}

func isEnvName(name string) bool {
	for _, c := range []byte(name) {
		if c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return name != ""
}

func (s *frontSession) refuse(sentence string, status int) int {
	end := "\n"
	if s.terminal {
		end = "\r\n" // the client's is in raw mode
	}
	fmt.Fprintf(s.stderr, "nixbastion: %s%s", sentence, end)
	return status
}

func (s *frontSession) exec(ctx context.Context, command string) (status int) {
	defer func() {
		if p := recover(); p != nil {
			s.conn.front.log.Error("panic", append(s.conn.where(), "where", "command", "principal", s.who.Principal,
				"panic", quotePeer(fmt.Sprint(p)), "stack", string(debug.Stack()))...)
			fmt.Fprintf(s.stderr, "nixbastion: internal error; the log of this host has the details\n")
			status = statusInternal
		}
	}()
	s.does.begin(command)
	return s.conn.front.exec(ctx, &Exec{
		Identity: s.who, Command: command, Env: s.env, Terminal: s.terminal,
		Stdin: &input{s.conn, s.channel}, Stdout: s.stdout, Stderr: s.stderr,
		Stopping: s.conn.stopping, Draining: s.conn.front.draining, DrainIdle: s.conn.front.idleInDrain,
		Lost: s.conn.lost, Dismissed: s.conn.dismissed, Working: &s.conn.working, Operates: s.does.operate,
	})
}

func (s *frontSession) steady(w io.Writer) *steadyWriter {
	limit := s.conn.front.limits.WriteStall
	return newSteadyWriter(w, limit, func() { s.conn.lose(stalled(limit)) })
}

// finish sends end of file, exit status and close, in this order: what comes
// after close is lost, and some clients look at nothing after the status.
// Errors mean that nobody is there to read it.
//
// A client that has ended its side answers our end of file with its close, and the
// library answers that with ours, be the status sent or not. So nothing that
// answers us is looked at before all is sent.
func (s *frontSession) finish(status int) {
	s.farewell.Lock()
	defer s.farewell.Unlock()
	s.conn.gate.hold()
	defer s.conn.gate.release()
	s.channel.CloseWrite()
	s.channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
	s.channel.Close()
}

// drain answers requests until the channel is gone. The connection stands still
// for everybody on it while requests wait to be read.
func (c *frontConn) drain(requests <-chan *ssh.Request) {
	var lately rate
	for req := range requests {
		if lately.hit(time.Now()) > floodFactor*c.front.limits.OpensPer10s {
			c.abort("flood of requests")
		}
		req.Reply(false, nil)
	}
}

// awaitGone waits for the client's half of the close. Until then the library keeps
// the channel and up to a window of unread input, so its place stays taken. A client
// that never closes loses the connection.
func (c *frontConn) awaitGone(gone <-chan struct{}) {
	patience := c.newPatience(c.front.limits.WriteStall, startExtensions)
	defer patience.timer.Stop()
	for {
		select {
		case <-gone:
			return
		case <-patience.timer.C:
			if !patience.extend() {
				c.abort("channel not closed")
				<-gone
				return
			}
		}
	}
}

// patience is a time limit that is extended while the connection is busy: on a
// slow line the answer may be queued behind other channels' data.
type patience struct {
	conn  *frontConn
	timer *time.Timer
	step  time.Duration
	left  int   // extensions
	seen  int64 // bytes received when the timer was set
}

func (c *frontConn) newPatience(step time.Duration, extensions int) *patience {
	return &patience{
		conn: c, timer: time.NewTimer(step), step: step, left: extensions, seen: c.received.Load(),
	}
}

// extend is called when the timer fired; it reports false when time is up.
func (p *patience) extend() bool {
	received := p.conn.received.Load()
	if received == p.seen || p.left == 0 {
		return false
	}
	p.seen = received
	p.left--
	p.timer.Reset(p.step)
	return true
}
