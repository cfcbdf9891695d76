package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"nixbastion/cache"
	"nixbastion/policy"
	"nixbastion/proxy"
	"nixbastion/proxy/upstream"
)

// storeAnswer is what the store holds, in JSON.
type storeAnswer struct {
	Bytes       int64          `json:"bytes"`
	Size        int64          `json:"size"`
	Reserve     int64          `json:"spool_reserve"`
	Paths       int64          `json:"paths"`
	Domains     []domainAnswer `json:"domains"`
	Quarantine  int64          `json:"quarantine_bytes"`
	Quarantined int64          `json:"quarantined"`
	Broken      int64          `json:"broken"`
	Corrupt     int64          `json:"corrupt"`
	Evictions   int64          `json:"evictions"`
	Hits        int64          `json:"hits"`
	Misses      int64          `json:"misses"`
	ScrubBegan  int64          `json:"scrub_began,omitempty"`
	ScrubEnded  bool           `json:"scrub_ended"`
}

type domainAnswer struct {
	Name   string `json:"name"`
	Paths  int64  `json:"paths"`
	Bytes  int64  `json:"bytes"`
	Pinned int64  `json:"pinned"`
}

func (q *cacheRequest) info(ctx context.Context, c *cache.Cache, _ *policy.Policy, d *desk) error {
	if len(q.paths) > 0 {
		return q.infoOfPaths(ctx, c, d)
	}
	o, err := c.Overview(ctx)
	if err != nil {
		return err
	}
	s := o.Stats
	a := storeAnswer{
		Bytes: s.Bytes, Size: o.Size, Reserve: o.Reserve, Paths: s.Paths, Domains: []domainAnswer{},
		Quarantine: s.QuarantinedBytes, Quarantined: s.Quarantined, Broken: s.Broken, Corrupt: s.Corrupt,
		Evictions: s.Evictions, Hits: s.Hits, Misses: s.Misses, ScrubBegan: o.RoundBegan, ScrubEnded: o.RoundEnded,
	}
	for _, domain := range o.Domains {
		a.Domains = append(a.Domains, domainAnswer(domain))
	}
	return q.answer(d, a, a.text())
}

func (a *storeAnswer) text() string {
	var t strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&t, format+"\n", args...) }
	line("The store takes %s of %s, of which %s are for uploads alone.", upstream.Bytes(a.Bytes), upstream.Bytes(a.Size), upstream.Bytes(a.Reserve))
	for _, d := range a.Domains {
		line("  domain %s: %s, %s, %d pinned", domainWord(d.Name), policy.CountOf(d.Paths, "path"), upstream.Bytes(d.Bytes), d.Pinned)
	}
	line("In quarantine: %s, %s beside that.", policy.CountOf(a.Quarantined, "file"), upstream.Bytes(a.Quarantine))
	line("Since its start: %d evicted, %s, %s dropped for damage.", a.Evictions, policy.CountOf(a.Corrupt, "damaged NAR"), policy.CountOf(a.Broken, "path"))
	switch {
	case a.ScrubBegan == 0:
		line("It was not read again yet.")
	case a.ScrubEnded:
		line("It was last read again from %s on, to its end.", dateText(a.ScrubBegan))
	default:
		line("It is being read again, since %s.", dateText(a.ScrubBegan))
	}
	return t.String()
}

func (q *cacheRequest) infoOfPaths(ctx context.Context, c *cache.Cache, d *desk) error {
	list := newArray(d.out, q.JSON)
	for _, p := range q.paths {
		e, err := c.Find(ctx, q.Domain, p)
		if err != nil {
			return err
		}
		if q.JSON {
			err = list.add(newPathAnswer(e))
		} else {
			_, err = io.WriteString(d.out, proxy.Printable(pathText(newPathAnswer(e))))
		}
		if err != nil {
			return err
		}
	}
	return list.end(true)
}

func pathText(a pathAnswer) string {
	var t strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&t, format+"\n", args...) }
	line("%s", a.Path)
	line("  domain      %s", domainWord(a.Domain))
	line("  provenance  %s", a.Provenance)
	line("  NAR         %s, %s", a.NarHash, upstream.Bytes(a.NarSize))
	if a.ContentAddress != "" {
		line("  content     %s", a.ContentAddress)
	}
	if a.Deriver != "" {
		line("  deriver     %s", a.Deriver)
	}
	line("  came        %s, last used %s", dateText(a.RegistrationTime), dateText(a.LastUse))
	if a.Pinned {
		line("  pinned")
	}
	for _, sig := range a.Signatures {
		line("  signature   %s", sig)
	}
	for _, ref := range a.References {
		line("  refers to   %s", ref)
	}
	return t.String()
}
