package nar

import (
	"fmt"
	"math"
)

// SyntaxError says what is wrong with an archive and where.
type SyntaxError struct {
	// Offset is in bytes from the start of the archive.
	Offset  uint64
	Message string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("bad archive: %s at byte %d", e.Message, e.Offset)
}

// Visitor is told what an archive holds. Either function may be nil.
type Visitor struct {
	// Node is called for each node before its contents or entries.
	Node func(Node)
	// Contents is called with the contents of the last regular file in pieces,
	// which are valid during the call.
	Contents func(piece []byte)
}

// Validator checks one archive that is written to it in pieces of any size. It
// keeps the last name of each open directory and at most one name or symlink
// target, and refuses exactly what Nix refuses.
type Validator struct {
	visitor Visitor

	next step   // takes the awaited unit; nil behind the end
	unit int    // length of the awaited unit
	rest uint64 // the least length of the archive from the awaited unit on

	contents uint64 // bytes of the current file that come before the unit
	part     []byte // beginning of a unit that arrived in pieces
	offset   uint64 // bytes consumed

	depth      int              // of the current node, 0 for the root
	last       [MaxDepth][]byte // by depth, the last name in a directory
	text       int              // length of the awaited name or target
	executable bool             // what the current file's header said
	err        error
}

// NewValidator returns a validator at the start of an archive.
func NewValidator(visitor Visitor) *Validator {
	v := &Validator{visitor: visitor}
	v.await(len(unitArchive), len(unitArchive)+minNode, (*Validator).stepArchive)
	return v
}

// await says which unit comes next and the least that the current node needs
// from there to its end.
func (v *Validator) await(unit, rest int, next step) {
	v.unit, v.next = unit, next
	v.rest = uint64(rest + v.depth*minPerLevel)
}

// Done reports whether the archive is complete.
func (v *Validator) Done() bool { return v.next == nil }

// Size returns how many bytes were consumed.
func (v *Validator) Size() uint64 { return v.offset + uint64(len(v.part)) }

// Rest returns a number of bytes that certainly belong to the archive if what
// follows is valid: the most that may be read of a stream without taking away
// what comes behind the archive. It is 0 if and only if the archive is complete.
func (v *Validator) Rest() uint64 { return v.contents + v.rest - uint64(len(v.part)) }

// Write consumes the next piece. It fails with a [SyntaxError] at the first
// violation, also for bytes behind the end, and returns how many bytes were
// consumed before.
func (v *Validator) Write(p []byte) (n int, err error) {
	for n < len(p) && v.err == nil {
		switch {
		case v.contents > 0:
			n += v.takeContents(p[n:])
		case v.next == nil:
			v.fail(&mistake{message: "bytes behind the end"})
		case len(v.part) == 0 && len(p)-n >= v.unit:
			n += v.take(p[n : n+v.unit])
		default:
			n += v.takePart(p[n:])
		}
	}
	return n, v.err
}

func (v *Validator) takeContents(p []byte) int {
	n := int(min(uint64(len(p)), v.contents, math.MaxInt))
	if v.visitor.Contents != nil {
		v.visitor.Contents(p[:n])
	}
	v.contents -= uint64(n)
	v.offset += uint64(n)
	return n
}

func (v *Validator) take(unit []byte) int {
	if err := v.next(v, unit); err != nil {
		v.fail(err)
		return 0
	}
	v.offset += uint64(len(unit))
	return len(unit)
}

// takePart collects a unit that is cut by the border of a piece.
func (v *Validator) takePart(p []byte) int {
	n := min(len(p), v.unit-len(v.part))
	v.part = append(v.part, p[:n]...)
	if len(v.part) < v.unit {
		return n
	}
	unit := v.part
	v.part = v.part[:0]
	v.take(unit)
	return n
}

func (v *Validator) fail(err error) {
	m := err.(*mistake)
	v.err = &SyntaxError{Offset: v.offset + uint64(m.at), Message: m.message}
}

// meet tells the visitor of the current node.
func (v *Validator) meet(n Node) {
	if v.visitor.Node == nil {
		return
	}
	n.Path = v.path()
	v.visitor.Node(n)
}

func (v *Validator) path() string {
	var p []byte
	for d, name := range v.last[:v.depth] {
		if d > 0 {
			p = append(p, '/')
		}
		p = append(p, name...)
	}
	return string(p)
}
