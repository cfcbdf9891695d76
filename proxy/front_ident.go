package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxIdentBytes is the length of an identification line with its line end
// (RFC 4253, 4.2).
const maxIdentBytes = 255

var (
	errIdentTooLong = fmt.Errorf("identification line longer than %d bytes", maxIdentBytes)
	errIdentInvalid = errors.New("not an SSH 2.0 identification line")
)

// readIdent reads a client's identification line. raw is everything that was
// read, at most 255 bytes: the line and perhaps the beginning of the first
// packet, which clients send without waiting. Unlike a server, a client may send
// no other line before (RFC 4253, 4.2), so a stranger that speaks another
// protocol is known by its first line.
func readIdent(r io.Reader) (line string, raw []byte, err error) {
	raw = make([]byte, 0, maxIdentBytes)
	for {
		if end := bytes.IndexByte(raw, '\n'); end >= 0 {
			line, err = checkIdent(raw[:end])
			return line, raw, err
		}
		if len(raw) == cap(raw) {
			return "", raw, errIdentTooLong
		}
		n, err := r.Read(raw[len(raw):cap(raw)])
		raw = raw[:len(raw)+n]
		if err != nil && n == 0 {
			return "", raw, fmt.Errorf("read identification line: %w", err)
		}
	}
}

func checkIdent(text []byte) (string, error) {
	line := strings.TrimSuffix(string(text), "\r")
	if !strings.HasPrefix(line, "SSH-2.0-") && !strings.HasPrefix(line, "SSH-1.99-") {
		return "", errIdentInvalid
	}
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", errIdentInvalid
	}
	return line, nil
}
