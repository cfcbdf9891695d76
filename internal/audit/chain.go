package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// Hash is that of a line.
type Hash [sha256.Size]byte

// String is the hash in hex, as in the file.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash reads a hash as String writes it, and reports whether it is one.
func ParseHash(text string) (h Hash, ok bool) {
	if len(text) != hexLen || strings.ContainsAny(text, "ABCDEF") {
		return Hash{}, false
	}
	_, err := hex.Decode(h[:], []byte(text))
	return h, err == nil
}

// How a line begins, with the version of the format, and ends.
const (
	hexLen    = 2 * sha256.Size
	lineStart = `{"v":1,"seq":`
	prevStart = `,"prev":"`
	hashStart = `,"hash":"`
	lineEnd   = `"}`
	// maxLine is more than any line of ours has, in bytes: each byte of text can take
	// six, and an output has three texts.
	maxLine = 4 << 20
)

// link is where a line stands in the chain.
type link struct {
	seq  uint64
	prev Hash
	hash Hash
}

// appendLine appends the line of a body, which appendEvent made, with its newline,
// behind a link.
func appendLine(b []byte, after link, at time.Time, body []byte) ([]byte, link) {
	start := len(b)
	next := link{seq: after.seq + 1, prev: after.hash}
	b = strconv.AppendUint(append(b, lineStart...), next.seq, 10)
	b = append(b, `,"time":"`...)
	b = at.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(append(b, '"'), body...)
	b = append(hex.AppendEncode(append(b, prevStart...), next.prev[:]), '"')
	next.hash = sha256.Sum256(b[start:])
	b = hex.AppendEncode(append(b, hashStart...), next.hash[:])
	return append(b, lineEnd+"\n"...), next
}

// readLine returns where a line, without its newline, stands in the chain. It reports
// false if it is not as it was written.
func readLine(line []byte) (l link, ok bool) {
	body, ok := bytes.CutSuffix(line, []byte(lineEnd))
	if !ok {
		return l, false
	}
	if body, l.hash, ok = cutHash(body, hashStart); !ok || sha256.Sum256(body) != l.hash {
		return l, false
	}
	body, _ = bytes.CutSuffix(body, []byte(`"`))
	if body, l.prev, ok = cutHash(body, prevStart); !ok {
		return l, false
	}
	rest, ok := bytes.CutPrefix(body, []byte(lineStart))
	if !ok {
		return l, false
	}
	digits, _, _ := bytes.Cut(rest, []byte(","))
	seq, err := strconv.ParseUint(string(digits), 10, 64)
	l.seq = seq
	return l, err == nil
}

// cutHash takes a hash and the name before it from the end of a line.
func cutHash(b []byte, name string) (rest []byte, h Hash, ok bool) {
	n := len(b) - hexLen - len(name)
	if n < 0 || string(b[n:n+len(name)]) != name {
		return b, h, false
	}
	h, ok = ParseHash(string(b[n+len(name):]))
	return b[:n], h, ok
}
