package main

import (
	"math"
	"slices"
)

// A spread is the middle and the ends of some numbers; NaN where there are none.
type spread struct {
	n           int
	median      float64
	least, most float64
}

func spreadOf(numbers []float64) spread {
	if len(numbers) == 0 {
		return spread{median: math.NaN(), least: math.NaN(), most: math.NaN()}
	}
	sorted := slices.Sorted(slices.Values(numbers))
	n := len(sorted)
	return spread{n: n, median: (sorted[(n-1)/2] + sorted[n/2]) / 2, least: sorted[0], most: sorted[n-1]}
}

// values takes one number out of each sample.
func values(samples []sample, of func(sample) float64) []float64 {
	numbers := make([]float64, len(samples))
	for i, s := range samples {
		numbers[i] = of(s)
	}
	return numbers
}

func wall(s sample) float64 { return s.wall.Seconds() }

// cpuRatio is the median CPU time of the middle of a way over that of the builder
// in another, over the rounds in which both took part.
func cpuRatio(way, other []sample) float64 {
	a := spreadOf(values(inRoundsOf(way, other), func(s sample) float64 { return s.middle.Seconds() })).median
	b := spreadOf(values(inRoundsOf(other, way), func(s sample) float64 { return s.builder.Seconds() })).median
	return a / b
}

// ratio is the median time of a way over that of another, both over the rounds
// in which both took part. It is NaN if there are none.
func ratio(way, other []sample) float64 {
	a := spreadOf(values(inRoundsOf(way, other), wall)).median
	b := spreadOf(values(inRoundsOf(other, way), wall)).median
	return a / b
}

// inRoundsOf are the samples whose round the others have too.
func inRoundsOf(samples, others []sample) []sample {
	var common []sample
	for _, s := range samples {
		if slices.ContainsFunc(others, func(o sample) bool { return o.round == s.round }) {
			common = append(common, s)
		}
	}
	return common
}
