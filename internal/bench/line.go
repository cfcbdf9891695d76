package main

import (
	"context"
	"strings"

	"nixbastion/internal/testbed"
)

// behindLine makes a way slow at its client's end, as the line of an office is: what
// happens at the same time behind it is hidden then, where two cores would be shared.
func (l *lab) behindLine(ctx context.Context, w *way, key testbed.Key, megabytes int) (*way, error) {
	h, err := l.bed.Start(ctx, testbed.HostSpec{Name: "line-" + strings.ToLower(w.name)})
	if err != nil {
		return nil, err
	}
	if err := l.bed.AddKnownHost(h.Name(), l.hostKeyOf(w)); err != nil {
		return nil, err
	}
	if _, err := h.Relay(testbed.RelaySpec{Port: 22, Target: w.host + ":22", BytesPerSecond: megabytes * 1e6}); err != nil {
		return nil, err
	}
	slow := newWay(w.name, w.account, h, key)
	slow.middle, slow.reset = w.middle, w.reset
	return slow, nil
}

// hostKeyOf is the host key that a client meets at the end of a way.
func (l *lab) hostKeyOf(w *way) string {
	switch w.name {
	case proxy, unaudited:
		return l.proxies[w.name].HostKey()
	case hub:
		return l.bed.HostKey(l.hub.Name()).AuthorizedLine()
	default:
		return l.bed.HostKey(l.builder.Name()).AuthorizedLine()
	}
}
