package audit

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// full returns an event in which every field is set to something of its own.
func full(t *testing.T) Event {
	t.Helper()
	var e Event
	v := reflect.ValueOf(&e).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		switch f := v.Field(i); f.Interface().(type) {
		case Kind, string:
			f.SetString("the " + name)
		case time.Time:
			f.Set(reflect.ValueOf(time.Date(2026, 11, 30, 18, 45, 13, 123456000, time.UTC)))
		case int, int64:
			f.SetInt(int64(100 + i))
		case uint16, uint64:
			f.SetUint(uint64(100 + i))
		case float64:
			f.SetFloat(0.125)
		case bool:
			f.SetBool(true)
		case []string:
			f.Set(reflect.ValueOf([]string{name + " 1", name + " 2"}))
		case []Output:
			f.Set(reflect.ValueOf([]Output{{"out", "/nix/store/a", "sha256:x", 7}, {Name: "dev", Path: "/nix/store/b"}}))
		default:
			t.Fatalf("field %s has a type that this test does not know", name)
		}
	}
	return e
}

// Guards against a field that is never written, or read as another.
func TestEveryFieldIsWrittenAndRead(t *testing.T) {
	e := full(t)
	line, l := appendLine(nil, link{seq: 6, hash: Hash{1}}, e.Time, appendEvent(nil, &e))
	var got Event
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatalf("%v\n%s", err, line)
	}
	if !reflect.DeepEqual(got, e) {
		t.Errorf("read %+v,\nwrote %+v", got, e)
	}
	if at, ok := readLine(line[:len(line)-1]); !ok || at != l || at.seq != 7 || at.prev != (Hash{1}) {
		t.Errorf("the line stands at %+v, %v", at, ok)
	}
	if words := e.String(); !strings.Contains(words, `reason="the Reason"`) || !strings.Contains(words, "outputs.dev=/nix/store/b") || strings.Contains(words, "\n") {
		t.Error(words)
	}
}

// Guards against documentation that does not know what is written.
func TestDocumentationNamesEveryEventAndField(t *testing.T) {
	text, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range Kinds {
		if !strings.Contains(string(text), "| `"+string(kind)+"` |") {
			t.Errorf("docs/audit.md has no row for the event %s", kind)
		}
	}
	e := reflect.TypeFor[Event]()
	for i := range e.NumField() {
		if name := e.Field(i).Tag.Get("json"); !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/audit.md does not name the field %s", name)
		}
	}
}

// Guards against text of others that makes lines of its own, tells terminals what to
// do, hides behind characters that are not seen, or fills the disk.
func TestTextOfOthersIsOneShortPlainString(t *testing.T) {
	d := newDesk(t).open()
	hostile := "anna\n{\"v\":1,\"event\":\"login\"}\x1b[2J\x00\u202egnp.exe\xff\\\"é\U0001f600"
	d.Record(Event{Kind: LoginRefused, Address: "192.0.2.1", User: hostile, Client: strings.Repeat("x", 5000), Keys: []string{hostile}})
	d.close()
	lines := strings.Split(strings.TrimSuffix(d.read(d.file), "\n"), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines: %q", len(lines), lines)
	}
	if strings.ContainsFunc(lines[1], func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("not plain: %q", lines[1])
	}
	got := d.events(LoginRefused)[0]
	const want = `anna\x0a{"v":1,"event":"login"}\x1b[2J\x00\u202egnp.exe\xff\\"\u00e9\U0001f600`
	if got.User != want || got.Keys[0] != want {
		t.Errorf("user %q", got.User)
	}
	if len(got.Client) != maxText+len("...") {
		t.Errorf("%d bytes of client", len(got.Client))
	}
	d.verified()
}

// Guards against anybody without a key who pushes everything else out of the files.
func TestRefusedLoginsAreBounded(t *testing.T) {
	d := newDesk(t)
	var later atomic.Int64
	began := time.Now()
	d.open(func(o *Options) { o.now = func() time.Time { return began.Add(time.Duration(later.Load())) } })
	const attempts = 1000
	for range attempts {
		d.Record(Event{Kind: LoginRefused, Address: "192.0.2.1"})
	}
	later.Store(int64(3 * time.Second))
	d.Record(Event{Kind: LoginRefused, Address: "192.0.2.1"})
	d.Record(Event{Kind: LoginRefused, Address: "192.0.2.1"})
	d.close()
	lines, all := d.events(LoginRefused), uint64(0)
	for _, e := range lines {
		all += 1 + e.Suppressed
	}
	if len(lines) != refusalsAtOnce+2 || all != attempts+2 {
		t.Errorf("%d lines tell of %d refusals", len(lines), all)
	}
}
