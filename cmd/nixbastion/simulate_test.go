package main

import (
	"strings"
	"testing"

	"nixbastion/internal/simulate"
	"nixbastion/internal/tracefile"
)

// Guards against a help whose examples the command itself refuses.
func TestTheLinesInTheHelpOfSimulateAreRead(t *testing.T) {
	var lines []string
	for line := range strings.Lines(simulateCmd{}.Help()) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "{") {
			lines = append([]string{line}, lines...) // the fleet stands last
		}
	}
	if len(lines) != 2 {
		t.Fatalf("%d lines of JSON are in the help, expected a fleet and a build", len(lines))
	}
	text := strings.Join(lines, "\n")
	trace, err := simulate.Read([]*tracefile.Reader{tracefile.NewReader("help", strings.NewReader(text))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(trace.Machines) != 1 || len(trace.Builds) != 1 || trace.Builds[0].Name != "hello-2.12" {
		t.Errorf("the help's lines are read as %+v", trace)
	}
}
