package policy

import (
	"time"

	"gopkg.in/yaml.v3"
)

const (
	leastLoadEvery = time.Second
	maxLoadEvery   = time.Hour
	maxLoadPerCore = 1000
)

// load reads thresholds over those that count otherwise. The path is where in the
// schema they stand. The word off is for those who do not want their builders looked
// at; any threshold of a builder's own means that it is looked at.
func (d *decoder) load(n *yaml.Node, path string, l LoadLimits) LoadLimits {
	if n.Kind == yaml.ScalarNode {
		l.Off = d.off(n, "thresholds", "write {max_load: 2, min_disk: 1GiB}, or off")
		return l
	}
	l.Off = false
	d.mapping(n, path,
		setting{"every", func(n *yaml.Node) { d.durationInto(&l.Every, n, leastLoadEvery, maxLoadEvery) }},
		setting{"max_load", func(n *yaml.Node) {
			l.MaxLoad, _ = d.measure(n, 0, maxLoadPerCore, "2 is usual, for each core; 0 is no threshold")
		}},
		setting{"max_pressure", func(n *yaml.Node) {
			l.MaxPressure, _ = d.measure(n, 0, 100, "it is a share of time in percent; 0 is no threshold")
		}},
		setting{"min_memory", func(n *yaml.Node) { d.sizeInto(&l.MinMemory, n, 0) }},
		setting{"min_disk", func(n *yaml.Node) { d.sizeInto(&l.MinDisk, n, 0) }},
	)
	return l
}
