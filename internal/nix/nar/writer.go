package nar

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
)

func appendString(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
	b = append(b, s...)
	return append(b, make([]byte, padding(uint64(len(s))))...)
}

// FileHeader returns what comes before the contents in the archive of a single
// file of size bytes.
func FileHeader(executable bool, size uint64) []byte {
	return append([]byte(literal("nix-archive-1")), regularHeader(executable, size)...)
}

// FileTrailer returns what comes behind the contents in the archive of a single
// file of size bytes.
func FileTrailer(size uint64) []byte {
	return append(make([]byte, padding(size)), unitClose...)
}

// FileSize returns the length of the archive of a single file of size bytes.
func FileSize(executable bool, size uint64) uint64 {
	return uint64(len(FileHeader(executable, size))) + size + uint64(len(FileTrailer(size)))
}

func regularHeader(executable bool, size uint64) []byte {
	b := []byte(literal("(", "type", "regular"))
	if executable {
		b = append(b, literal("executable", "")...)
	}
	b = append(b, unitContents...)
	return binary.LittleEndian.AppendUint64(b, size)
}

// WriteRegular writes the archive of a single file whose contents are the next
// size bytes of r. It fails with io.ErrUnexpectedEOF if r has fewer.
func WriteRegular(w io.Writer, executable bool, size uint64, r io.Reader) error {
	p := packer{w: w}
	p.write([]byte(literal("nix-archive-1")))
	p.regular(executable, size, r)
	return p.err
}

// WriteSymlink writes the archive of a symlink.
func WriteSymlink(w io.Writer, target string) error {
	p := packer{w: w}
	p.write([]byte(literal("nix-archive-1")))
	p.symlink(target)
	return p.err
}

// Pack writes the archive of the file, symlink or directory name in fsys. Times,
// owners and all permissions but the owner's x are not recorded.
func Pack(w io.Writer, fsys fs.FS, name string) error {
	p := packer{w: w, fsys: fsys}
	p.write([]byte(literal("nix-archive-1")))
	p.pack(name, 1)
	return p.err
}

// packer writes nodes; the first error stops everything.
type packer struct {
	w    io.Writer
	fsys fs.FS
	err  error
}

func (p *packer) write(b []byte) {
	if p.err == nil {
		_, p.err = p.w.Write(b)
	}
}

func (p *packer) strings(tokens ...string) { p.write([]byte(literal(tokens...))) }

func (p *packer) regular(executable bool, size uint64, r io.Reader) {
	if size > maxContents {
		p.fail(fmt.Errorf("a file of %d bytes fits no archive", size))
	}
	p.write(regularHeader(executable, size))
	if p.err == nil {
		_, p.err = io.CopyN(p.w, r, int64(size))
	}
	if p.err == io.EOF {
		p.err = io.ErrUnexpectedEOF
	}
	p.write(FileTrailer(size))
}

func (p *packer) symlink(target string) {
	if target == "" || len(target) > MaxTarget {
		p.fail(fmt.Errorf("a symlink's target of %d bytes", len(target)))
	}
	p.strings("(", "type", "symlink", "target", target, ")")
}

func (p *packer) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

func (p *packer) pack(name string, depth int) {
	info, err := fs.Lstat(p.fsys, name)
	switch {
	case err != nil:
		p.fail(err)
	case depth > MaxDepth:
		p.fail(fmt.Errorf("%s: more than %d nodes inside each other", name, MaxDepth))
	case info.Mode().IsRegular():
		p.packRegular(name, info)
	case info.IsDir():
		p.packDirectory(name, depth)
	case info.Mode().Type() == fs.ModeSymlink:
		target, err := fs.ReadLink(p.fsys, name)
		p.fail(err)
		p.symlink(target)
	default:
		p.fail(fmt.Errorf("%s: neither file, directory nor symlink", name))
	}
}

func (p *packer) packRegular(name string, info fs.FileInfo) {
	file, err := p.fsys.Open(name)
	if err != nil {
		p.fail(err)
		return
	}
	p.regular(info.Mode()&0o100 != 0, uint64(info.Size()), file)
	p.fail(file.Close())
}

func (p *packer) packDirectory(name string, depth int) {
	entries, err := fs.ReadDir(p.fsys, name)
	p.fail(err)
	p.strings("(", "type", "directory")
	for _, e := range entries {
		if p.err != nil {
			return
		}
		if len(e.Name()) > MaxName {
			p.fail(errors.New("name is longer than Nix allows"))
		}
		p.strings("entry", "(", "name", e.Name(), "node")
		p.pack(path.Join(name, e.Name()), depth+1)
		p.strings(")")
	}
	p.strings(")")
}
