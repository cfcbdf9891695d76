package main

import "io"

type statusCmd struct {
	askFlags
}

// Run prints builders, slots and queue of the running proxy, of all domains.
func (c statusCmd) Run(out io.Writer) error { return c.ask(out, "status") }
