package policy

import (
	"strings"
	"time"
	"unicode"

	"gopkg.in/yaml.v3"
)

const (
	maxCommandWords = 100
	maxWakeTimeout  = 24 * time.Hour
	maxSleepAfter   = 30 * 24 * time.Hour
)

// wake reads how a builder is brought up.
func (d *decoder) wake(n *yaml.Node, w *Wake) {
	w.Timeout = defaultWakeTimeout
	values := d.mapping(n, "builders.wake.",
		setting{"command", func(n *yaml.Node) { w.Command = d.command(n) }},
		setting{"timeout", func(n *yaml.Node) { d.durationInto(&w.Timeout, n, time.Second, maxWakeTimeout) }},
	)
	d.require(n, values, "wake", [2]string{"command", `say what brings the builder up: command: [wakeonlan, "52:54:00:12:34:56"]`})
}

// sleep reads how a builder is put to sleep.
func (d *decoder) sleep(n *yaml.Node, w *Wake) {
	w.After = defaultSleepAfter
	values := d.mapping(n, "builders.sleep.",
		setting{"command", func(n *yaml.Node) { w.Sleep = d.command(n) }},
		setting{"after", func(n *yaml.Node) { d.durationInto(&w.After, n, time.Second, maxSleepAfter) }},
	)
	d.require(n, values, "sleep", [2]string{"command", "say what puts the builder to sleep: command: [ssh, builder1, systemctl, suspend]"})
}

// wakeful refuses what would put a builder to sleep for good, or the machine that
// the proxy itself runs on.
func (d *decoder) wakeful(values map[string]*yaml.Node, what string, b *Builder) {
	if b.Socket != "" {
		for _, key := range []string{"wake", "sleep"} {
			if at := values[key]; at != nil {
				d.mistake(at, "remove it: this machine is up while the proxy runs", "%s is a socket of this machine and cannot have %q", what, key)
			}
		}
		return
	}
	if at := values["sleep"]; at != nil && values["wake"] == nil {
		d.mistake(at, `say how, as wake: {command: [wakeonlan, "52:54:00:12:34:56"]}; if it comes up by other means, wake: {command: ["true"]} waits for it`,
			"%s has %q without %q: nobody could bring it up again", what, "sleep", "wake")
	}
}

// command reads a program with its arguments. No shell looks at them.
func (d *decoder) command(n *yaml.Node) []string {
	var words []string
	d.list(n, func(item *yaml.Node) {
		if word, ok := d.checkedText(item, checkCommandWord); ok {
			words = append(words, word)
		}
	})
	switch {
	case n.Kind != yaml.SequenceNode:
	case len(n.Content) == 0:
		d.mistake(n, "write the program and its arguments, as [wakeonlan, \"52:54:00:12:34:56\"]", "there is no command")
	case len(n.Content) > maxCommandWords:
		d.mistake(n, "put it into a script", "a command has at most %d words", maxCommandWords)
	case len(words) > 0 && n.Content[0].Value == words[0]:
		d.program(n.Content[0])
	}
	return words
}

// checkCommandWord refuses what no argument has that was meant.
func checkCommandWord(word string) error {
	if len(word) > 4096 || strings.ContainsFunc(word, unicode.IsControl) {
		return refuse("put it into a script", "%s is longer than 4096 bytes or has control characters", quote(word))
	}
	return nil
}

// program refuses a line for a shell, and a program that would be looked for in
// whatever directory the proxy runs.
func (d *decoder) program(n *yaml.Node) {
	switch {
	case strings.ContainsAny(n.Value, " \t"):
		d.mistake(n, "no shell reads it: write each word as an item of the list, as [ssh, builder1, systemctl, suspend]",
			"%s is not the name of a program", quote(n.Value))
	case strings.Contains(n.Value, "/") && n.Value[0] != '/':
		d.mistake(n, "write its full path, or a name alone to look for it in PATH", "%s is a relative path", quote(n.Value))
	}
}
