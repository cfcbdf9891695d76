package main

import (
	"io"
	"net/http"
	"strconv"
)

type buildsCmd struct {
	askFlags
	watchFlags
	Principal string `help:"Only those that this principal asked for."`
	Builder   string `help:"Only those that run, ran or failed on this builder."`
	System    string `help:"Only those of this system."`
	Failed    bool   `help:"Only those that ended without outputs, and not since their clients left."`
	Since     string `help:"Only those under way, and those that ended no longer ago, as 30m, 12h or 7d." placeholder:"DURATION"`
	Limit     *int   `help:"How many are listed of those that have ended (20 unless given); 0 is all." placeholder:"N"`
}

// Run prints builds under way, and how the last ones ended.
func (c buildsCmd) Run(out io.Writer) error {
	var words []string
	for _, o := range []struct{ name, value string }{
		{"principal", c.Principal}, {"builder", c.Builder}, {"system", c.System}, {"since", c.Since},
	} {
		if o.value != "" {
			words = append(words, "--"+o.name+"="+o.value)
		}
	}
	if c.Failed {
		words = append(words, "--failed")
	}
	if c.Limit != nil {
		words = append(words, "--limit="+strconv.Itoa(*c.Limit))
	}
	return c.askAgain(out, c.watchFlags, "builds", words...)
}

type logCmd struct {
	askFlags
	Follow bool   `help:"Go on until the build ends." short:"f"`
	Build  string `arg:"" help:"The build's id, the begin of its derivation's hash, its name or its path."`
}

// Run prints the log of a build.
func (c logCmd) Run(out io.Writer) error {
	words := []string{c.Build}
	if c.Follow {
		words = append(words, "--follow")
	}
	return c.ask(out, "log", words...)
}

type killCmd struct {
	changeFlags
	Build  string `arg:"" help:"The build's id, the begin of its derivation's hash, its name or its path."`
	Reason string `help:"Why, for people: the clients read it."`
}

// Run ends a build that waits or runs.
func (c killCmd) Run(out io.Writer) error {
	socket, err := c.socket()
	if err != nil {
		return err
	}
	words := []string{c.Build}
	if c.Reason != "" {
		words = append(words, c.Reason)
	}
	return request(out, socket, http.MethodPost, "kill", words...)
}
