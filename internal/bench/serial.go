package main

import (
	"crypto/rand"
	"fmt"
)

// A serial gives names that no run had before, so that no cache knows what is
// called so. It is not safe for concurrent use.
type serial struct {
	prefix string
	n      *int
}

func newSerial() serial { return serial{prefix: rand.Text()[:8], n: new(int)} }

// next returns a name of letters and digits that begins with a letter.
func (s serial) next() string {
	*s.n++
	return fmt.Sprintf("b%s%d", s.prefix, *s.n)
}
