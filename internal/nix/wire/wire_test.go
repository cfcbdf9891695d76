package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"go.uber.org/goleak"

	"nixbastion/internal/nix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func u64(ns ...uint64) []byte {
	var b []byte
	for _, n := range ns {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

func mustPath(t testing.TB, s string) nix.StorePath {
	t.Helper()
	p, err := nix.ParseStorePath(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const (
	pathA = "/nix/store/00000000000000000000000000000000-a"
	pathB = "/nix/store/00000000000000000000000000000001-b"
)

// everything writes one value of each kind.
func everything(t testing.TB, w *Writer) {
	w.Uint64(7)
	w.Uint64(math.MaxUint32)
	w.Uint64(255)
	w.Int64(5)
	w.Bool(true)
	w.String("hello")
	w.String(strings.Repeat("x", 10_000))
	w.String("")
	w.StorePath(mustPath(t, pathA))
	w.StorePath(nix.StorePath{})
	w.StorePaths([]nix.StorePath{mustPath(t, pathB), mustPath(t, pathA), mustPath(t, pathB)})
	w.Strings([]string{"b", "a", "b"})
	w.StringSet([]string{"b", "a", "b"})
	w.StringMap(map[string]string{"k": "v", "a": "b"})
}

func readEverything(r *Reader) (ok bool) {
	ok = r.Uint64() == 7
	ok = r.Uint32() == math.MaxUint32 && ok
	ok = r.Uint8() == 255 && ok
	ok = r.Int64() == 5 && ok
	ok = r.Bool() && ok
	ok = r.String(5) == "hello" && ok
	ok = r.String(10_000) == strings.Repeat("x", 10_000) && ok
	ok = r.String(0) == "" && ok
	ok = r.StorePath().String() == pathA && ok
	ok = r.OptionalStorePath().IsZero() && ok
	paths := r.StorePaths(2)
	ok = len(paths) == 2 && paths[0].String() == pathA && ok
	ok = slices.Equal(r.Strings(3, 1), []string{"b", "a", "b"}) && ok
	ok = slices.Equal(r.StringSet(2, 1), []string{"a", "b"}) && ok
	m := r.StringMap(2, 1)
	return m["k"] == "v" && m["a"] == "b" && ok
}

// Guards against values that do not come back as they were written, however the
// stream is cut into reads.
func TestEveryValueRoundTrips(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	everything(t, w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	for name, src := range map[string]io.Reader{
		"at once":       bytes.NewReader(buf.Bytes()),
		"byte by byte":  iotest.OneByteReader(bytes.NewReader(buf.Bytes())),
		"EOF with data": iotest.DataErrReader(bytes.NewReader(buf.Bytes())),
	} {
		r := NewReader(src)
		if !readEverything(r) || r.Err() != nil {
			t.Errorf("%s: values differ, error %v", name, r.Err())
		}
		if r.More() || r.Err() != nil {
			t.Errorf("%s: stream has not ended cleanly: %v", name, r.Err())
		}
		if r.Offset() != int64(buf.Len()) {
			t.Errorf("%s: offset %d, want %d", name, r.Offset(), buf.Len())
		}
	}
}

// Guards against a stream that ends inside a value being taken for a whole one.
func TestCutAtEveryByteIsUnexpectedEOF(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	everything(t, w)
	w.Flush()
	for n := range buf.Len() {
		r := NewReader(bytes.NewReader(buf.Bytes()[:n]))
		readEverything(r)
		if r.Err() != io.ErrUnexpectedEOF {
			t.Fatalf("cut at %d: %v", n, r.Err())
		}
	}
}

// Guards against bytes that break the encoding passing as values.
func TestMalformedValuesAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		in   []byte
		read func(*Reader)
		want string
	}{
		"padding":        {append(u64(1), "a\x00\x00\x00\x00\x00\x00\x01"...), func(r *Reader) { r.String(9) }, "expected zero padding, got 0x1 (at byte 16)"},
		"32 bits":        {u64(1 << 32), func(r *Reader) { r.Uint32() }, "expected a number of at most 4294967295, got 4294967296 (at byte 8)"},
		"8 bits":         {u64(256), func(r *Reader) { r.Uint8() }, "expected a number of at most 255, got 256 (at byte 8)"},
		"negative":       {u64(1 << 63), func(r *Reader) { r.Int64() }, "expected a number of at most 9223372036854775807, got 9223372036854775808 (at byte 8)"},
		"tag":            {u64(2), func(r *Reader) { r.Optional() }, "expected a tag of at most 1, got 2 (at byte 8)"},
		"constant":       {u64(2), func(r *Reader) { r.Expect("magic", 3) }, "expected magic 0x3, got 0x2 (at byte 8)"},
		"long string":    {u64(6), func(r *Reader) { r.String(5) }, "expected a string with a length of at most 5, got 6 (at byte 8)"},
		"many elements":  {u64(6), func(r *Reader) { r.Strings(5, 1) }, "expected a collection with a count of at most 5, got 6 (at byte 8)"},
		"empty path":     {u64(0), func(r *Reader) { r.StorePath() }, `path "" is not in the Nix store (at byte 8)`},
		"empty body":     {u64(0), func(r *Reader) { r.StringBody(9) }, "expected a string, got an empty one (at byte 8)"},
		"long frame":     {u64(1 << 32), func(r *Reader) { NewFrameReader(r).Drain() }, "expected a number of at most 4294967295, got 4294967296 (at byte 8)"},
		"beyond budget":  {u64(0, 0, 0), func(r *Reader) { r.Budget(64); r.Strings(0, 0); r.String(0); r.String(0) }, ""},
		"beyond budget2": {u64(3, 0, 0, 0), func(r *Reader) { r.Budget(64); r.Strings(3, 0) }, "message is larger than this end accepts (at byte 32)"},
	} {
		r := NewReader(bytes.NewReader(c.in))
		c.read(r)
		got := ""
		if r.Err() != nil {
			got = r.Err().Error()
		}
		if got != c.want || (c.want != "" && !IsFormat(r.Err())) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// Guards against memory that is allocated for an announced length.
func TestLyingLengthsCostNoMemory(t *testing.T) {
	const limit = 1 << 30
	for _, n := range []uint64{limit, limit + 1, math.MaxUint32, 1 << 63, math.MaxUint64} {
		for name, read := range map[string]func(*Reader){
			"string": func(r *Reader) { r.String(limit) },
			"text":   func(r *Reader) { r.Text(limit, limit) },
			"list":   func(r *Reader) { r.Strings(limit, 1) },
			"paths":  func(r *Reader) { r.StorePaths(limit) },
			"map":    func(r *Reader) { r.StringMap(limit, 1) },
			"body":   func(r *Reader) { io.Copy(io.Discard, r.StringBody(limit)) },
			"frames": func(r *Reader) { NewFrameReader(r).Drain() },
		} {
			r := NewReader(bytes.NewReader(append(u64(n), "some bytes"...)))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			read(r)
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 256<<10 {
				t.Errorf("%s of %d: allocated %d bytes", name, n, grown)
			}
			if r.Err() == nil {
				t.Errorf("%s of %d: no error", name, n)
			}
		}
	}
}

// Guards against a long log line ending a session, and against it being kept whole.
func TestTextIsCutNotRefused(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	w.String(strings.Repeat("x", 1001))
	w.Uint64(42)
	w.Flush()
	r := NewReader(&buf)
	if got, want := r.Text(3, 2000), "xxx... [998 bytes cut]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := r.Uint64(); n != 42 || r.Err() != nil {
		t.Errorf("what follows the text: %d, %v", n, r.Err())
	}
}

// Guards against frames that lose or add bytes, whatever the sizes of writes and reads.
func TestFramesCarryExactlyThePayload(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	var buf bytes.Buffer
	w := NewWriter(&buf)
	f := NewFrameWriter(w)
	f.Write(payload[:1])
	f.Write(payload[1:200_000])
	if _, err := f.ReadFrom(iotest.HalfReader(bytes.NewReader(payload[200_000:]))); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	w.Uint64(42)
	w.Flush()

	r := NewReader(iotest.HalfReader(&buf))
	frames := NewFrameReader(r)
	if err := iotest.TestReader(frames, payload); err != nil {
		t.Error(err)
	}
	if n := r.Uint64(); n != 42 || !frames.Done() {
		t.Errorf("what follows the frames: %d, %v", n, r.Err())
	}
}

// Guards against one read of the channel for every few bytes of a large upload,
// and against sessions that keep the memory for it. What follows the upload is
// more than fits the small buffer.
func TestLongFramesAreReadInFewPieces(t *testing.T) {
	const frame, count = 32 << 10, 300
	payload := bytes.Repeat([]byte("0123456789abcdef"), frame*count/16)
	var stream bytes.Buffer
	for chunk := range slices.Chunk(payload, frame) {
		stream.Write(u64(frame))
		stream.Write(chunk)
	}
	stream.Write(u64(0))
	rest := bytes.Repeat(u64(7), 3*bufferSize/8)
	stream.Write(rest)

	src := &countingReader{r: &stream}
	r := NewReader(src)
	frames := NewFrameReader(r)
	var got bytes.Buffer
	if _, err := io.CopyBuffer(&got, struct{ io.Reader }{frames}, make([]byte, wideSize)); err != nil || !bytes.Equal(got.Bytes(), payload) {
		t.Fatalf("got %d of %d bytes, %v", got.Len(), len(payload), err)
	}
	if most := 100; src.reads > most { // about 38 wide ones, and those before
		t.Errorf("%d reads, want at most %d", src.reads, most)
	}
	for range len(rest) / 8 {
		if n := r.Uint64(); n != 7 {
			t.Fatalf("behind the frames: %d, %v", n, r.Err())
		}
	}
	if r.More() {
		t.Error("more than was sent")
	}
	if want := int64(len(payload) + (count+1)*8 + len(rest)); r.Offset() != want {
		t.Errorf("offset %d, want %d", r.Offset(), want)
	}
	if len(r.buf) != bufferSize {
		t.Errorf("the buffer still has %d bytes", len(r.buf))
	}
}

type countingReader struct {
	r     io.Reader
	reads int
}

func (c *countingReader) Read(p []byte) (int, error) {
	c.reads++
	return c.r.Read(p)
}

// Guards against a payload that ends without its terminator passing as complete.
func TestFramesWithoutTerminatorAreUnexpectedEOF(t *testing.T) {
	whole := append(u64(3), "abc"...)
	whole = append(whole, u64(0)...)
	for n := range whole {
		f := NewFrameReader(NewReader(bytes.NewReader(whole[:n])))
		if _, err := f.Drain(); err != io.ErrUnexpectedEOF || f.Done() {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

// Guards against an aborted upload that leaves half a chunk in front of the terminator.
func TestAbortWritesTheTerminatorAlone(t *testing.T) {
	var buf bytes.Buffer
	f := NewFrameWriter(NewWriter(&buf))
	f.Write([]byte("abc"))
	f.Abort()
	if !bytes.Equal(buf.Bytes(), u64(0)) {
		t.Errorf("got % x", buf.Bytes())
	}
}

// Guards against a string body that hides a short stream or bad padding.
func TestStringBodyChecksItsEnd(t *testing.T) {
	good := append(u64(3), "abc\x00\x00\x00\x00\x00"...)
	got, err := io.ReadAll(NewReader(bytes.NewReader(good)).StringBody(3))
	if string(got) != "abc" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	good[len(good)-1] = 1
	if _, err := io.ReadAll(NewReader(bytes.NewReader(good)).StringBody(3)); !IsFormat(err) {
		t.Errorf("bad padding: %v", err)
	}
	for n := 8; n < len(good); n++ {
		if _, err := io.ReadAll(NewReader(bytes.NewReader(good[:n])).StringBody(3)); err != io.ErrUnexpectedEOF {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

// Guards against an operation that runs on for a client that has gone.
func TestWatchTellsTheEndOfTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := io.Pipe()
		r := NewReader(in)
		ended := false
		r.Watch(func() { ended = true })
		synctest.Wait()
		if ended {
			t.Fatal("told of an end before there was one")
		}
		out.Close()
		synctest.Wait()
		if !ended {
			t.Error("not told of the end")
		}
		if r.More() || r.Err() != nil {
			t.Errorf("More after a clean end: %v", r.Err())
		}
	})
}

// Guards against the next request losing the bytes that a watch has read.
func TestWatchKeepsWhatItReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := io.Pipe()
		r := NewReader(in)
		r.Watch(func() { t.Error("told of an end") })
		go out.Write(u64(1, 2))
		if a, b := r.Uint64(), r.Uint64(); a != 1 || b != 2 {
			t.Errorf("got %d %d, %v", a, b, r.Err())
		}
		r.Watch(func() {})
		out.CloseWithError(errors.New("reset"))
		r.Uint64()
		if r.Err() == nil || r.Err().Error() != "reset" {
			t.Errorf("got %v", r.Err())
		}
	})
}

// Guards against a Writer that reports success after its stream broke.
func TestWriterKeepsItsFirstError(t *testing.T) {
	in, out := io.Pipe()
	in.CloseWithError(errors.New("gone"))
	w := NewWriter(out)
	for range 2000 {
		w.Uint64(1)
	}
	w.String(strings.Repeat("x", 9000))
	if n, err := w.Write(make([]byte, 9000)); n != 0 || err == nil {
		t.Errorf("Write: %d, %v", n, err)
	}
	if err := w.Flush(); err == nil || err.Error() != "gone" {
		t.Errorf("Flush: %v", err)
	}
}

// Any bytes: no panic, no endless loop, and memory in proportion to them.
func FuzzReader(f *testing.F) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	everything(f, w)
	w.Flush()
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		r.Budget(1 << 20)
		if readEverything(r) && r.Err() == nil && len(b) < 10_000 {
			t.Error("values from nowhere")
		}
		if _, err := NewFrameReader(NewReader(bytes.NewReader(b))).Drain(); err == nil && len(b) < 8 {
			t.Error("frames from nowhere")
		}
	})
}
