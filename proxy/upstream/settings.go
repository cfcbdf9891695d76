package upstream

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
)

// Settings are what a builder's Nix is told of the builds of a session. The zero
// value of each leaves the builder's own.
//
// They are the session's from its start and never change: since 2.20 a nix-daemon
// --stdio in front of the machine's daemon tells that daemon its own settings once,
// when it starts, and nothing of what it hears later. So they are given to it on the
// command line, and idle sessions wait for users who want the same. What was set
// cannot reach anybody else. An account whose key runs a fixed command is told
// nothing by that.
type Settings struct {
	// MaxSilent and Timeout end a build that prints nothing for so long, and one
	// that takes so long; they are rounded up to seconds.
	MaxSilent, Timeout time.Duration
	// MaxLogSize ends a build that prints more, in bytes.
	MaxLogSize uint64
	// Cores is how many cores a build is told to use (NIX_BUILD_CORES).
	Cores int
}

// setting is one as Nix's configuration has it.
type setting struct {
	name  string
	value uint64
}

// list are the settings that are to be told.
func (s Settings) list() []setting {
	var list []setting
	for _, one := range []setting{
		{"cores", uint64(max(s.Cores, 0))},
		{"max-silent-time", uint64(seconds(s.MaxSilent))},
		{"timeout", uint64(seconds(s.Timeout))},
		{"max-build-log-size", s.MaxLogSize},
	} {
		if one.value > 0 {
			list = append(list, one)
		}
	}
	return list
}

func seconds(d time.Duration) uint32 {
	rounded := (max(d, 0) + time.Second - 1) / time.Second
	return uint32(min(rounded, math.MaxUint32))
}

// onCommand adds the settings to a command, if that is one of Nix's programs: a
// wrapper of the admin's may take no more arguments.
func (s Settings) onCommand(command string) string {
	plain := strings.HasSuffix(command, " "+daemonProgram.arguments) || strings.HasSuffix(command, " "+storeProgram.arguments)
	if !plain {
		return command
	}
	var line strings.Builder
	line.WriteString(command)
	for _, one := range s.list() {
		fmt.Fprintf(&line, " --option %s %d", one.name, one.value)
	}
	return line.String()
}

// sinceOwnSession is the version from which a nix-daemon --stdio has a session of
// its own with the machine's daemon. Before it handed bytes on.
const sinceOwnSession worker.Version = 1<<8 | 37

// tell tells a daemon that hears us itself, and not its command line. It takes all
// settings at once, so that without Cores the builder's own would be lost, and is
// told nothing: we end what takes too long in any case.
func (s Settings) tell(ctx context.Context, c *worker.Client, direct bool) error {
	if s.Cores <= 0 || !direct && c.Version() >= sinceOwnSession {
		return nil
	}
	opts := nix.ClientOptions{
		Verbosity: uint32(nix.LevelInfo), MaxBuildJobs: 1, BuildCores: uint32(min(s.Cores, math.MaxUint32)), MaxSilentTime: seconds(s.MaxSilent),
		Overrides: map[string]string{},
	}
	for _, one := range s.list() {
		if one.name == "timeout" || one.name == "max-build-log-size" {
			opts.Overrides[one.name] = strconv.FormatUint(one.value, 10)
		}
	}
	return c.SetOptions(ctx, opts)
}

// limits are what the serve protocol says with each build.
func (s Settings) limits() nix.BuildLimits {
	return nix.BuildLimits{MaxSilent: s.MaxSilent, Timeout: s.Timeout, MaxLogSize: s.MaxLogSize}
}

type settingsKey struct{}

// withSettings says for which settings a session is wanted. They go with the context,
// like its time limit, to wherever one is looked for, waited for and opened.
func withSettings(ctx context.Context, s Settings) context.Context {
	if s == (Settings{}) {
		return ctx
	}
	return context.WithValue(ctx, settingsKey{}, s)
}

func settingsOf(ctx context.Context) Settings {
	s, _ := ctx.Value(settingsKey{}).(Settings)
	return s
}

// GetWith is Get for a session whose builds have settings.
func (p *Pool) GetWith(ctx context.Context, name string, settings Settings) (*Session, error) {
	return p.Get(withSettings(ctx, settings), name)
}

// endStranger ends the idle session that has waited longest of those with other
// settings, so that there is room for one with these. It reports whether there was
// one. The caller holds mu.
func (b *builder) endStranger(settings Settings) bool {
	for _, d := range b.idle {
		if d.settings != settings {
			b.removeIdle(d)
			d.process.Close()
			return true
		}
	}
	return false
}
