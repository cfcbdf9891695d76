package main

import "io"

type whyCmd struct {
	askFlags
	What []string `arg:"" help:"A derivation, or a system and features." name:"what"`
}

// Run prints where a build would go now, in each domain, and why.
func (c whyCmd) Run(out io.Writer) error { return c.ask(out, "why", c.What...) }
