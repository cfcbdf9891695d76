package proxy

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// Guards against strangers of another protocol, bytes that would get into a log,
// and lines without end.
func TestIdentificationLine(t *testing.T) {
	longest := "SSH-2.0-" + strings.Repeat("x", maxIdentBytes-len("SSH-2.0-\r\n"))
	for _, c := range []struct {
		sent, line string
		err        error
	}{
		{"SSH-2.0-x\r\n", "SSH-2.0-x", nil},
		{"SSH-2.0-x\n", "SSH-2.0-x", nil},
		{"SSH-1.99-x\r\n", "SSH-1.99-x", nil},
		{"SSH-2.0-x with a comment\r\nand the first packet", "SSH-2.0-x with a comment", nil},
		{"SSH-2.0-\r\n", "SSH-2.0-", nil},
		{"SSH-2.0-\xff\u202e\r\n", "SSH-2.0-\xff\u202e", nil},
		{longest + "\r\n", longest, nil},
		{longest + "x\r\n", "", errIdentTooLong},
		{strings.Repeat("x", 10_000), "", errIdentTooLong},
		{"SSH-1.5-x\r\n", "", errIdentInvalid},
		{"SSH-3.0-x\r\n", "", errIdentInvalid},
		{"ssh-2.0-x\r\n", "", errIdentInvalid},
		{"\r\nSSH-2.0-x\r\n", "", errIdentInvalid},
		{"hello\r\nSSH-2.0-x\r\n", "", errIdentInvalid},
		{"GET / HTTP/1.1\r\n", "", errIdentInvalid},
		{"\x16\x03\x01\x02\x00\x01\n", "", errIdentInvalid},
		{"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", "", errIdentInvalid},
		{"SSH-2.0-a\rb\r\n", "", errIdentInvalid},
		{"SSH-2.0-a\r\r\n", "", errIdentInvalid},
		{"SSH-2.0-a\x00b\r\n", "", errIdentInvalid},
		{"SSH-2.0-a\x1b[31m\r\n", "", errIdentInvalid},
		{"SSH-2.0-a\x7f\r\n", "", errIdentInvalid},
		{"", "", io.EOF},
		{"SSH-2.0-x", "", io.EOF},
	} {
		for name, reader := range map[string]io.Reader{
			"at once":      strings.NewReader(c.sent),
			"byte by byte": iotest.OneByteReader(strings.NewReader(c.sent)),
			"error beside": iotest.DataErrReader(strings.NewReader(c.sent)),
		} {
			line, raw, err := readIdent(reader)
			if line != c.line || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Errorf("readIdent(%q) %s = %q, %v; want %q, %v", c.sent, name, line, err, c.line, c.err)
			}
			if len(raw) > maxIdentBytes || !strings.HasPrefix(c.sent, string(raw)) {
				t.Errorf("readIdent(%q) %s gives %q back to the library", c.sent, name, raw)
			}
		}
	}
}

// Guards against an identification line that the library would read in another
// way than we did: what chooses the ciphers is what gets into the exchange hash.
func FuzzReadIdent(f *testing.F) {
	for _, seed := range []string{"SSH-2.0-OpenSSH_9.2p1\r\nrest", "SSH-1.99-x\n", "SSH-2.0-\x00\n", "GET /\r\n", strings.Repeat("x", 300), "SSH-2.0-x\r\r\n", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		line, raw, err := readIdent(iotest.HalfReader(bytes.NewReader(sent)))
		if len(raw) > maxIdentBytes || !bytes.HasPrefix(sent, raw) {
			t.Fatalf("%q was read as %q", sent, raw)
		}
		if err != nil {
			if line != "" {
				t.Fatalf("line %q beside error %v", line, err)
			}
			return
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Fatalf("control bytes in %q", line)
		}
		first, _, _ := bytes.Cut(sent, []byte("\n"))
		if strings.TrimSuffix(string(first), "\r") != line {
			t.Fatalf("line of %q is %q", sent, line)
		}
		knowsGCM(line)
	})
}
