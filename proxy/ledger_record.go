package proxy

import (
	"errors"
	"strings"
	"time"

	"nixbastion/internal/nix"
)

// buildRecord is what is known of a build. It is what answers say in JSON, and what a
// kept build's file has; texts of peers in it are short, and as they came.
type buildRecord struct {
	// ID names the build in questions, for as long as it is known.
	ID         string `json:"id"`
	Name       string `json:"name"`
	Derivation string `json:"derivation"`
	// State is "waiting" for a builder, "running" or "ended". Phase is what a running
	// one does: "connect", "inputs", "build" or "outputs".
	State string `json:"state"`
	Phase string `json:"phase,omitempty"`
	// Principals are who asked for it, the first one first.
	Principals []string `json:"principals"`
	Domain     string   `json:"domain"`
	System     string   `json:"system"`
	Features   []string `json:"features"`
	// Builder is where it runs, or where its result came from.
	Builder string `json:"builder,omitempty"`
	// Clients wait for it now. A build under way without one goes on since its last
	// client was lost.
	Clients int `json:"clients"`
	// Asked is when the first client asked for it, Began when its builder was chosen, of
	// several the last, and Ended when the result was there.
	Asked time.Time  `json:"asked"`
	Began *time.Time `json:"began,omitempty"`
	Ended *time.Time `json:"ended,omitempty"`
	// Result is "built", "failed", "killed" by an admin, "abandoned" by its clients,
	// "stopped" with the proxy, or "error"; empty before the end.
	Result string `json:"result,omitempty"`
	// Status is Nix's word for the result, and Error what is said of a build that was
	// not built, cut to a line.
	Status string `json:"status,omitempty"`
	Error  string `json:"error,omitempty"`
	// Attempts are those that gave no answer, but for the first ones of many.
	Attempts []attemptRecord `json:"attempts"`
	// LogBytes is how much text of its log is kept; 0 if none is, or before the end.
	LogBytes int64 `json:"log_bytes"`
}

// attemptRecord is an attempt that gave no answer.
type attemptRecord struct {
	Builder string  `json:"builder"`
	Reason  string  `json:"reason"`
	Seconds float64 `json:"seconds"`
}

const (
	// maxRecordFeatures bounds what a derivation can put into the ledger, and
	// maxRecordAttempts what a build can that fails everywhere.
	maxRecordFeatures = 32
	maxRecordAttempts = 8
)

func newRecord(o *order, now time.Time) buildRecord {
	r := buildRecord{
		Name: o.drvPath.DrvName(), Derivation: o.drvPath.String(), State: "waiting",
		Principals: []string{o.principal.Name}, Domain: o.principal.Domain, System: brief(o.system), Features: []string{},
		Asked: now.UTC().Round(time.Millisecond), Attempts: []attemptRecord{},
	}
	for _, f := range o.features[:min(len(o.features), maxRecordFeatures)] {
		r.Features = append(r.Features, brief(f))
	}
	return r
}

// finish notes the end. An error is the end of a build that has no result.
func (r *buildRecord) finish(result *nix.BuildResult, err error, killed bool) {
	now := time.Now().UTC().Round(time.Millisecond)
	r.State, r.Phase, r.Ended = "ended", "", &now
	switch {
	case killed:
		r.Result = "killed"
	case errors.Is(err, errNobodyWaits):
		r.Result = "abandoned"
	case errors.Is(err, errShutdown):
		r.Result = "stopped"
	case err != nil:
		r.Result, r.Error = "error", brief(endText(err))
	case result.Status.Success():
		r.Result = "built"
	default:
		r.Result = "failed"
	}
	if err == nil {
		r.Status, r.Error = result.Status.String(), brief(plainText(result.ErrorMsg))
	}
}

// failed reports whether it ended without outputs against the will of its clients.
func (r *buildRecord) failed() bool {
	return r.Ended != nil && r.Result != "built" && r.Result != "abandoned"
}

// took is how long it was under way, by now or at all.
func (r *buildRecord) took(now time.Time) time.Duration {
	if r.Ended != nil {
		now = *r.Ended
	}
	return max(0, now.Sub(r.Asked))
}

// matches reports whether a text means the build: the begin of its id or of its
// derivation's hash, its name, or its derivation.
func (r *buildRecord) matches(text string) bool {
	base := strings.TrimPrefix(r.Derivation, nix.StoreDir+"/")
	hash, _, _ := strings.Cut(base, "-")
	return text != "" && (strings.HasPrefix(r.ID, text) || strings.HasPrefix(hash, text) ||
		text == r.Name || text == r.Name+".drv" || text == base || text == r.Derivation)
}

// stateText says how it is in a word or two.
func (r *buildRecord) stateText() string {
	switch {
	case r.Ended != nil:
		return r.Result
	case r.State == "running" && r.Phase != "build":
		return "running (" + r.Phase + ")"
	}
	return r.State
}

// endLine is the line behind a log.
func (r *buildRecord) endLine() string {
	text := r.Result
	if r.Builder != "" {
		text += " on " + r.Builder
	}
	text += " after " + rounded(r.took(time.Time{})).String()
	if r.Error != "" {
		text += ": " + r.Error
	}
	return "nixbastion: " + text
}
