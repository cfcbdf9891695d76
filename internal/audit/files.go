package audit

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Files that are full are named FILE.TIME, in order of names.
const rotatedTime = "2006-01-02T15-04-05.000Z"

// Files returns the files of a log that are there, the oldest first, FILE itself
// last.
func Files(file string) ([]string, error) {
	all, err := rotated(file)
	if err != nil {
		return nil, err
	}
	switch _, err := os.Stat(file); {
	case err == nil:
		return append(all, file), nil
	case errors.Is(err, fs.ErrNotExist):
		return all, nil
	default:
		return nil, err
	}
}

// rotated returns those that are full.
func rotated(file string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(file)) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []string
	for _, entry := range entries {
		if _, is := timeOf(filepath.Base(file), entry.Name()); is {
			all = append(all, filepath.Join(filepath.Dir(file), entry.Name()))
		}
	}
	return all, err
}

// timeOf reads the time in the name of a full file.
func timeOf(base, name string) (time.Time, bool) {
	text, ok := strings.CutPrefix(name, base+".")
	if !ok {
		return time.Time{}, false
	}
	t, err := time.Parse(rotatedTime, text)
	return t, err == nil
}

// rotatedName is where a file goes at a time: behind all that are there, whatever
// the clock says.
func rotatedName(file string, now time.Time) (string, error) {
	all, err := rotated(file)
	if err != nil {
		return "", err
	}
	if len(all) > 0 {
		last, _ := timeOf(filepath.Base(file), filepath.Base(all[len(all)-1]))
		if !now.Truncate(time.Millisecond).After(last) {
			now = last.Add(time.Millisecond)
		}
	}
	return file + "." + now.UTC().Format(rotatedTime), nil
}

// removeOldest removes full files beyond keep and returns which.
func removeOldest(file string, keep int) (removed []string, err error) {
	all, err := rotated(file)
	for len(all) > keep && err == nil {
		err = os.Remove(all[0])
		removed, all = append(removed, all[0]), all[1:]
	}
	return removed, err
}

// InOrder sorts files of one log that were named in any order.
func InOrder(files []string) []string {
	sorted := slices.Clone(files)
	slices.SortStableFunc(sorted, func(a, b string) int {
		timeA, fullA := fullSince(a)
		timeB, fullB := fullSince(b)
		switch {
		case fullA && fullB:
			return timeA.Compare(timeB)
		case fullA == fullB:
			return 0
		}
		return cmp.Compare(orderOf(fullA), orderOf(fullB))
	})
	return sorted
}

func orderOf(full bool) int {
	if full {
		return 0
	}
	return 1
}

// fullSince reads the time that any name ends in.
func fullSince(name string) (time.Time, bool) {
	at := len(name) - len(rotatedTime)
	if at < 1 || name[at-1] != '.' {
		return time.Time{}, false
	}
	return timeOf(name[:at-1], name)
}

// syncDir makes names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// makeDir makes the directory of a file, for its owner alone.
func makeDir(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("make the directory of the audit log: %w", err)
	}
	return nil
}
