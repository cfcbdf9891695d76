package nar

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
)

// The archive is cut into units: runs of bytes whose length is known before
// their first byte, such as everything between a directory's "entry" and the
// length of the name. A unit is compared or decoded as a whole by the step that
// awaits it, so that a file costs ten steps and its contents none.
var (
	unitArchive  = literal("nix-archive-1", "(", "type")
	unitEntry    = literal("entry")
	unitName     = literal("(", "name")
	unitNode     = literal("node", "(", "type")
	unitClose    = literal(")")
	unitRegular  = literal("regular")
	unitSymlink  = literal("symlink")
	unitTarget   = literal("target")
	unitContents = literal("contents")
	// Two tokens do not end where their alternatives do, at 16 bytes.
	unitDirectory, unitDirectoryRest   = split(literal("directory"))
	unitExecutable, unitExecutableRest = split(literal("executable", "", "contents"))
)

const (
	lenLen   = 8  // the length before a string
	tokenLen = 16 // a string of 1 to 8 bytes: most tokens, and the shortest name and target

	// The least that can follow when a type is awaited: an empty directory.
	minNode = 24 + tokenLen
	// Behind a name: "node" "(" "type", the type, and the entry's ")".
	minBehindName = 48 + minNode + tokenLen
	// An entry's and its directory's ")".
	minPerLevel = 2 * tokenLen
	// maxContents keeps the length of any NAR below 2^63 bytes.
	maxContents = math.MaxInt64 - 1<<20
)

func literal(tokens ...string) string {
	var b []byte
	for _, t := range tokens {
		b = appendString(b, t)
	}
	return string(b)
}

func split(unit string) (head, rest string) { return unit[:tokenLen], unit[tokenLen:] }

// padding returns how many zero bytes follow n bytes of a string.
func padding(n uint64) uint64 { return -n & 7 }

// A step consumes the unit that the validator awaits and says what comes next.
type step func(v *Validator, unit []byte) error

func (v *Validator) stepArchive(unit []byte) error {
	if err := expect(unit, unitArchive); err != nil {
		return err
	}
	v.awaitType()
	return nil
}

const errType = `expected type "regular", "symlink" or "directory"`

func (v *Validator) awaitType() { v.await(tokenLen, minNode, (*Validator).stepType) }

func (v *Validator) stepType(unit []byte) error {
	switch string(unit) {
	case unitRegular:
		v.executable = false
		v.await(tokenLen, tokenLen+lenLen+tokenLen, (*Validator).stepRegular)
	case unitSymlink:
		v.await(tokenLen+lenLen, tokenLen+tokenLen+tokenLen, (*Validator).stepTarget)
	case unitDirectory:
		v.await(len(unitDirectoryRest), len(unitDirectoryRest)+tokenLen, (*Validator).stepDirectoryRest)
	default:
		return &mistake{message: errType}
	}
	return nil
}

func (v *Validator) stepRegular(unit []byte) error {
	switch string(unit) {
	case unitContents:
		v.awaitSize()
	case unitExecutable:
		v.executable = true
		v.await(len(unitExecutableRest), len(unitExecutableRest)+lenLen+tokenLen, (*Validator).stepExecutableRest)
	default:
		return &mistake{message: `expected "contents" or "executable"`}
	}
	return nil
}

func (v *Validator) stepExecutableRest(unit []byte) error {
	if string(unit) != unitExecutableRest {
		return &mistake{message: `expected "executable", "" and "contents"`}
	}
	v.awaitSize()
	return nil
}

func (v *Validator) awaitSize() { v.await(lenLen, lenLen+tokenLen, (*Validator).stepSize) }

func (v *Validator) stepSize(unit []byte) error {
	size := binary.LittleEndian.Uint64(unit)
	if size > maxContents {
		return &mistake{message: fmt.Sprintf("a file of %d bytes", size)}
	}
	v.meet(Node{Kind: Regular, Executable: v.executable, Size: size})
	v.contents = size
	v.awaitPaddedClose(padding(size))
	return nil
}

func (v *Validator) awaitPaddedClose(pad uint64) {
	v.await(int(pad)+tokenLen, int(pad)+tokenLen, (*Validator).stepPaddedClose)
}

func (v *Validator) stepPaddedClose(unit []byte) error {
	pad := len(unit) - tokenLen
	if err := expectZeros(unit, 0, pad); err != nil {
		return err
	}
	if err := expect(unit[pad:], unitClose); err != nil {
		return shift(err, pad)
	}
	v.closeNode()
	return nil
}

func (v *Validator) stepTarget(unit []byte) error {
	n, err := expectString(unit, unitTarget, MaxTarget, "a symlink's target")
	if err != nil {
		return err
	}
	v.text = n
	total := n + int(padding(uint64(n)))
	v.await(total, total+tokenLen, (*Validator).stepTargetText)
	return nil
}

func (v *Validator) stepTargetText(unit []byte) error {
	text := unit[:v.text]
	if i := bytes.IndexByte(text, 0); i >= 0 {
		return &mistake{at: i, message: "a NUL in a symlink's target"}
	}
	if err := expectZeros(unit, v.text, len(unit)); err != nil {
		return err
	}
	if v.visitor.Node != nil {
		v.meet(Node{Kind: Symlink, Target: string(text)})
	}
	v.awaitPaddedClose(0)
	return nil
}

func (v *Validator) stepDirectoryRest(unit []byte) error {
	if string(unit) != unitDirectoryRest {
		return &mistake{message: errType}
	}
	v.meet(Node{Kind: Directory})
	v.last[v.depth] = v.last[v.depth][:0]
	v.awaitEntry()
	return nil
}

func (v *Validator) awaitEntry() { v.await(tokenLen, tokenLen, (*Validator).stepEntry) }

func (v *Validator) stepEntry(unit []byte) error {
	switch string(unit) {
	case unitClose:
		v.closeNode()
	case unitEntry:
		head := len(unitName) + lenLen
		v.await(head, head+lenLen+minBehindName+tokenLen, (*Validator).stepName)
	default:
		return &mistake{message: `expected "entry" or ")"`}
	}
	return nil
}

func (v *Validator) stepName(unit []byte) error {
	n, err := expectString(unit, unitName, MaxName, "a name")
	if err != nil {
		return err
	}
	v.text = n
	total := n + int(padding(uint64(n)))
	v.await(total, total+minBehindName+tokenLen, (*Validator).stepNameText)
	return nil
}

func (v *Validator) stepNameText(unit []byte) error {
	name := unit[:v.text]
	if err := checkName(name); err != nil {
		return err
	}
	if err := expectZeros(unit, v.text, len(unit)); err != nil {
		return err
	}
	last := &v.last[v.depth]
	if string(name) <= string(*last) {
		return &mistake{message: fmt.Sprintf("name %q does not come after %q", name, *last)}
	}
	*last = append((*last)[:0], name...)
	v.await(len(unitNode), minBehindName+tokenLen, (*Validator).stepNode)
	return nil
}

func checkName(name []byte) error {
	if s := string(name); s == "." || s == ".." {
		return &mistake{message: fmt.Sprintf("name %q", s)}
	}
	for i, c := range name {
		if c == 0 || c == '/' {
			return &mistake{at: i, message: fmt.Sprintf("character %q in a name", c)}
		}
	}
	return nil
}

func (v *Validator) stepNode(unit []byte) error {
	if err := expect(unit, unitNode); err != nil {
		return err
	}
	if v.depth+1 == MaxDepth {
		return &mistake{message: fmt.Sprintf("more than %d nodes inside each other", MaxDepth)}
	}
	v.depth++
	v.awaitType()
	return nil
}

// closeNode is called behind the ")" of a node.
func (v *Validator) closeNode() {
	if v.depth == 0 {
		v.await(0, 0, nil)
		return
	}
	v.depth--
	v.await(tokenLen, 2*tokenLen, (*Validator).stepEntryClose)
}

func (v *Validator) stepEntryClose(unit []byte) error {
	if err := expect(unit, unitClose); err != nil {
		return err
	}
	v.awaitEntry()
	return nil
}

// mistake is a violation at an offset inside its unit.
type mistake struct {
	at      int
	message string
}

func (m *mistake) Error() string { return m.message }

func shift(err error, by int) error {
	m := err.(*mistake)
	return &mistake{at: m.at + by, message: m.message}
}

// expect compares a unit with the whole tokens that it must be and names the
// first that differs.
func expect(unit []byte, want string) error {
	if string(unit) == want {
		return nil
	}
	at := 0
	for {
		size := binary.LittleEndian.Uint64([]byte(want[at : at+lenLen]))
		end := at + lenLen + int(size+padding(size))
		if end >= len(want) || string(unit[at:end]) != want[at:end] {
			return &mistake{at: at, message: fmt.Sprintf("expected %q", want[at+lenLen:at+lenLen+int(size)])}
		}
		at = end
	}
}

// expectString compares a unit that ends in the length of a string to follow.
func expectString(unit []byte, want string, limit uint64, what string) (int, error) {
	if err := expect(unit[:len(want)], want); err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint64(unit[len(want):])
	if n == 0 || n > limit {
		return 0, &mistake{at: len(want), message: fmt.Sprintf("%s of %d bytes", what, n)}
	}
	return int(n), nil
}

func expectZeros(unit []byte, from, to int) error {
	for i := from; i < to; i++ {
		if unit[i] != 0 {
			return &mistake{at: i, message: "padding is not zero"}
		}
	}
	return nil
}
