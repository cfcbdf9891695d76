package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// What the service manager is told, if there is one (NOTIFY_SOCKET); see sd_notify(3).
// Only the unit's main process is heard.

// notify tells states. That nobody hears is no reason to do anything else.
func notify(log *slog.Logger, states ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(states, "\n")); err != nil {
		log.Warn("the service manager cannot be told", "error", err)
	}
}

// maxStatus keeps a message below the 4096 bytes of which systemd takes none at all that
// has more.
const maxStatus = 1 << 10

func statusText(format string, args ...any) string {
	text := fmt.Sprintf(format, args...)
	if len(text) > maxStatus {
		text = strings.ToValidUTF8(text[:maxStatus], "") + "..."
	}
	return "STATUS=" + text
}

// reloading is what Type=notify-reload waits for after its signal, before READY.
func reloading() string {
	return daemon.SdNotifyReloading + "\n" + strings.TrimSuffix(daemon.SdNotifyMonotonicUsec(), "\n")
}

const (
	// extendEvery is how often a process that drains asks for more time to stop, and
	// extendBy for how much. So TimeoutStopSec= need not know drain_timeout.
	extendEvery = 5 * time.Second
	extendBy    = 20 * time.Second
)

// extendStop keeps the service manager from killing what still drains, until ctx ends.
func extendStop(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(extendEvery)
	defer tick.Stop()
	for {
		notify(log, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extendBy.Microseconds()))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// watchdog tells the service manager at half of its interval that the proxy is alive,
// until ctx ends, each time only after alive has returned: it must not, if something
// that every client needs is stuck.
func watchdog(ctx context.Context, interval time.Duration, alive func(), log *slog.Logger) {
	if interval <= 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		alive()
		notify(log, daemon.SdNotifyWatchdog)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// watchdogInterval is what the service manager wants, 0 for nothing.
func watchdogInterval(log *slog.Logger) time.Duration {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the service manager's watchdog is not answered", "error", err)
		return 0
	}
	return interval
}
