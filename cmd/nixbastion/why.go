package main

import "io"

type whyCmd struct {
	askFlags
	watchFlags
	What []string `arg:"" help:"A derivation, or a system and features." name:"what"`
}

// Run prints where a build would go now, in each domain, and why.
func (c whyCmd) Run(out io.Writer) error { return c.askAgain(out, c.watchFlags, "why", c.What...) }
