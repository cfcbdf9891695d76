package upstream

import (
	"context"
	"time"

	"nixbastion/internal/nix"
)

// Report is what a check of a builder found.
type Report struct {
	Builder, Address, User string
	// Server is how the ssh server calls itself, or "unix socket".
	Server string
	// Nix is the version that the daemon names, or what follows from the protocol
	// where it names none: for people.
	Nix string
	// Protocol is the version of the protocol that is spoken.
	Protocol string
	// Trust is what the daemon thinks of the account; unknown before Nix 2.15.
	Trust nix.Trust
	// Command is what was executed, or the socket's address.
	Command string
	// Connect is the time of the connection and login, Handshake that of
	// starting the daemon and greeting it.
	Connect, Handshake time.Duration
	// Load is how busy the builder is, and LoadErr why that cannot be seen: the
	// builder is of use all the same.
	Load    Load
	LoadErr error
	// Settings are those of the builder's Nix, and SettingsErr why they cannot be seen.
	Settings    NixSettings
	SettingsErr error
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
	started := time.Now()
	d, connected, err := b.openAnew(ctx)
	if err != nil {
		return r, err
	}
	r.Connect, r.Handshake = connected.Sub(started), time.Since(connected)
	r.Server = d.process.server()
	r.Nix, r.Protocol, r.Trust = d.nix, d.protocol, d.trust
	r.Command = d.command
	r.Load, r.LoadErr = b.checkLoad(ctx, d.process)
	r.Settings, r.SettingsErr = b.checkSettings(ctx, d)
	return r, (&Session{d: d}).End(ctx)
}

// openAnew opens a session on a connection of its own and tells when that was
// there.
func (b *builder) openAnew(ctx context.Context) (d *daemon, connected time.Time, err error) {
	if b.target.socket != "" {
		p, err := b.connectSocket(ctx, false)
		if err != nil {
			return nil, time.Time{}, err
		}
		connected = time.Now()
		d, err = b.greetSocket(ctx, p)
		return d, connected, err
	}
	d, err = b.openDaemon(ctx, func(ctx context.Context) (*conn, error) {
		c, err := b.dialOnce(ctx)
		connected = time.Now()
		return c, err
	})
	return d, connected, err
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
