package proxy

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"
)

const (
	// killPatience is how long the admin waits for a killed build to be gone from its
	// builder, which tells so.
	killPatience = 10 * time.Second
	// maxKillReason bounds what clients read of it, in bytes.
	maxKillReason = 300
)

// kill ends a build that waits or runs. Its clients read by whom and why; nothing tries
// it again.
func (p *Proxy) kill(ctx context.Context, by, build, reason string) (string, error) {
	if len(reason) > maxKillReason || !utf8.ValidString(reason) || Printable(reason) != reason {
		return "", usage("the reason is for people: up to %d bytes of printable text", maxKillReason)
	}
	r, err := p.builds.ledger.find(&asker{}, build, true)
	if err != nil {
		return "", err
	}
	e := p.builds.ledger.entry(r.ID)
	if e == nil {
		return "", usage("build %s has ended already", r.ID)
	}
	told := e.snapshot().Clients
	ctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	now, begun := e.kill(ctx, &killError{by: by, reason: reason})
	p.glances.forget()
	switch {
	case now.Ended == nil:
		return fmt.Sprintf("build %s (%s) is being ended; its builder takes its time\n", r.ID, r.Name), nil
	case !begun || now.Result != "killed":
		return "", usage("build %s has ended already: %s", r.ID, now.Result)
	}
	return fmt.Sprintf("build %s (%s) is killed%s; %s\n", r.ID, r.Name, placeText(&now), clientsText(told)), nil
}

func placeText(r *buildRecord) string {
	if r.Builder == "" {
		return ", which waited"
	}
	return fmt.Sprintf(", which ran on '%s'", r.Builder)
}

func clientsText(n int) string {
	switch n {
	case 0:
		return "no client waited for it"
	case 1:
		return "1 client was told"
	}
	return fmt.Sprintf("%d clients were told", n)
}
