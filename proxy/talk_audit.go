package proxy

import "time"

// auditStatus says that the audit log cannot be written.
type auditStatus struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
	// Refuses says that builds, uploads and jumps are refused meanwhile.
	Refuses bool `json:"refuses"`
}

// auditStatus is nil while the log can be written, or is off.
func (p *Proxy) auditStatus() *auditStatus {
	f := p.audit.Trouble()
	if f == nil {
		return nil
	}
	return &auditStatus{Since: f.Since.UTC().Truncate(time.Second), Reason: f.Err.Error(), Refuses: p.audit.Fault() != nil}
}

// print tells the admin, who hears from users that nothing is built.
func (s *auditStatus) print(page *page, now time.Time) {
	follows := "builds go on (on_failure: continue)"
	if s.Refuses {
		follows = "builds, uploads and jumps are refused (on_failure: refuse)"
	}
	page.line("Audit log: CANNOT BE WRITTEN since %s (%s): %s", s.Since.Format("15:04:05Z"), now.Sub(s.Since).Truncate(time.Second), follows)
	page.line("  %s", s.Reason)
}
