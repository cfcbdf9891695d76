package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// maxRecordSize is far above the size of a record's file, in bytes.
const maxRecordSize = 256 << 10

// recordFiles are the records and logs of builds that have ended. A log's file is
// there before that of its record. Nothing is synced: what is lost when the machine
// goes down is only told.
type recordFiles struct {
	dir string
	log *slog.Logger
	// seen is when the directory was changed before it was read last.
	seen time.Time
}

var (
	errNotKept  = errors.New("it is not kept any more")
	errNoRecord = errors.New("it is not the record of this build")
)

// open makes the directory, and clears away what was not finished if nobody else writes
// there.
func (f *recordFiles) open(alone bool) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("make directory of builds: %w", err)
	}
	if !alone {
		return nil
	}
	left, err := filepath.Glob(filepath.Join(f.dir, "*.tmp"))
	if err != nil {
		return err
	}
	for _, path := range left {
		os.Remove(path)
	}
	logs, err := filepath.Glob(filepath.Join(f.dir, "*.log"))
	for _, path := range logs {
		if _, err := os.Stat(strings.TrimSuffix(path, ".log") + ".json"); errors.Is(err, fs.ErrNotExist) {
			os.Remove(path)
		}
	}
	return err
}

func (f *recordFiles) path(id, kind string) string { return filepath.Join(f.dir, id+kind) }

// write keeps a log and then its record, in which it notes the size.
func (f *recordFiles) write(r *buildRecord, log *buildLog) error {
	err := f.create(r.ID, ".log", func(w io.Writer) error {
		text := &logText{w: w}
		log.read(&logReader{ctx: context.Background(), log: log}, text.message) // it has ended: nothing is waited for
		if log.broken() {
			text.line(cutShort)
		}
		return errors.Join(text.line(r.endLine()), text.err)
	})
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	r.LogBytes = f.sizeOf(r.ID)
	return f.create(r.ID, ".json", func(w io.Writer) error { return json.NewEncoder(w).Encode(r) })
}

// create writes a file and gives it its name when it is whole.
func (f *recordFiles) create(id, kind string, fill func(io.Writer) error) (err error) {
	name := f.path(id, kind+".tmp")
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(file, 32<<10)
	if err = errors.Join(fill(w), w.Flush(), file.Close()); err == nil {
		err = os.Rename(name, f.path(id, kind))
	}
	if err != nil {
		os.Remove(name)
	}
	return err
}

// sizeOf is the size of a kept log, 0 if there is none.
func (f *recordFiles) sizeOf(id string) int64 {
	info, err := os.Stat(f.path(id, ".log"))
	if err != nil {
		return 0
	}
	return info.Size()
}

func (f *recordFiles) openLog(id string) (*os.File, error) {
	file, err := os.Open(f.path(id, ".log"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNotKept
	}
	return file, err
}

func (f *recordFiles) removeLog(id string) { os.Remove(f.path(id, ".log")) }

func (f *recordFiles) remove(id string) {
	os.Remove(f.path(id, ".json"))
	f.removeLog(id)
}

var recordName = regexp.MustCompile(`^([0-9a-z]{6})\.json$`)

// news returns the records that are not known, if something has changed. With clearing
// nobody else writes there, and what is no record is left from a crash and goes: its log
// would count for no limit. The caller sees to it that it is called once at a time.
func (f *recordFiles) news(known map[string]bool, clearing bool) []*buildRecord {
	info, err := os.Stat(f.dir)
	if err != nil || info.ModTime().Equal(f.seen) {
		return nil
	}
	f.seen = info.ModTime()
	files, err := os.ReadDir(f.dir)
	if err != nil {
		f.log.Warn("kept builds cannot be read", "error", err)
		return nil
	}
	var news []*buildRecord
	for _, file := range files {
		m := recordName.FindStringSubmatch(file.Name())
		if m == nil || known[m[1]] {
			continue
		}
		r, err := f.read(m[1])
		if err != nil {
			clear := clearing && errors.Is(err, errNoRecord)
			if clear {
				f.remove(m[1])
			}
			f.log.Warn("kept build cannot be read", "file", file.Name(), "removed", clear, "error", err)
			continue
		}
		news = append(news, r)
	}
	return news
}

func (f *recordFiles) read(id string) (*buildRecord, error) {
	file, err := os.Open(f.path(id, ".json"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxRecordSize))
	if err != nil {
		return nil, err
	}
	var r buildRecord
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoRecord, err)
	}
	if r.ID != id || r.Ended == nil {
		return nil, errNoRecord
	}
	r.Features, r.Principals = orNone(r.Features), orNone(r.Principals)
	r.LogBytes = f.sizeOf(id)
	return &r, nil
}

// copyLog hands on the lines of a kept log; of a long one in pieces, of which all but
// the last have more behind them.
func (f *recordFiles) copyLog(id string, do func(piece []byte, more bool) error) error {
	file, err := f.openLog(id)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewReaderSize(file, 32<<10)
	var rest []byte // of the piece before: a character that goes on in this one
	for {
		piece, more, err := lines.ReadLine()
		if err == nil {
			if len(rest) > 0 {
				piece, rest = append(rest, piece...), nil
			}
			if n := wholeRunes(piece); more {
				piece, rest = piece[:n], slices.Clone(piece[n:])
			}
			err = do(piece, more)
		}
		switch err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}

// wholeRunes is the length of a text without the character that it breaks off in.
func wholeRunes(text []byte) int {
	for n := len(text) - 1; n >= max(0, len(text)-utf8.UTFMax+1); n-- {
		if utf8.RuneStart(text[n]) {
			if !utf8.FullRune(text[n:]) {
				return n
			}
			break
		}
	}
	return len(text)
}
