package cache

import (
	"os"

	"golang.org/x/sys/unix"
)

// startWriteback asks the kernel to begin writing a part of a file, so that the
// fsync at its end finds little to do. It is a hint: errors are of no account.
func startWriteback(f *os.File, offset, length int64) {
	_ = unix.SyncFileRange(int(f.Fd()), offset, length, unix.SYNC_FILE_RANGE_WRITE)
}

// syncFileSystem makes all that was written to the file system of f durable.
func syncFileSystem(f *os.File) error {
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// freeSpace returns how many bytes can still be written to the file system of f.
func freeSpace(f *os.File) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return 0, os.NewSyscallError("fstatfs", err)
	}
	return int64(fs.Bavail) * int64(fs.Bsize), nil
}

// readOnce tells the kernel that a file is read only once, so that reading it does
// not push out of the page cache what clients use. It is a hint, for Linux 6.3.
func readOnce(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_NOREUSE) }
