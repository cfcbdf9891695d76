package worker

import (
	"fmt"
	"slices"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// handshake is the server's half.
func (s *session) handshake() error {
	s.r.Expect("the client's magic number", magicClient)
	if err := s.r.Err(); err != nil {
		return fmt.Errorf("protocol mismatch: %w", err)
	}
	// Clients up to 2.22 send their version only after this.
	s.w.Uint64(magicServer)
	s.w.Uint64(uint64(Latest))
	s.w.Flush()
	if err := s.agreeWithClient(Version(s.r.Uint64())); err != nil {
		return err
	}
	s.readObsolete()
	if err := s.r.Err(); err != nil {
		return fmt.Errorf("read the client's handshake: %w", err)
	}
	s.introduce()
	return s.accept()
}

func (s *session) agreeWithClient(theirs Version) error {
	if err := s.r.Err(); err != nil {
		return fmt.Errorf("read the client's version: %w", err)
	}
	if err := s.agree("client", theirs, Latest, Oldest); err != nil {
		return err
	}
	if s.version >= sinceFeatures {
		s.agreeFeatures(s.readFeatures(), s.opts.Features)
		s.w.Strings(s.opts.Features)
		s.w.Flush()
	}
	return nil
}

func (c *conn) readFeatures() []string { return c.r.Strings(maxFeatures, maxFeatureName) }

// readObsolete reads what only old servers cared for. Clients of 2.23 send their
// version twice; the second copy lands in the affinity and is made harmless by
// the zero behind it being taken for the cpu.
func (s *session) readObsolete() {
	if affinity := s.r.Uint64(); affinity != 0 {
		s.r.Uint64()
	}
	s.r.Uint64()
}

// introduce says who the server is and what it thinks of the client.
func (s *session) introduce() {
	if s.version >= sinceDaemonVersion {
		s.w.String(s.opts.DaemonVersion)
	}
	if s.version >= sinceTrust {
		s.w.Uint64(uint64(s.opts.Trust))
	}
}

// accept ends the handshake, or refuses the client with a sentence.
func (s *session) accept() error {
	if s.opts.Refuse != "" {
		s.writeError(nix.Refuse("%s", s.opts.Refuse))
		s.w.Flush()
		return fmt.Errorf("client refused: %s", s.opts.Refuse)
	}
	s.w.Uint64(stderrLast)
	return s.w.Flush()
}

// MismatchError says that a peer which should be a daemon sent something else:
// mostly the text of a shell or a login message.
type MismatchError = wire.MismatchError

// handshake is the client's half.
func (c *Client) handshake(opts ClientOptions) error {
	c.w.Uint64(magicClient)
	c.w.Uint64(uint64(opts.Version))
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
	if err := c.agree("daemon", theirs, opts.Version, opts.MinVersion); err != nil {
		return err
	}
	c.sendRest(opts.Features)
	c.readIntroduction(opts.Features)
	return c.awaitReply(reply{log: c.log})
}

func (c *Client) sendRest(features []string) {
	if c.version >= sinceFeatures {
		c.w.Strings(features)
	}
	c.w.Uint64(0) // affinity
	c.w.Uint64(0) // reserve space
	c.w.Flush()
}

func (c *Client) readIntroduction(features []string) {
	if c.version >= sinceFeatures {
		theirs := c.readFeatures()
		c.agreeFeatures(theirs, features)
		c.namesByPath = slices.Contains(theirs, FeatureRealisationPaths)
	}
	if c.version >= sinceDaemonVersion {
		c.daemonVersion = c.r.String(wire.MaxString)
	}
	if c.version >= sinceTrust {
		c.trust = c.readTrust()
	}
}

func (c *conn) readTrust() nix.Trust {
	trust := nix.Trust(c.r.Uint8())
	if trust > nix.NotTrusted {
		c.r.Fail(fmt.Errorf("expected a trust flag of at most %d, got %d", nix.NotTrusted, trust))
	}
	return trust
}
