package serve

import (
	"fmt"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// handshake is the server's half.
func (s *session) handshake() error {
	s.r.Expect("the client's magic number", magicClient)
	if err := s.r.Err(); err != nil {
		return fmt.Errorf("protocol mismatch: %w", err)
	}
	if s.opts.Refuse != "" {
		return closing(nix.Refuse("%s", s.opts.Refuse))
	}
	s.w.Uint64(magicServer)
	s.w.Uint64(uint64(s.opts.version))
	s.w.Flush()
	theirs := Version(s.r.Uint64())
	if err := s.r.Err(); err != nil {
		return fmt.Errorf("read the client's version: %w", err)
	}
	return s.agree("client", theirs, s.opts.version, Oldest)
}

// MismatchError says that a peer which should be a server sent something else:
// mostly the text of a shell or a login message.
type MismatchError = wire.MismatchError

// handshake is the client's half.
func (c *Client) handshake(opts ClientOptions) error {
	c.w.Uint64(magicClient)
	c.w.Uint64(uint64(opts.version))
	if err := c.w.Flush(); err != nil {
		return err
	}
	if err := c.caller.ReadMagic(magicServer); err != nil {
		return err
	}
	theirs := Version(c.r.Uint64())
	if err := c.r.Err(); err != nil {
		return err
	}
	return c.agree("server", theirs, opts.version, opts.least)
}
