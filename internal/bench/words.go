package main

import (
	"fmt"
	"slices"
	"strings"
)

// words takes a list of the command line apart; "" is everything there is.
func words(kind, list string, known []string) ([]string, error) {
	if list == "" {
		return known, nil
	}
	chosen := strings.Split(list, ",")
	for _, w := range chosen {
		if !slices.Contains(known, w) {
			return nil, fmt.Errorf("no %s is called %q; there are %s", kind, w, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}
