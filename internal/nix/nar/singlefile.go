package nar

import (
	"errors"
	"io"
)

// ErrNotFile says that the root of an archive is no regular file.
var ErrNotFile = errors.New("archive does not hold a single regular file")

// File is the only file of an archive, as [SingleFile] opens it.
type File struct {
	// Size is the length of the contents in bytes, as the archive claims it:
	// nothing has been read of them yet.
	Size       uint64
	Executable bool

	r *Reader
}

// SingleFile reads the archive at src up to the contents of its root, which must
// be a regular file: ErrNotFile otherwise. Like [NewReader] it reads nothing of
// src that lies behind the archive, and no contents before Read is called.
func SingleFile(src io.Reader) (*File, error) {
	f := &File{}
	var root Kind
	f.r = NewVisitingReader(src, Visitor{Node: func(n Node) {
		root, f.Size, f.Executable = n.Kind, n.Size, n.Executable
	}})
	var unit [MaxTarget + 1]byte
	for root == 0 {
		if _, err := io.ReadFull(f.r, unit[:f.r.v.unit]); err != nil {
			return nil, err
		}
	}
	if root != Regular {
		return nil, ErrNotFile
	}
	return f, nil
}

// Read reads the contents. io.EOF says that the archive ended as it must.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if left := f.r.v.contents; left > 0 {
		return f.r.Read(p[:min(uint64(len(p)), left)])
	}
	var end [tokenLen + 8]byte
	for {
		if _, err := f.r.Read(end[:]); err != nil {
			return 0, err
		}
	}
}
