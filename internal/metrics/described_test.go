package metrics

import (
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// description is a metric as its collector describes it.
type description struct {
	name, kind, help string
	labels           []string
}

// descText is how the library prints a description, which has no other way to read it.
var descText = regexp.MustCompile(`^Desc\{fqName: "([^"]*)", help: "([^"]*)", unit: "[^"]*", constLabels: \{([^}]*)\}, variableLabels: \{([^}]*)\}`)

// exported are all metrics of ours, which are always the same.
var exported = sync.OnceValue(func() []description { return described(New("test")) })

// described are all metrics of ours, by name, whether they have series or not.
func described(m *Metrics) []description {
	ch := make(chan *prometheus.Desc)
	go func() {
		defer close(ch)
		m.registry.Describe(ch)
	}()
	histograms := describedBy(m.buildDuration, m.queueWait, m.operations)
	var all []description
	for desc := range ch {
		parts := descText.FindStringSubmatch(desc.String())
		if parts == nil {
			panic("unknown form: " + desc.String())
		}
		d := description{name: parts[1], help: parts[2], kind: "gauge"}
		if !strings.HasPrefix(d.name, namespace+"_") {
			continue
		}
		for _, pair := range strings.Split(parts[3], ",") {
			if name, _, ok := strings.Cut(pair, "="); ok {
				d.labels = append(d.labels, name)
			}
		}
		if parts[4] != "" {
			d.labels = append(d.labels, strings.Split(parts[4], ",")...)
		}
		switch {
		case strings.HasSuffix(d.name, "_total"):
			d.kind = "counter"
		case slices.Contains(histograms, d.name):
			d.kind = "histogram"
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b description) int { return strings.Compare(a.name, b.name) })
	return all
}

func describedBy(vectors ...prometheus.Collector) []string {
	var names []string
	for _, v := range vectors {
		ch := make(chan *prometheus.Desc, 1)
		v.Describe(ch)
		names = append(names, descText.FindStringSubmatch((<-ch).String())[1])
	}
	return names
}
