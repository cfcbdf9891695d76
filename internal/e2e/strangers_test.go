package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// Peers that mean ill, or just do not speak Nix, are sent away with a sentence
// or shown the door, and nobody else notices.
func TestStrangersDisturbNobody(t *testing.T) {
	w := startSite(t, siteSpec{})
	known := w.lookedAround(t)
	began, err := w.proxy.RssAnon()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("garbage instead of a handshake", w.testGarbage)
	t.Run("connections that never log in", w.testNoLogin)
	ended, err := w.proxy.RssAnon()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the proxy takes %s, before it was %s", mebibytes(ended), mebibytes(began))
	if ended > transferMemory {
		t.Errorf("the proxy takes %s", mebibytes(ended))
	}
	sessions, err := w.builder.PIDs(daemonSession)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range sessions {
		if !slices.Contains(known, pid) {
			t.Errorf("a builder was asked: it has the sessions %v, before it had %v", sessions, known)
		}
	}
	build(t, w.client, testbed.Derivation{Name: "as-ever"})
}

// lookedAround returns the sessions that the proxy opened on the builder by
// itself at its start: one to look, and one to spare soon after.
func (w *site) lookedAround(t *testing.T) (sessions []int) {
	t.Helper()
	changed := time.Now()
	eventually(t, "the proxy has looked at its builder", patience, func() bool {
		now, err := w.builder.PIDs(daemonSession)
		if err != nil || !slices.Equal(now, sessions) {
			sessions, changed = now, time.Now()
		}
		return len(sessions) > 0 && time.Since(changed) > 2*time.Second
	})
	return sessions
}

// Guards against a codec that believes what it reads, or waits for more of it
// for ever.
func (w *site) testGarbage(t *testing.T) {
	conn, channels, requests, err := dialSSH(t.Context(), w.client, w.proxy, w.key)
	if err != nil {
		t.Fatal(err)
	}
	// One connection for all: a bad session ends alone.
	client := ssh.NewClient(conn, channels, requests)
	defer client.Close()
	const magic = "cxin\x00\x00\x00\x00"
	for what, c := range map[string]struct{ bytes, answer string }{
		"a wrong magic":        {"nixc" + strings.Repeat("\x00", 12), "magic number"},
		"text":                 {strings.Repeat("GET / HTTP/1.1\r\nHost: proxy\r\n\r\n", 100), "magic number"},
		"ones":                 {strings.Repeat("\xff", 1<<20), "magic number"},
		"the serve protocol":   {"\xcb\xeb\xae\x39\x00\x00\x00\x00" + word64(0x207), "magic number"},
		"half a magic":         {"cxi", "unexpected EOF"},
		"half a handshake":     {magic + word64(0x126), "unexpected EOF"},
		"an old version":       {magic + word64(0x001), "version 0.1"},
		"an unknown operation": {magic + word64(0x126) + word64(0) + word64(0) + word64(0) + word64(0xffff), "invalid operation 65535"},
	} {
		t.Run(what, func(t *testing.T) {
			said, status := feed(t, client, c.bytes)
			wantText(t, "what the client is told", said, c.answer)
			if strings.Contains(said, "panic") || strings.Contains(said, world.StateDir) {
				t.Errorf("it says too much: %q", said)
			}
			if status != 1 {
				t.Errorf("the session ended with status %d, want 1", status)
			}
		})
	}
	w.client.MustShell(t, "nix store ping --store "+w.store())
}

func word64(n uint64) string {
	var b [8]byte
	for i := range b {
		b[i] = byte(n >> (8 * i))
	}
	return string(b[:])
}

// feed runs nix-daemon, sends it bytes and the end of the input, and returns
// what it said on both streams, and its status; -1 is none.
func feed(t *testing.T, client *ssh.Client, bytes string) (said string, status int) {
	t.Helper()
	return feedTo(t, client, "nix-daemon --stdio", bytes)
}

// feedTo is feed with any command.
func feedTo(t *testing.T, client *ssh.Client, command, bytes string) (said string, status int) {
	t.Helper()
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	var out, complaints strings.Builder
	session.Stdin, session.Stdout, session.Stderr = strings.NewReader(bytes), &out, &complaints
	err = session.Run(command)
	var exit *ssh.ExitError
	switch {
	case err == nil:
		return complaints.String() + out.String(), 0
	case errors.As(err, &exit):
		return complaints.String() + out.String(), exit.ExitStatus()
	case errors.Is(err, io.EOF): // the session ended while we still sent
		return complaints.String() + out.String(), -1
	}
	t.Fatal(err)
	return "", 0
}

// Guards against strangers who take all places at the door.
func (w *site) testNoLogin(t *testing.T) {
	const strangers = 100
	conns := make([]net.Conn, strangers)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	g, ctx := errgroup.WithContext(t.Context())
	for i := range conns {
		g.Go(func() (err error) {
			conns[i], err = w.other.Dial(ctx, "proxy:22")
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	// Half of them say hello and then nothing.
	for _, c := range conns[:strangers/2] {
		io.WriteString(c, "SSH-2.0-stranger\r\n") // the door may be shut already
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 5 {
		res, err := w.client.Shell(ctx, "nix store ping --store "+w.store())
		if err != nil || res.Status != 0 {
			t.Errorf("a good client does not get in: %v\n%s", err, res.Stderr)
		}
	}
}
