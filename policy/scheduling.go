package policy

import "time"

// Scheduling says how builds wait, where they run, and what happens when a builder
// fails. Load fills in the defaults.
type Scheduling struct {
	// SoftFeatures are wishes: a build that requires one may run on a builder that
	// lacks it, and prefers those that have it.
	SoftFeatures []string
	// Alone are features whose builds run with no other build on their builder.
	Alone []string
	// Needs are the rules by which builds need resources of builders. All that
	// apply count; of two for one resource, the larger.
	Needs []Need
	// StartupGrace is for how long after the start of the proxy builds wait for
	// builders that are down, instead of failing.
	StartupGrace time.Duration
	// StarveAfter is the age from which a build that waits goes before younger ones,
	// whatever their class and principal.
	StarveAfter time.Duration
	// Attempts is on how many builders a build is tried at most.
	Attempts int
	// HungAfter is for how long a builder may owe every sign of life before a
	// second copy of its builds is begun elsewhere.
	HungAfter time.Duration
	// Linger is for how long a build goes on whose last client was lost without
	// saying goodbye; 0 ends it at once.
	Linger time.Duration
	// FeedAhead lets large uploads flow on to the builder that will probably need
	// them; FeedAheadLimit bounds what is on its way to one builder, in bytes.
	FeedAhead      bool
	FeedAheadLimit int64
	// History is the file to which finished builds are appended, a line of JSON
	// each, for nixbastion simulate; "" for none.
	History string
}

// Need is a rule: builds that it applies to need some of a builder's resources. Of
// Feature, Name and Attribute those that are set must all apply.
type Need struct {
	// Feature is one that the build requires.
	Feature string
	// Name is a pattern of the derivation's name, without its hash and .drv, in
	// which "*" stands for any text.
	Name string
	// Attribute is one of the derivation's environment, with Value if that is set.
	Attribute string
	Value     string
	// Resources are the amounts needed, each more than 0.
	Resources map[string]int64
	// AmountOf is a resource of which as much is needed as Attribute says, a whole
	// number; "" for none.
	AmountOf string
}

// BuildLimit bounds builds. Of Principal, System and Name those that are set must
// all apply. For each limit the first rule that applies and sets it counts.
type BuildLimit struct {
	Principal string
	System    string
	// Name is a pattern as in Need.
	Name string
	// MaxSilent and Timeout end a build that prints nothing for so long, and one
	// that takes so long. 0 says nothing.
	MaxSilent, Timeout time.Duration
	// MaxLogSize ends a build that prints more, in bytes. 0 says nothing.
	MaxLogSize int64
	// Cores is how many the build is told to use (NIX_BUILD_CORES). 0 says nothing.
	Cores int
}

// LoadLimits say when a builder gets no builds since it is busy otherwise. A threshold
// of 0 is none.
type LoadLimits struct {
	// Off: the builder's load is not looked at.
	Off bool
	// Every is how often it is looked at.
	Every time.Duration
	// MaxLoad is of the load average per core that is not from our own builds.
	MaxLoad float64
	// MaxPressure is of the share of time, in percent, in which somebody waits for
	// memory or the disk (PSI, some, 10 s).
	MaxPressure float64
	// MinMemory is available memory and MinDisk free space of the store, in bytes.
	MinMemory, MinDisk int64
}

// Wake says how a builder is brought up when it is needed, and down when it is
// not. Commands are run without a shell, as the proxy's account.
type Wake struct {
	// Command brings the builder up; none: it is always there.
	Command []string
	// Timeout is how long the builder may take until it can be reached.
	Timeout time.Duration
	// Sleep puts the builder to sleep after After without a build; none: never.
	Sleep []string
	After time.Duration
}

// Class is how urgent the builds of a principal are. The zero value is the usual
// one.
type Class int

const (
	// ClassNormal is the usual one.
	ClassNormal Class = iota
	// ClassInteractive goes before the others.
	ClassInteractive
	// ClassBulk goes behind the others.
	ClassBulk
)

// Defaults of scheduling.
const (
	defaultStartupGrace   = 30 * time.Second
	defaultStarveAfter    = 15 * time.Minute
	defaultAttempts       = 4
	defaultHungAfter      = 30 * time.Second
	defaultLinger         = time.Minute
	defaultFeedAheadLimit = 4 << 30
	defaultLoadEvery      = 5 * time.Second
	defaultMaxLoad        = 0 // none: our own builds, and those of a second builder on one kernel, make load, too
	defaultMinDisk        = 0 // none: a builder that collects its garbage by itself (min-free) does so when it builds
	defaultWakeTimeout    = 5 * time.Minute
	defaultSleepAfter     = 15 * time.Minute
)

func defaultScheduling() Scheduling {
	return Scheduling{
		StartupGrace: defaultStartupGrace, StarveAfter: defaultStarveAfter, Attempts: defaultAttempts,
		HungAfter: defaultHungAfter, Linger: defaultLinger, FeedAhead: true, FeedAheadLimit: defaultFeedAheadLimit,
	}
}

func defaultLoad() LoadLimits {
	return LoadLimits{Every: defaultLoadEvery, MaxLoad: defaultMaxLoad, MinDisk: defaultMinDisk}
}
