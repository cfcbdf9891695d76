package proxy

import (
	"fmt"
	"time"

	"nixbastion/policy"
	"nixbastion/proxy/upstream"
)

// totalsSpan is how far back builds that have ended are counted.
const totalsSpan = time.Hour

// totals are what an admin wants to know first.
type totals struct {
	UpSeconds int64 `json:"up_seconds"`
	// OldProcess says that the process whose place this one has taken still ends its
	// builds, which no answer has.
	OldProcess bool `json:"old_process,omitempty"`
	// Running and Waiting count builds under way; the next two those that ended within
	// the last hour, as far as they are remembered.
	Running        int `json:"running"`
	Waiting        int `json:"waiting"`
	BuiltLastHour  int `json:"built_last_hour"`
	FailedLastHour int `json:"failed_last_hour"`
	// Connections are those that have logged in, of so many Principals.
	Connections int `json:"connections"`
	Principals  int `json:"principals"`
	// StoreBytes of StoreSize are taken on disk.
	StoreBytes int64 `json:"store_bytes"`
	StoreSize  int64 `json:"store_size"`
}

func (p *Proxy) totals(a *asker, now time.Time) *totals {
	t := &totals{OldProcess: p.oldProcess(), UpSeconds: int64(now.Sub(p.started) / time.Second), StoreBytes: p.cache.Stats().Bytes, StoreSize: p.policy.Current().Cache.Size}
	underWay, ended := p.builds.ledger.since(a, now.Add(-totalsSpan))
	for _, r := range underWay {
		if r.State == "running" {
			t.Running++
		} else {
			t.Waiting++
		}
	}
	for _, r := range ended {
		switch {
		case r.Result == "built":
			t.BuiltLastHour++
		case r.failed():
			t.FailedLastHour++
		}
	}
	principals := map[string]bool{}
	for _, c := range p.front.connections() {
		t.Connections++
		principals[c.who.Principal] = true
	}
	t.Principals = len(principals)
	return t
}

func (t *totals) print(page *page) {
	up := span(time.Duration(t.UpSeconds) * time.Second)
	if t.OldProcess {
		up += "; an old process still ends its builds, which are not shown here before they have ended"
	}
	page.table([][]string{
		{"up", up},
		{"builds", fmt.Sprintf("%d running, %d waiting; in the last hour %d built, %d failed", t.Running, t.Waiting, t.BuiltLastHour, t.FailedLastHour)},
		{"clients", policy.CountOf(t.Connections, "connection") + " of " + policy.CountOf(t.Principals, "principal")},
		{"store", fmt.Sprintf("%s of %s", upstream.Bytes(t.StoreBytes), upstream.Bytes(t.StoreSize))},
	})
}
