package policy

import (
	"path/filepath"
	"time"

	"gopkg.in/yaml.v3"
)

// Audit is the log of what was done, by whom.
type Audit struct {
	// File is appended to; "" keeps no such log.
	File string
	// SyncAlways has an event on disk before it is answered for; without it, within
	// a second.
	SyncAlways bool
	// RotateSize in bytes and RotateAge are when a file is full.
	RotateSize int64
	RotateAge  time.Duration
	// Keep is how many full files stay.
	Keep int
	// Continue lets builds go on while nothing can be written.
	Continue bool
}

const (
	// defaultAuditFile is in the state directory.
	defaultAuditFile       = "audit/audit.jsonl"
	defaultAuditRotateSize = 64 << 20
	defaultAuditRotateAge  = 30 * 24 * time.Hour
	defaultAuditKeep       = 16
	// leastAuditFile is below what holds the events of a minute.
	leastAuditFile = 64 << 10
	longestAudit   = 10 * 365 * 24 * time.Hour
	maxAuditFiles  = 10_000
)

// The words of the policy file.
var (
	auditSyncWords    = map[string]bool{"every_second": false, "always": true}
	auditFailureWords = map[string]bool{"refuse": false, "continue": true}
)

func defaultAudit() Audit {
	return Audit{RotateSize: defaultAuditRotateSize, RotateAge: defaultAuditRotateAge, Keep: defaultAuditKeep}
}

// audit reads how the log is kept, or the word off.
func (d *decoder) audit(n *yaml.Node) {
	a := &d.pol.Audit
	if n.Kind == yaml.ScalarNode {
		d.auditOff = d.off(n, "settings", "write {sync: always, keep: 100}, or off")
		return
	}
	d.mapping(n, "audit.",
		setting{"file", func(n *yaml.Node) { a.File, _ = d.path(n) }},
		setting{"sync", func(n *yaml.Node) {
			a.SyncAlways, _ = choice(d, n, auditSyncWords)
		}},
		setting{"rotate_size", func(n *yaml.Node) { d.sizeInto(&a.RotateSize, n, leastAuditFile) }},
		setting{"rotate_age", func(n *yaml.Node) { d.durationInto(&a.RotateAge, n, time.Hour, longestAudit) }},
		setting{"keep", func(n *yaml.Node) { a.Keep, _ = d.count(n, 1, maxAuditFiles) }},
		setting{"on_failure", func(n *yaml.Node) {
			a.Continue, _ = choice(d, n, auditFailureWords)
		}},
	)
}

// auditFile fills in where the log is.
func (d *decoder) auditFile() {
	p := d.pol
	switch {
	case d.auditOff:
		p.Audit = Audit{}
	case p.Audit.File == "":
		p.Audit.File = p.defaultAuditFile()
	}
}

func (p *Policy) defaultAuditFile() string { return filepath.Join(p.StateDir, defaultAuditFile) }

// sameAudit reports whether nothing changes but what follows from state_dir.
func (p *Policy) sameAudit(next *Policy) bool {
	a, b := p.Audit, next.Audit
	if a.File == p.defaultAuditFile() && b.File == next.defaultAuditFile() {
		b.File = a.File
	}
	return a == b
}

// audit says what is kept of what is done.
func (t *description) audit(a Audit) {
	if a.File == "" {
		t.line(0, "What was done by whom is not kept (audit: off).")
		return
	}
	synced := "on disk within a second"
	if a.SyncAlways {
		synced = "on disk before it is answered (sync: always)"
	}
	t.line(0, "What was done by whom is kept in %s, %s; a file is full with %s or after %s, and %s stay.",
		a.File, synced, sizeText(a.RotateSize), durationText(a.RotateAge), CountOf(a.Keep, "full file"))
	if a.Continue {
		t.line(1, "while that cannot be written everything goes on, and what is lost is counted (on_failure: continue)")
	} else {
		t.line(1, "while that cannot be written there are no builds, uploads and jumps (on_failure: refuse)")
	}
}
