package tracefile

import (
	"io"
	"strings"
	"testing"
)

const good = `{"asked":"2026-01-30T12:00:00.5Z","principal":"anna","drv":"d","name":"n-1","system":"s","seconds":1}`

// Guards against traces that are half understood: what is wrong is named with its
// place, and nothing is guessed.
func TestBadLinesAreRefusedByFileAndLine(t *testing.T) {
	with := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for line, want := range map[string]string{
		"{":                           "unexpected EOF",
		good + "{}":                   "more than one value",
		with(`"drv"`, `"derivation"`): `unknown field "derivation"`,
		with(`"drv":"d",`, ``):        "drv is missing",
		with(`"anna"`, `""`):          "principal is missing",
		with(`1}`, `-1}`):             "seconds is -1",
		with(`1}`, `1e30}`):           "seconds is 1e+30",
		with(`1}`, `"1"}`):            "cannot unmarshal string",
		with(`2026-01-30T12`, `12`):   "parsing time",
		with(`"asked":"2026-01-30T12:00:00.5Z",`, ``):                                        "asked is missing",
		with(`1}`, `1,"ended":"2026-01-30T11:00:00Z"}`):                                      "ended is before asked",
		with(`1}`, `1,"inputs":[{"path":"p","drv":"d"}]}`):                                   "either path or drv",
		with(`1}`, `1,"inputs":[{}]}`):                                                       "either path or drv",
		with(`1}`, `1,"inputs":[{"path":"p","size":-5}]}`):                                   "size is -5",
		with(`1}`, `1,"outputs":[{"size":5}]}`):                                              "path of an output is missing",
		with(`"d"`, `"`+strings.Repeat("d", maxName+1)+`"`):                                  "drv has 1025 bytes",
		with(`1}`, `1`+strings.Repeat(" ", maxLine)+`}`):                                     "more than 1048576 bytes",
		with(`1}`, `1,"features":["`+strings.Repeat(`a","`, maxList)+`a"]}`):                 "257 features",
		with(`1}`, `1,"inputs":[{"drv":"x"}`+strings.Repeat(`,{"drv":"x"}`, maxInputs)+`]}`): "10001 inputs",
		`{"builders":[]}`: `unknown field "builders"`, // not the first line
	} {
		r := NewReader("a/trace", strings.NewReader(good+"\n\n"+line+"\n"))
		if _, _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		_, _, err := r.Next()
		if err == nil || !strings.HasPrefix(err.Error(), "a/trace:3: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: error %v, expected a/trace:3: ... %s", line, err, want)
		}
	}
}

func TestBadFleetsAreRefused(t *testing.T) {
	for line, want := range map[string]string{
		`{"builders":[]}`: "0 builders",
		`{"builders":[{"name":"a","systems":{"s":1}},{"name":"a","systems":{"s":1}}]}`: `two builders "a"`,
		`{"builders":[{"name":"a"}]}`:                                     "systems are missing",
		`{"builders":[{"systems":{"s":1}}]}`:                              "name is missing",
		`{"builders":[{"name":"a","systems":{"s":1},"jobs":3}]}`:          `unknown field "jobs"`,
		`{"builders":[{"name":"a","systems":{"s":-1}}]}`:                  "speed of a system is -1",
		`{"builders":[{"name":"a","systems":{"s":1},"max_jobs":-1}]}`:     "max_jobs is -1",
		`{"builders":[{"name":"a","systems":{"s":1},"link":-1}]}`:         "link is -1",
		`{"builders":[{"name":"a","systems":{"s":1},"speed_factor":-1}]}`: "speed_factor is -1",
	} {
		_, _, err := NewReader("t", strings.NewReader(line)).Next()
		if err == nil || !strings.HasPrefix(err.Error(), "t:1: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, expected t:1: ... %s", line, err, want)
		}
	}
}

func TestReadingEndsWithEOF(t *testing.T) {
	r := NewReader("t", strings.NewReader(`{"builders":[{"name":"a","systems":{"s":1}}]}`+"\n"+good))
	if _, fleet, err := r.Next(); err != nil || fleet == nil {
		t.Fatalf("first line: %v, %v", fleet, err)
	}
	if build, _, err := r.Next(); err != nil || build == nil || build.Asked.Nanosecond() != 5e8 {
		t.Fatalf("second line: %+v, %v", build, err)
	}
	if _, _, err := r.Next(); err != io.EOF {
		t.Errorf("after the last line: %v", err)
	}
}
