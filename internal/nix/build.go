package nix

import (
	"fmt"
	"time"
)

// BuildMode says what a build is for. Its numbers are those of the protocols.
type BuildMode uint8

// The build modes.
const (
	BuildNormal BuildMode = iota
	BuildRepair
	BuildCheck
)

// ParseBuildMode refuses numbers that name no mode.
func ParseBuildMode(n uint8) (BuildMode, error) {
	if n > uint8(BuildCheck) {
		return 0, fmt.Errorf("unknown build mode %d", n)
	}
	return BuildMode(n), nil
}

// BuildStatus is how a build ended. Its numbers are those of the protocols.
type BuildStatus uint8

// The statuses. HashMismatch is written by the daemons of Nix 2.32 and 2.33
// alone and kills newer clients: the codec sends it as OutputRejected.
const (
	StatusBuilt                  BuildStatus = 0
	StatusSubstituted            BuildStatus = 1
	StatusAlreadyValid           BuildStatus = 2
	StatusPermanentFailure       BuildStatus = 3
	StatusInputRejected          BuildStatus = 4
	StatusOutputRejected         BuildStatus = 5
	StatusTransientFailure       BuildStatus = 6
	StatusCachedFailure          BuildStatus = 7
	StatusTimedOut               BuildStatus = 8
	StatusMiscFailure            BuildStatus = 9
	StatusDependencyFailed       BuildStatus = 10
	StatusLogLimitExceeded       BuildStatus = 11
	StatusNotDeterministic       BuildStatus = 12
	StatusResolvesToAlreadyValid BuildStatus = 13
	StatusNoSubstituters         BuildStatus = 14
	StatusHashMismatch           BuildStatus = 15
)

var statusNames = [...]string{
	"Built", "Substituted", "AlreadyValid", "PermanentFailure", "InputRejected", "OutputRejected",
	"TransientFailure", "CachedFailure", "TimedOut", "MiscFailure", "DependencyFailed",
	"LogLimitExceeded", "NotDeterministic", "ResolvesToAlreadyValid", "NoSubstituters", "HashMismatch",
}

// String returns Nix's name of the status.
func (s BuildStatus) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("BuildStatus(%d)", uint8(s))
}

// Success reports whether the outputs exist after a build with this status.
func (s BuildStatus) Success() bool {
	switch s {
	case StatusBuilt, StatusSubstituted, StatusAlreadyValid, StatusResolvesToAlreadyValid:
		return true
	}
	return false
}

// BuiltOutput is one output of a successful build.
type BuiltOutput struct {
	Name string
	// DrvHash is the digest in an old DrvOutput id ("sha256:<64 hex>"), "" if
	// the peer names outputs by derivation path. Ids of different flows differ,
	// so never compare them.
	DrvHash string
	Path    StorePath
	// Sigs are signatures of the realisation, as the peer wrote them.
	Sigs []string
}

// BuildResult is how a build ended. A failed build is a result, not an error.
type BuildResult struct {
	Status BuildStatus
	// ErrorMsg is for people and may have several lines; "" on success.
	ErrorMsg           string
	TimesBuilt         uint32
	IsNonDeterministic bool
	// StartTime and StopTime are seconds since 1970, 0 if the peer did not say.
	StartTime, StopTime int64
	// CPUUser and CPUSystem are microseconds, nil if unknown.
	CPUUser, CPUSystem *int64
	// Outputs is filled on success, sorted by name.
	Outputs []BuiltOutput
}

// Failure returns a failed result with a text for the user.
func Failure(status BuildStatus, format string, args ...any) *BuildResult {
	return &BuildResult{Status: status, ErrorMsg: fmt.Sprintf(format, args...)}
}

// KeyedBuildResult is the result for one of several targets.
type KeyedBuildResult struct {
	Target DerivedPath
	Result *BuildResult
}

// BuildLimits are what a client asks of the builds that follow. ssh:// clients
// send them with each build (serve protocol, BuildOptions); ssh-ng:// has no such
// message. The zero value asks for nothing.
type BuildLimits struct {
	// MaxSilent ends a build that logs nothing for so long, Timeout one that
	// takes longer; 0 for none. The result is StatusTimedOut.
	MaxSilent, Timeout time.Duration
	// MaxLogSize ends a build whose log has more bytes; 0 for none. The result
	// is StatusLogLimitExceeded.
	MaxLogSize uint64
}
