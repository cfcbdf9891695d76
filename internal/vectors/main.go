// Command vectors checks the codecs against the golden data of Nix's own tests,
// which is kept elsewhere: every file below a folder is decoded and encoded again,
// and compared with what lies beside it.
//
//	go run ./internal/vectors DIR
//
// DIR holds libstore and libutil as Nix has them below src/libstore-tests/data
// and src/libutil-tests/data, and may hold sessions: bytes recorded between real
// clients and daemons. It exits with 1 if a check fails, and with 2 if there is
// nothing to check or a file that no rule of rules.go knows, so that new data
// cannot lie there unseen.
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "vectors: usage: vectors DIR")
		os.Exit(2)
	}
	os.Exit(run(os.Args[1], os.Stdout, os.Stderr))
}

func run(dir string, out, errs io.Writer) int {
	report, err := check(os.DirFS(dir))
	if err != nil {
		fmt.Fprintf(errs, "vectors: %s: %v\n", dir, err)
		return 2
	}
	report.print(out)
	if report.failed() > 0 {
		return 1
	}
	return 0
}

// data are the folders that must be there.
var data = []string{"libstore", "libutil"}

// check applies the rules to every file.
func check(root fs.FS) (*report, error) {
	for _, dir := range data {
		if entries, err := fs.ReadDir(root, dir); err != nil || len(entries) == 0 {
			return nil, fmt.Errorf("no golden data in %s, which should be Nix's: %w", dir, errors.Join(err, fs.ErrNotExist))
		}
	}
	r := &report{folders: make(map[string]*folder)}
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || name == "README.md" {
			return err
		}
		return r.file(root, name)
	})
	if err == nil && len(r.unknown) > 0 {
		err = fmt.Errorf("no rule says how to check %q, or why not to", r.unknown)
	}
	return r, err
}

// report counts by folder.
type report struct {
	folders map[string]*folder
	unknown []string
}

type folder struct {
	checked, passed int
	failures        []string
	exempt          map[string][]string // by reason
}

func (r *report) folder(name string) *folder {
	dir := path.Dir(name)
	if r.folders[dir] == nil {
		r.folders[dir] = &folder{exempt: make(map[string][]string)}
	}
	return r.folders[dir]
}

func (r *report) file(root fs.FS, name string) error {
	found := ruleFor(name)
	if found == nil {
		r.unknown = append(r.unknown, name)
		return nil
	}
	dir := r.folder(name)
	if found.exempt != "" {
		dir.exempt[found.exempt] = append(dir.exempt[found.exempt], path.Base(name))
		return nil
	}
	bytes, err := fs.ReadFile(root, name)
	if err != nil {
		return err
	}
	dir.checked++
	if err := found.check(&file{root: root, name: name, data: bytes}); err != nil {
		dir.failures = append(dir.failures, fmt.Sprintf("%s: %v", name, err))
	} else {
		dir.passed++
	}
	return nil
}

func (r *report) passed() (n int) {
	for _, f := range r.folders {
		n += f.passed
	}
	return n
}

func (r *report) failed() (n int) {
	for _, f := range r.folders {
		n += len(f.failures)
	}
	return n
}

func (r *report) print(out io.Writer) {
	for _, name := range sortedKeys(r.folders) {
		f := r.folders[name]
		fmt.Fprintf(out, "%s: %d files checked, %d passed\n", name, f.checked, f.passed)
		for _, text := range f.failures {
			fmt.Fprintf(out, "  FAILED %s\n", text)
		}
		for _, reason := range sortedKeys(f.exempt) {
			fmt.Fprintf(out, "  not applicable (%s): %d files %v\n", reason, len(f.exempt[reason]), f.exempt[reason])
		}
	}
	fmt.Fprintf(out, "%d passed, %d failed\n", r.passed(), r.failed())
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
