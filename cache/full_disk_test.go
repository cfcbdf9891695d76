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
