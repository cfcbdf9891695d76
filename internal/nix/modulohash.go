package nix

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

// maxOffsets bounds the memory for the offsets of self references, in bytes.
// One takes 1 to 4, so this is enough for millions; a hostile archive could
// otherwise consist of nothing else.
const maxOffsets = 16 << 20

var errTooManySelfReferences = errors.New("too many self references to verify its content address")

// moduloHash hashes a stream twice: as it is, and modulo a needle: each
// occurrence replaced by zeros, and behind the end "|<offset>" for each. The two
// share their work up to the first occurrence, and there mostly is none.
type moduloHash struct {
	algo   HashAlgo
	needle []byte // of hashPartLen bytes
	plain  hash.Hash
	modulo hash.Hash // nil before the first occurrence

	held    []byte // the last bytes, fewer than the needle's, that may begin it
	pos     uint64 // of the first held byte
	last    uint64 // offset of the last occurrence
	offsets []byte // the occurrences: differences as uvarints
	err     error
}

func newModuloHash(algo HashAlgo, needle string) *moduloHash {
	return &moduloHash{algo: algo, needle: []byte(needle), plain: algo.New()}
}

// Write never fails: what goes wrong is reported by sum.
func (m *moduloHash) Write(p []byte) (int, error) {
	n := len(p)
	if len(m.held) > 0 {
		p = m.writeBorder(p)
	}
	for {
		i := bytes.Index(p, m.needle)
		if i < 0 {
			break
		}
		m.emit(p[:i])
		m.found()
		p = p[i+len(m.needle):]
	}
	keep := min(len(p), len(m.needle)-1)
	m.emit(p[:len(p)-keep])
	m.held = append(m.held, p[len(p)-keep:]...)
	return n, nil
}

// writeBorder looks for an occurrence that began in what is held. It returns
// what is left of p, with nothing held, or nil if it holds all of p.
func (m *moduloHash) writeBorder(p []byte) []byte {
	reach := min(len(p), len(m.needle)-1)
	border := append(m.held, p[:reach]...)
	held := len(m.held)
	m.held = m.held[:0]
	if i := bytes.Index(border, m.needle); i >= 0 {
		m.emit(border[:i])
		m.found()
		return p[i+len(m.needle)-held:]
	}
	if reach == len(m.needle)-1 {
		m.emit(border[:held])
		return p
	}
	over := max(0, len(border)-(len(m.needle)-1))
	m.emit(border[:over])
	m.held = append(m.held, border[over:]...)
	return nil
}

func (m *moduloHash) emit(p []byte) {
	m.plain.Write(p)
	if m.modulo != nil {
		m.modulo.Write(p)
	}
	m.pos += uint64(len(p))
}

// found is called where an occurrence begins.
func (m *moduloHash) found() {
	if m.modulo == nil {
		m.modulo, m.err = cloneHash(m.plain)
		if m.err != nil {
			m.modulo = m.algo.New()
		}
	}
	m.plain.Write(m.needle)
	m.modulo.Write(make([]byte, len(m.needle)))
	if len(m.offsets) < maxOffsets {
		m.offsets = binary.AppendUvarint(m.offsets, m.pos-m.last)
	} else {
		m.err = errTooManySelfReferences
	}
	m.last = m.pos
	m.pos += uint64(len(m.needle))
}

func cloneHash(h hash.Hash) (hash.Hash, error) {
	c, ok := h.(hash.Cloner)
	if !ok {
		return nil, errors.New("hash state cannot be copied")
	}
	return c.Clone()
}

// sums ends the stream and returns both hashes.
func (m *moduloHash) sums() (plain, modulo Hash, err error) {
	m.emit(m.held)
	m.held = m.held[:0]
	plain = SumHash(m.algo, m.plain)
	if m.modulo == nil || m.err != nil {
		return plain, plain, m.err
	}
	var pos uint64
	for rest := m.offsets; len(rest) > 0; {
		diff, n := binary.Uvarint(rest)
		rest = rest[n:]
		pos += diff
		fmt.Fprintf(m.modulo, "|%d", pos)
	}
	return plain, SumHash(m.algo, m.modulo), nil
}
