package policy

import (
	"time"

	"gopkg.in/yaml.v3"
)

const (
	maxAttempts = 100
	// longestWait bounds what builds and builders are given, so that a slip of the pen
	// does not keep them for good.
	longestWait = 24 * time.Hour
	// leastFeedAhead is below what is worth feeding ahead.
	leastFeedAhead = 1 << 20
)

// scheduling reads how builds wait, where they run, and what happens when a builder
// fails.
func (d *decoder) scheduling(n *yaml.Node) {
	s := &d.pol.Scheduling
	d.mapping(n, "scheduling.",
		setting{"soft_features", func(n *yaml.Node) { s.SoftFeatures = d.texts(n, checkWord) }},
		setting{"alone", func(n *yaml.Node) { s.Alone = d.texts(n, checkWord) }},
		setting{"needs", func(n *yaml.Node) { d.rules(n, d.need) }},
		setting{"startup_grace", func(n *yaml.Node) { d.durationInto(&s.StartupGrace, n, 0, longestWait) }},
		setting{"starve_after", func(n *yaml.Node) { d.durationInto(&s.StarveAfter, n, time.Second, longestWait) }},
		setting{"attempts", func(n *yaml.Node) { s.Attempts, _ = d.count(n, 1, maxAttempts) }},
		setting{"hung_after", func(n *yaml.Node) { d.durationInto(&s.HungAfter, n, time.Second, longestWait) }},
		setting{"linger", func(n *yaml.Node) { d.durationInto(&s.Linger, n, 0, longestWait) }},
		setting{"feed_ahead", func(n *yaml.Node) { s.FeedAhead, _ = d.truth(n) }},
		setting{"feed_ahead_limit", func(n *yaml.Node) { d.sizeInto(&s.FeedAheadLimit, n, leastFeedAhead) }},
		setting{"history", func(n *yaml.Node) { s.History, _ = d.path(n) }},
	)
}

// classes are the words of the policy file.
var classes = map[string]Class{"interactive": ClassInteractive, "normal": ClassNormal, "bulk": ClassBulk}

// String is the word of the policy file.
func (c Class) String() string {
	switch c {
	case ClassInteractive:
		return "interactive"
	case ClassBulk:
		return "bulk"
	}
	return "normal"
}

// maxWeight bounds weights: whoever should get more than a thousand times as much
// has a class.
const maxWeight = 1000

func (d *decoder) weight(n *yaml.Node) float64 {
	weight, _ := d.measure(n, 0.001, maxWeight, "1 is the usual weight, 2 gets twice as much")
	return weight
}
