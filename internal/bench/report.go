package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A report is what is printed in the end.
type report struct {
	about   []string
	took    time.Duration
	results []*result
	columns []string
}

// noisy is how much others may use of the machine, in cores, before a number is
// marked.
const noisy = 0.25

// String is the whole report for a person.
func (r report) String() string {
	var text strings.Builder
	for _, line := range r.about {
		fmt.Fprintln(&text, line)
	}
	fmt.Fprintln(&text)
	r.writeTable(&text)
	r.writeReasons(&text)
	r.writeGoals(&text)
	r.writeLegend(&text)
	return text.String()
}

func (r report) writeTable(text *strings.Builder) {
	w := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "bench\tclient\tin\t"+strings.Join(r.columns, "\t"))
	for _, res := range r.results {
		res.writeRow(w, r.columns, res.bench.title, res.client, "s, x direct", res.timeCell)
		if res.bench.bytes > 0 || res.bench.paths != nil {
			res.writeRow(w, r.columns, "", "", res.rateUnit(), res.rateCell)
		}
		res.writeRow(w, r.columns, "", "", "CPU s of client, middle, builder", cpuCell)
		res.writeRow(w, r.columns, "", "", "RssAnon MiB of the middle", memoryCell)
	}
	w.Flush()
}

func (res *result) writeRow(w *tabwriter.Writer, columns []string, title, client, unit string, cell func(name string, s []sample) string) {
	cells := []string{title, client, unit}
	for _, name := range columns {
		samples := res.samples[name]
		if len(samples) == 0 || res.reasons[name] != "" {
			cells = append(cells, "-")
			continue
		}
		cells = append(cells, cell(name, samples))
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// timeCell is the median with its ends, and the ratio to direct.
func (res *result) timeCell(name string, samples []sample) string {
	s := spreadOf(values(samples, wall))
	cell := fmt.Sprintf("%s [%s .. %s]", seconds(s.median), seconds(s.least), seconds(s.most))
	if to := res.samples[direct]; name != direct && len(to) > 0 {
		cell += fmt.Sprintf(" %.2fx", ratio(samples, to))
	}
	if spreadOf(values(samples, foreign)).median > noisy {
		cell += " ~"
	}
	return cell
}

func foreign(s sample) float64 { return s.foreign }

func (res *result) rateUnit() string {
	if res.bench.bytes > 0 {
		return "MB/s"
	}
	return "paths/s"
}

func (res *result) rateCell(_ string, samples []sample) string {
	amount := float64(res.bench.bytes) / 1e6
	if res.bench.paths != nil {
		amount = float64(res.bench.paths(res.client))
	}
	return fmt.Sprintf("%.0f", amount/spreadOf(values(samples, wall)).median)
}

func cpuCell(name string, samples []sample) string {
	median := func(of func(sample) float64) string { return seconds(spreadOf(values(samples, of)).median) }
	middle := "-"
	if name != direct {
		middle = median(func(s sample) float64 { return s.middle.Seconds() })
	}
	return fmt.Sprintf("%s, %s, %s", median(func(s sample) float64 { return s.client.Seconds() }), middle,
		median(func(s sample) float64 { return s.builder.Seconds() }))
}

// memoryCell is the largest of all runs: a peak has no median.
func memoryCell(name string, samples []sample) string {
	if name == direct {
		return "-"
	}
	return fmt.Sprintf("%.0f", spreadOf(values(samples, func(s sample) float64 { return float64(s.memory) })).most/(1<<20))
}

// seconds has three digits that count.
func seconds(s float64) string {
	switch {
	case s < 1:
		return fmt.Sprintf("%.3f", s)
	case s < 10:
		return fmt.Sprintf("%.2f", s)
	default:
		return fmt.Sprintf("%.1f", s)
	}
}

func (r report) writeReasons(text *strings.Builder) {
	for _, res := range r.results {
		for _, name := range r.columns {
			if why := res.reasons[name]; why != "" {
				fmt.Fprintf(text, "\n- %s, client %s, %s: %s\n", res.bench.title, res.client, name, strings.ReplaceAll(why, "\n", "\n    "))
			}
		}
	}
}

func (r report) writeGoals(text *strings.Builder) {
	w := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	lines := 0
	for _, res := range r.results {
		for _, verdict := range res.verdicts() {
			if lines++; lines == 1 {
				fmt.Fprintln(w, "\ntarget of the proxy\tclient\twanted\tmeasured\t")
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", res.bench.title, res.client, verdict)
		}
	}
	w.Flush()
}

// verdicts compares with the bench's goals: "wanted, measured, met" for each for
// which there is something to compare.
func (res *result) verdicts() []string {
	var all []string
	for _, g := range res.bench.goals {
		through, other := res.samples[proxy], res.samples[g.other()]
		if res.reasons[proxy] == "" && res.reasons[g.other()] == "" && len(through) > 0 && len(other) > 0 {
			all = append(all, g.verdict(through, other))
		}
	}
	return all
}

func (g goal) verdict(through, other []sample) string {
	times := ratio(through, other)
	switch {
	case g.rate > 0:
		return fmt.Sprintf("rate >= %.1fx %s\t%.2fx\t%s", g.rate, g.other(), 1/times, met(1/times >= g.rate))
	case g.cpu > 0:
		cpu := cpuRatio(through, other)
		return fmt.Sprintf("CPU <= %.2fx builder, %s\t%.2fx\t%s", g.cpu, g.other(), cpu, met(cpu <= g.cpu))
	}
	return fmt.Sprintf("time <= %.2fx %s\t%.2fx\t%s", g.limit, g.other(), times, met(times <= g.limit))
}

func met(yes bool) string {
	if yes {
		return "met"
	}
	return "not met"
}

func (r report) writeLegend(text *strings.Builder) {
	fmt.Fprintf(text, "\nTimes are medians [least .. most]; x is the ratio of medians to direct, over the rounds in which both ran. RssAnon is the largest sum over all\n"+
		"processes of the host between. ~ marks runs beside which others used more than %.2f cores. Taken in %s.\n", noisy, r.took.Round(time.Second))
	var named []string
	for _, res := range r.results {
		if !slices.Contains(named, res.bench.name) {
			named = append(named, res.bench.name)
			fmt.Fprintf(text, "%s: %s; n = %s.\n", res.bench.title, res.bench.what, res.counts(r.columns))
		}
	}
}

// counts is how many runs each way had.
func (res *result) counts(columns []string) string {
	var counts []string
	for _, name := range columns {
		counts = append(counts, fmt.Sprint(len(res.samples[name])))
	}
	return strings.Join(counts, ", ")
}

// failure is an error if a way that must do everything did not.
func (r report) failure() error {
	for _, res := range r.results {
		for _, name := range []string{direct, proxy} {
			if why := res.reasons[name]; why != "" {
				return fmt.Errorf("%s with client %s failed over %s", res.bench.title, res.client, name)
			}
		}
	}
	return nil
}
