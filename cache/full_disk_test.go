package cache

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"nixbastion/internal/nix"
)

// onFullDisk lets a file be one that is never written: ENOSPC comes from the
// kernel.
func onFullDisk(t *testing.T, file **os.File) {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	(*file).Close()
	*file = full
}

// wantFullDisk wants an error that tells the user what is wrong, and the log
// where.
func wantFullDisk(t *testing.T, err error) {
	t.Helper()
	var user *nix.UserError
	if !errors.As(err, &user) || !strings.Contains(user.Message, "disk is full") || strings.Contains(user.Message, "/dev/full") {
		t.Errorf("the user reads %+v", err)
	}
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "/dev/full") {
		t.Errorf("the log reads %v", err)
	}
}

// Guards against an internal error for what an admin can mend and a user should
// be told.
func TestFullDiskIsSaidInASentence(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	t.Run("upload", func(t *testing.T) {
		o := obj("upload", "content")
		s, err := c.newSpool(forUpload, nil)
		if err != nil {
			t.Fatal(err)
		}
		onFullDisk(t, &s.file)
		err = s.take(t.Context(), o.info, strings.NewReader(string(o.nar)))
		s.discard(err)
		wantFullDisk(t, err)
	})
	t.Run("flat file", func(t *testing.T) {
		temp, err := c.TempFile(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer temp.Close()
		onFullDisk(t, &temp.File)
		_, err = temp.ReadFrom(strings.NewReader("content"))
		wantFullDisk(t, err)
	})
}

// Guards against an output that is promised although nothing of its size can be
// stored.
func TestOutputsThatDoNotFitAreRefusedBeforehand(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Size: 1 << 50, Reserve: 1 << 20})
	free, err := freeSpace(c.scratch.lock)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RoomFor(1, 2, 1<<20); err != nil {
		t.Errorf("small ones: %v", err)
	}
	for _, sizes := range [][]uint64{{uint64(free) + 1}, {uint64(free), uint64(free)}} {
		err := c.RoomFor(sizes...)
		var user *nix.UserError
		if !errors.As(err, &user) || !strings.Contains(user.Message, "disk is full") {
			t.Errorf("%v bytes with %d free: %v", sizes, free, err)
		}
	}
	c.room.store(1 << 50) // paths to evict
	if err := c.RoomFor(uint64(free) + 1); err != nil {
		t.Errorf("with paths that can go: %v", err)
	}
	c.room.store(-1 << 50)
	for _, size := range []uint64{1 << 50, 1<<63 + 1, 1<<64 - 1} {
		refusedWith(t, c.RoomFor(size), "do not fit into the proxy's store")
	}
}
