package upstream

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// recorded returns what a machine said; see testdata/load/README.md.
func recorded(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/load", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// readAnswers reads what a script said to the questions 1 to n, and returns the
// last answer.
func readAnswers(text string, n int) (Load, error) {
	r := newLoadReader(&piecewise{text})
	sample, err := r.first(func() time.Time { return time.Unix(1796051200, 0) })
	for i := 2; i <= n && err == nil; i++ {
		sample, err = r.next(i)
	}
	return sample, err
}

// piecewise gives no more than up to the end of an answer at once, as a script does
// that waits for the next question.
type piecewise struct{ rest string }

func (p *piecewise) Read(b []byte) (int, error) {
	if p.rest == "" {
		return 0, io.EOF
	}
	n := len(p.rest)
	if end := strings.Index(p.rest, "\nend "); end >= 0 {
		if length := strings.Index(p.rest[end+1:], "\n"); length >= 0 {
			n = end + 1 + length + 1
		}
	}
	n = copy(b, p.rest[:n])
	p.rest = p.rest[n:]
	return n, nil
}

// Guards against a builder whose tools print a little differently, and whose load
// would not be seen for that.
func TestLoadOfRealMachinesIsRead(t *testing.T) {
	for name, want := range map[string]Load{
		"debian": {System: "Linux", Cores: 2, Load1: 4.29, Load5: 5.11, Load15: 2.93, MemoryTotal: 24684092 << 10, MemoryAvailable: 23710740 << 10,
			Pressure: &Pressure{CPU: 75.16}, DiskFree: 81762288 << 10},
		"busybox": {System: "Linux", Cores: 2, Load1: 4.96, Load5: 2.61, Load15: 1.31, MemoryTotal: 24684092 << 10, MemoryAvailable: 23824364 << 10,
			Pressure: &Pressure{CPU: 88.32, IO: 2.42}, DiskFree: 65536 << 10},
		"nopsi": {System: "Linux", Cores: 2, Load1: 4.96, Load5: 2.61, Load15: 1.31, MemoryTotal: 24684092 << 10, MemoryAvailable: 23824364 << 10,
			DiskFree: 24000000 << 10},
		"macos": {System: "Darwin", Cores: 10, Load1: 2.35, Load5: 2.10, Load15: 1.98, MemoryTotal: 16 << 30,
			MemoryAvailable: (12345 + 500000 + 2500) * 16384, DiskFree: 265212696 << 10},
	} {
		got, err := readAnswers(recorded(t, name), 2)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: read %+v (pressure %+v), want %+v", name, got, got.Pressure, want)
		}
	}
}

// Guards against numbers that are believed although the builder said something
// else, or only a part of it.
func TestLoadThatMakesNoSenseIsAnError(t *testing.T) {
	good := recorded(t, "busybox")
	if _, err := readAnswers(good, 2); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, says string }{
		{"load Linux 2 ", "load Linux 0 ", "load Linux 0"},
		{"load Linux 2 ", "load Linux 70000 ", "makes no sense"},
		{"load Linux 2 ", "load Linux -2 ", "makes no sense"},
		{"load Linux", "load FreeBSD", "makes no sense"},
		{"load Linux", "Welcome to build1\nload Linux", "Welcome to build1"},
		{"avg 4.96", "avg NaN", "NaN"},
		{"avg 4.96", "avg 1e3", "makes no sense"},
		{"avg 4.96", "avg 99999999", "makes no sense"},
		{"avg 4.96", "avg -1", "makes no sense"},
		{"avg 4.96", "avg 4.96 1.00", "makes no sense"},
		{"total 24684092 kB", "total 24684092 KB", "makes no sense"},
		{"total 24684092 kB", "total 9999999999999999999 kB", "makes no sense"},
		{"available", "total", "makes no sense"},
		{"available 23824364 kB\n", "", "how much memory is available"},
		{"tmpfs    ", "tmpfs x  ", ""}, // a name with a blank
		{"65536   0% /nix", "-5   101% /nix", ""},
		{"65536         0     65536   0%", "65536", "makes no sense"},
		{"end 1", "end 2", "end 2"},
		{"end 1\n", "end 1\nend 2\n", "more than it was asked"},
		{"some avg10=88.32", "some avg10=188.32", "makes no sense"},
		{"pressure io", "pressure irq", "makes no sense"},
		{"pressure io", "pressure cpu", "makes no sense"},
		{"avg 4.96", strings.Repeat("x", 2000) + "\navg 4.96", "a line of more than 1024 bytes"},
		{"avg 4.96", strings.Repeat(strings.Repeat("x", 1000)+"\n", 9) + "avg 4.96", "more than 8192 bytes"},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Fatalf("%q is not there", c.old)
		}
		got, err := readAnswers(text, 2)
		if c.says == "" {
			if err != nil {
				t.Errorf("with %q: %v", c.new, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("with %.40q: read %+v", c.new, got)
		} else if !strings.Contains(err.Error(), c.says) {
			t.Errorf("with %.40q: %v, want words %q", c.new, err, c.says)
		}
	}
	for n := range len(good) {
		if _, err := readAnswers(good[:n], 2); err == nil {
			t.Errorf("read %q", good[:n])
		}
	}
}

// Guards against a builder whose words stop the proxy, or make numbers with which
// nobody can reckon.
func FuzzLoad(f *testing.F) {
	for _, name := range []string{"debian", "busybox", "nopsi", "macos"} {
		f.Add(recorded(f, name))
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := readAnswers(text, 1)
		if err != nil {
			return
		}
		for _, n := range []float64{l.Load1, l.Load5, l.Load15} {
			if !(n >= 0 && n <= maxLoadAverage) {
				t.Errorf("load average %g", n)
			}
		}
		for _, n := range []int64{l.MemoryTotal, l.MemoryAvailable, l.DiskFree} {
			if n < 0 || n > maxLoadBytes {
				t.Errorf("%d bytes", n)
			}
		}
		if p := l.Pressure; p != nil && !(min(p.CPU, p.Memory, p.IO) >= 0 && max(p.CPU, p.Memory, p.IO) <= 100) {
			t.Errorf("pressure %+v", *p)
		}
		if l.Cores < 1 || l.Cores > maxLoadCores {
			t.Errorf("%d cores", l.Cores)
		}
	})
}

// Guards against sizes that people misread.
func TestBytesForPeople(t *testing.T) {
	for n, want := range map[Bytes]string{
		-1: "-1 B", 0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1000 << 10: "1000.0 KiB", 1<<20 - 60: "1023.9 KiB", 1<<20 - 1: "1.0 MiB",
		1536 << 10: "1.5 MiB", 200 << 30: "200.0 GiB", 1 << 60: "1.0 EiB",
	} {
		if got := n.String(); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
