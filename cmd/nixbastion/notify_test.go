package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// Guards against a watchdog that is told that all is well by a timer, while what every
// client needs is stuck.
func TestTheWatchdogHearsNothingOfAProxyThatIsStuck(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	notes, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notes.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	hears := func() string {
		buf := make([]byte, 100)
		notes.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := notes.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	asked, well := make(chan struct{}), make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		watchdog(ctx, time.Millisecond, func() {
			select {
			case asked <- struct{}{}:
				<-well
			case <-ctx.Done():
			}
		}, slog.New(slog.DiscardHandler))
	}()
	<-asked
	notes.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := notes.Read(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes were told of a proxy that is stuck (%v)", n, err)
	}
	well <- struct{}{}
	if got := hears(); got != "WATCHDOG=1" {
		t.Errorf("told %q", got)
	}
	<-asked
	stop()
	close(well)
	<-ended
}

// Guards against a policy with so many mistakes that the service manager, which takes no
// more than 4096 bytes at once, does not hear that the reload is over.
func TestAStatusLeavesRoomForWhatIsSaidWithIt(t *testing.T) {
	for _, text := range []string{strings.Repeat("a mistake ", 1000), strings.Repeat("ä", 4000), "€" + strings.Repeat("ä", 4000)} {
		if got := statusText("%s", text); len(got) > 2048 || !utf8.ValidString(got) || !strings.HasPrefix(got, "STATUS="+text[:500]) {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	}
}
