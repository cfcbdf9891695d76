package main

import "io"

type statusCmd struct {
	askFlags
	watchFlags
}

// Run prints builders, slots and queue of the running proxy, of all domains.
func (c statusCmd) Run(out io.Writer) error { return c.askAgain(out, c.watchFlags, "status") }

type queueCmd struct {
	askFlags
	watchFlags
}

// Run prints what waits for a builder, in order.
func (c queueCmd) Run(out io.Writer) error { return c.askAgain(out, c.watchFlags, "queue") }

type whoCmd struct {
	askFlags
	watchFlags
}

// Run prints who is connected.
func (c whoCmd) Run(out io.Writer) error { return c.askAgain(out, c.watchFlags, "who") }
