package upstream

import (
	"context"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
)

// Report is what a check of a builder found.
type Report struct {
	Builder, Address, User string
	// Server is how the ssh server calls itself.
	Server string
	// Nix is the version that the daemon names, "" for one older than 2.7, and
	// Protocol the version that is spoken with it.
	Nix      string
	Protocol worker.Version
	// Trust is what the daemon thinks of the account; unknown before Nix 2.15.
	Trust nix.Trust
	// Command is what was executed.
	Command string
	// Connect is the time of the connection and login, Handshake that of
	// starting the daemon and greeting it.
	Connect, Handshake time.Duration
}

// Check connects to a builder anew and opens a daemon session, whatever was
// found before. It changes nothing about what the pool thinks of the builder.
// Errors are those of Get.
func (p *Pool) Check(ctx context.Context, name string) (Report, error) {
	b, err := p.enter(name)
	if err != nil {
		return Report{}, err
	}
	defer p.running.Done()
	r := Report{Builder: name, Address: b.target.address, User: b.target.user}
	var connected time.Time
	d, err := b.openDaemon(ctx, func(ctx context.Context) (*conn, error) {
		started := time.Now()
		c, err := b.dialOnce(ctx)
		connected = time.Now()
		r.Connect = connected.Sub(started)
		return c, err
	})
	if err != nil {
		return r, err
	}
	r.Handshake = time.Since(connected)
	r.Server = clean(string(d.process.conn.link.ServerVersion()))
	r.Nix, r.Protocol, r.Trust = clean(d.client.DaemonVersion()), d.client.Version(), d.client.Trust()
	r.Command = d.command
	return r, (&Session{d: d}).End(ctx)
}

// dialOnce sets up a connection for one channel, which is the caller's. It is
// closed after that.
func (b *builder) dialOnce(ctx context.Context) (*conn, error) {
	l, err := b.pool.dial(ctx, b.target)
	if err != nil {
		return nil, err
	}
	c := newConn(b, l)
	b.mu.Lock()
	defer b.mu.Unlock()
	c.channels, c.limit, c.retired = 1, 1, true
	return c, nil
}
