package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"testing/fstest"

	"nixbastion/internal/nix/nar"
)

func checkRefusedNar(f *file) error {
	_, err := io.Copy(io.Discard, nar.NewReader(bytes.NewReader(f.data)))
	var syntax *nar.SyntaxError
	if !errors.As(err, &syntax) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it is not refused: %w", err)
	}
	return nil
}

// checkAcceptedNar is for an archive that is valid: what comes behind it in a
// stream must be left there.
func checkAcceptedNar(f *file) error {
	const behind = "behind"
	rest := bytes.NewReader(append(bytes.Clone(f.data), behind...))
	got, err := io.ReadAll(nar.NewReader(rest))
	if err != nil {
		return err
	}
	if rest.Len() != len(behind) {
		return fmt.Errorf("%d bytes behind the archive are left, not %d", rest.Len(), len(behind))
	}
	return sameBytes(got, f.data)
}

// listing is a node of Nix's JSON form of what an archive holds.
type listing struct {
	Type       string              `json:"type"`
	Entries    map[string]*listing `json:"entries,omitempty"`
	Executable *bool               `json:"executable,omitempty"`
	Size       *int                `json:"size,omitempty"`
	Target     string              `json:"target,omitempty"`
}

// checkListing packs a tree of the listed shape and lists the archive.
func checkListing(f *file) error {
	var root listing
	if err := json.Unmarshal(f.data, &root); err != nil {
		return err
	}
	tree := fstest.MapFS{}
	root.plant(tree, ".")
	var archive bytes.Buffer
	if err := nar.Pack(&archive, tree, "."); err != nil {
		return err
	}
	var again listing
	r := nar.NewVisitingReader(&archive, nar.Visitor{Node: again.add})
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	return sameJSON(&again, f.data)
}

func (l *listing) plant(tree fstest.MapFS, name string) {
	switch l.Type {
	case "directory":
		tree[name] = &fstest.MapFile{Mode: fs.ModeDir | 0o755}
	case "symlink":
		tree[name] = &fstest.MapFile{Mode: fs.ModeSymlink | 0o777, Data: []byte(l.Target)}
	default:
		mode := fs.FileMode(0o644)
		if *l.Executable {
			mode = 0o755
		}
		tree[name] = &fstest.MapFile{Mode: mode, Data: make([]byte, *l.Size)}
	}
	for base, entry := range l.Entries {
		entry.plant(tree, path.Join(name, base))
	}
}

// add is told the nodes in order, directories before what is in them.
func (l *listing) add(n nar.Node) {
	if n.Path != "" {
		base, rest, deeper := strings.Cut(n.Path, "/")
		if l.Entries[base] == nil {
			l.Entries[base] = new(listing)
		}
		if !deeper {
			rest = ""
		}
		n.Path = rest
		l.Entries[base].add(n)
		return
	}
	switch n.Kind {
	case nar.Directory:
		l.Type, l.Entries = "directory", make(map[string]*listing)
	case nar.Symlink:
		l.Type, l.Target = "symlink", n.Target
	default:
		size := int(n.Size)
		l.Type, l.Size, l.Executable = "regular", &size, &n.Executable
	}
}
