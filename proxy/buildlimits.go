package proxy

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

// SetBuildLimits bounds the builds that follow as the client asks. The proxy
// keeps the limits itself: most builders could not, see [watchdog].
func (s *session) SetBuildLimits(limits nix.BuildLimits) { s.buildLimits = limits }

// buildLimits bound a build: of what its client asks and what the policy sets, the
// stricter counts. Builds are shared only under equal ones: nobody gets the end of
// somebody else's.
type buildLimits struct {
	nix.BuildLimits
	// cores is how many the build is told to use, 0 for what its builder says.
	cores int
	// policy is what of it is in the policy, which builders are told, too: not what
	// clients ask, which can be anything.
	policy nix.BuildLimits
}

// limitsOf returns the limits of a build of the session's client.
func (s *session) limitsOf(drvPath nix.StorePath, system string) buildLimits {
	rules := s.policy().LimitsOf(s.principal.Name, system, drvPath.DrvName())
	l := buildLimits{cores: rules.Cores, policy: nix.BuildLimits{
		MaxSilent: rules.MaxSilent, Timeout: rules.Timeout, MaxLogSize: uint64(max(rules.MaxLogSize, 0)),
	}}
	l.MaxSilent = stricter(s.buildLimits.MaxSilent, l.policy.MaxSilent)
	l.Timeout = stricter(s.buildLimits.Timeout, l.policy.Timeout)
	l.MaxLogSize = stricter(s.buildLimits.MaxLogSize, l.policy.MaxLogSize)
	return l
}

// stricter is the smaller of two limits, of which 0 is none.
func stricter[T time.Duration | uint64](a, b T) T {
	if a == 0 || b == 0 {
		return a + b
	}
	return min(a, b)
}

// settings are what the builder of a build is told. It keeps the limits of the policy
// by itself when we cannot end the build any more.
func (l buildLimits) settings() upstream.Settings {
	return upstream.Settings{MaxSilent: l.policy.MaxSilent, Timeout: l.policy.Timeout, MaxLogSize: l.policy.MaxLogSize, Cores: l.cores}
}

// exceeded is one way to break a limit: its status, how Nix says it, and whether the
// policy says it, in which setting.
type exceeded struct {
	status   nix.BuildStatus
	words    string
	byPolicy bool
	setting  string
}

// Limits by their place in all.
const (
	silence = iota
	deadline
	logSize
	kindsOfLimits
)

// all are the limits that there are. A zero one has no words.
func (l buildLimits) all() [kindsOfLimits]exceeded {
	var all [kindsOfLimits]exceeded
	if l.MaxSilent > 0 {
		all[silence] = exceeded{nix.StatusTimedOut, fmt.Sprintf("timed out after %g seconds of silence", l.MaxSilent.Seconds()),
			l.MaxSilent == l.policy.MaxSilent, "max_silent"}
	}
	if l.Timeout > 0 {
		all[deadline] = exceeded{nix.StatusTimedOut, fmt.Sprintf("timed out after %g seconds", l.Timeout.Seconds()),
			l.Timeout == l.policy.Timeout, "timeout"}
	}
	if l.MaxLogSize > 0 {
		all[logSize] = exceeded{nix.StatusLogLimitExceeded, fmt.Sprintf("killed after writing more than %d bytes of log output", l.MaxLogSize),
			l.MaxLogSize == l.policy.MaxLogSize, "max_log_size"}
	}
	return all
}

// whose says who set the limit.
func (e exceeded) whose() string {
	if e.byPolicy {
		return fmt.Sprintf("%s of build_limits in the proxy's policy", e.setting)
	}
	return "a limit of the client"
}

// explain says of a build that was ended by its builder for a limit whose that was.
func (l buildLimits) explain(result *nix.BuildResult, builder string) {
	if result.Status != nix.StatusTimedOut && result.Status != nix.StatusLogLimitExceeded {
		return
	}
	whose := fmt.Sprintf("a limit of builder '%s' itself", builder)
	said, _, _ := strings.Cut(plainText(result.ErrorMsg), "\n")
	said = strings.TrimSpace(said)
	for _, e := range l.all() {
		alike := strings.TrimSuffix(e.words, " of silence") // Nix 2.34 says no more of either limit of time
		if e.words != "" && (strings.HasSuffix(said, e.words) || e.byPolicy && strings.HasSuffix(said, alike)) {
			whose = e.whose()
		}
	}
	result.ErrorMsg += " (" + whose + ")"
}

var terminalColours = regexp.MustCompile("\x1b\\[[0-9;]*m")

// plainText is what a daemon says without the colours that it puts in.
func plainText(text string) string { return terminalColours.ReplaceAllString(text, "") }
