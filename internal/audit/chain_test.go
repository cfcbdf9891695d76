package audit

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Guards against a byte that somebody changes and nobody sees, and against a line
// number that leads elsewhere.
func TestVerifyNamesTheChangedLine(t *testing.T) {
	d := newDesk(t).open()
	d.commit(0, 2)
	d.close()
	text := d.read(d.file)
	for i := 0; i < len(text); i += 3 {
		changed := []byte(text)
		changed[i] ^= 1 // a newline becomes a vertical tab, a digit another one
		d.write(d.file, string(changed))
		line := 1 + strings.Count(text[:i], "\n")
		if i == len(text)-1 { // the end of the last line alone: it may be on its way
			continue
		}
		d.wantMistake([]string{d.file}, d.file, line)
		if t.Failed() {
			t.Fatalf("byte %d, %q", i, text[i])
		}
	}
}

// Guards against lines that vanish, change places or stand twice.
func TestVerifyNamesTheLineThatIsNotInItsPlace(t *testing.T) {
	d := newDesk(t).open()
	d.commit(0, 6)
	d.close()
	lines := strings.SplitAfter(strings.TrimSuffix(d.read(d.file), "\n"), "\n")
	lines[len(lines)-1] += "\n"
	for _, c := range []struct {
		name string
		edit func([]string) []string
		line int
		text string
	}{
		{"first gone", func(l []string) []string { return l[1:] }, 1, "lines before it are missing"},
		{"one gone", func(l []string) []string { return slices.Delete(l, 3, 4) }, 4, "1 lines before it are missing"},
		{"two gone", func(l []string) []string { return slices.Delete(l, 3, 5) }, 4, "2 lines before it are missing"},
		{"swapped", func(l []string) []string { l[2], l[3] = l[3], l[2]; return l }, 3, "missing, or stand elsewhere"},
		{"twice", func(l []string) []string { return slices.Insert(l, 3, l[2]) }, 4, "for the second time"},
		{"cut", func(l []string) []string { l[3] = l[3][:40] + "\n"; return l }, 4, "not as it was written"},
		{"emptied", func(l []string) []string { l[3] = "\n"; return l }, 4, "not as it was written"},
		{"of another log", func(l []string) []string { l[3] = otherLine(t, 3); return l }, 4, "does not go on from the line before"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d.write(d.file, strings.Join(c.edit(slices.Clone(lines)), ""))
			_, err := Verify([]string{d.file}, nil, func(FileReport) {})
			m, ok := err.(*Mistake)
			if !ok || m.Line != c.line || !strings.Contains(m.Text, c.text) {
				t.Errorf("got %v, want line %d with %q", err, c.line, c.text)
			}
		})
	}
}

// otherLine is a good line of a log that is not this one.
func otherLine(t *testing.T, n int) string {
	d := newDesk(t).open()
	d.commit(100, 100+n+1)
	d.close()
	return strings.SplitAfter(d.read(d.file), "\n")[n]
}

// small has files of a few lines.
func small(o *Options) { o.RotateSize = 4 << 10 }

// Guards against a chain that ends with its file, against files without bound, and
// against one that is taken from their middle.
func TestRotationKeepsTheChain(t *testing.T) {
	d := newDesk(t).open(small)
	d.commit(0, 100)
	d.close()
	d.open(small) // goes on behind the last line
	d.commit(100, 110)
	d.close()
	files := d.files()
	if len(files) < 5 || !slices.IsSorted(files[:len(files)-1]) || files[len(files)-1] != d.file {
		t.Fatalf("files: %q", files)
	}
	if notes := d.verified(); len(notes) != 0 {
		t.Errorf("notes: %q", notes)
	}
	if n := len(d.drvs()); n != 110 {
		t.Errorf("%d events", n)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || info.Size() > 5<<10 {
			t.Errorf("%s: %v, %d bytes, %v", file, info.Mode(), info.Size(), err)
		}
	}
	if !slices.Equal(InOrder(append([]string{d.file}, files[:len(files)-1]...)), files) {
		t.Error("files in another order are not sorted")
	}
	d.wantMistake(slices.Delete(slices.Clone(files), 2, 3), files[3], 1)
	d.wantMistake(append([]string{files[1], files[0]}, files[2:]...), files[0], 1)
	// Without the oldest it begins later, and says so.
	notes := []string{}
	if _, err := Verify(files[1:], nil, func(r FileReport) { notes = append(notes, r.Notes...) }); err != nil || len(notes) != 1 {
		t.Errorf("without the oldest: %v %q", err, notes)
	}
	// Lines cut from the end of a full file are missed by the next.
	text := strings.TrimSuffix(d.read(files[1]), "\n")
	d.write(files[1], text[:strings.LastIndexByte(text, '\n')+1])
	d.wantMistake(files, files[2], 1)
}

func TestOldestFilesAreRemoved(t *testing.T) {
	d := newDesk(t).open(small, func(o *Options) { o.Keep = 2 })
	d.commit(0, 200)
	d.close()
	if files := d.files(); len(files) != 3 {
		t.Errorf("files: %q", files)
	}
	d.verified()
}

// Guards against a chain that was cut and made anew: who has a head from the journal
// sees it.
func TestAHeadFromTheJournalIsMissed(t *testing.T) {
	d := newDesk(t).open()
	d.commit(0, 3)
	d.close()
	heads := func() (heads []Hash) {
		for line := range strings.Lines(d.journal.String()) {
			if _, text, ok := strings.Cut(line, `"head":"`); ok {
				h, _ := ParseHash(text[:hexLen])
				heads = append(heads, h)
			}
		}
		return heads
	}()
	if len(heads) != 2 { // opened, closed
		t.Fatalf("heads in the journal: %v\n%s", heads, d.journal)
	}
	missing, err := Verify(d.files(), heads, func(FileReport) {})
	if err != nil || len(missing) != 0 {
		t.Errorf("whole: %v %v", missing, err)
	}
	lines := strings.SplitAfter(d.read(d.file), "\n")
	d.write(d.file, strings.Join(lines[:3], ""))
	missing, err = Verify(d.files(), heads, func(FileReport) {})
	if err != nil || !slices.Equal(missing, heads[1:]) {
		t.Errorf("without its last line: %v %v", missing, err)
	}
}

// Guards against a log that looks whole although all files but the last were taken
// away, and against a number of lines that counts what is none.
func TestWhatIsNotThereIsNoted(t *testing.T) {
	var c clock
	d := newDesk(t).open(c.options)
	d.commit(0, 3)
	if err := os.Remove(d.file); err != nil {
		t.Fatal(err)
	}
	c.forward()
	d.commit(3, 5)
	d.close()
	if notes := d.verified(); len(notes) != 1 || !strings.Contains(notes[0], "begins with line 5") || !strings.Contains(notes[0], reasonGone) {
		t.Errorf("notes %q", notes)
	}
	text := d.read(d.file)
	d.write(d.file, text[:len(text)-30])
	d.open(c.options)
	d.close()
	for _, torn := range []string{"", `{"v":1,`} {
		d.write(d.file, d.read(d.file)+torn)
		var report FileReport
		if _, err := Verify(d.files(), nil, func(r FileReport) { report = r }); err != nil || report.Lines != 3 {
			t.Errorf("behind %q: %d lines are whole, %v\n%s", torn, report.Lines, err, d.text())
		}
	}
	d.write(d.file, "{")
	if _, err := Verify(d.files(), nil, func(r FileReport) {
		if r.Lines != 0 || r.Head != (Hash{}) {
			t.Errorf("nothing of a file is whole: %+v", r)
		}
	}); err != nil {
		t.Error(err)
	}
}

// Guards against a last file that is removed while the proxy does not run, and nobody
// is told: the chain goes on from the full one before it.
func TestAMissingLastFileIsNoted(t *testing.T) {
	d := newDesk(t).open(small)
	d.commit(0, 30)
	d.close()
	if err := os.Remove(d.file); err != nil {
		t.Fatal(err)
	}
	d.open(small)
	d.commit(30, 31)
	d.close()
	if notes := d.verified(); len(notes) != 1 || !strings.Contains(notes[0], "may have been removed") {
		t.Errorf("notes %q", notes)
	}
	if !strings.Contains(d.journal.String(), "is not there") {
		t.Errorf("the admin is not told: %s", d.journal)
	}
}
