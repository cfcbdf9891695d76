package main

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// limitMemory has Go's collector keep below the limit that the kernel has for us
// (MemoryMax= of the unit, or that of a container), where it would end us. A
// GOMEMLIMIT in the environment is the admin's word, and there need not be any. What
// sessions of clients may take is a part of the limit, so it comes before the proxy.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if limit := kernelMemoryLimit(os.DirFS("/")); limit < math.MaxInt64 {
		debug.SetMemoryLimit(limit / 10 * 9) // the rest is for what is not Go's: the index is mapped
	}
}

// kernelMemoryLimit is the least limit of the process's control group and those above
// it, in bytes, of either version; the largest number if there is none.
func kernelMemoryLimit(root fs.FS) int64 {
	text, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return math.MaxInt64
	}
	least := int64(math.MaxInt64)
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3) // hierarchy:controllers:group
		if len(parts) != 3 {
			continue
		}
		switch parts[1] {
		case "":
			least = min(least, leastLimit(root, "sys/fs/cgroup", parts[2], "memory.max"))
		case "memory":
			least = min(least, leastLimit(root, "sys/fs/cgroup/memory", parts[2], "memory.limit_in_bytes"))
		}
	}
	return least
}

// noLimit is what is no limit, in bytes: version 1 has a number for none.
const noLimit = 1 << 50

// leastLimit looks at a group and at all above it. Inside a container the name of the
// group may be that of the host, where there is nothing; then its mount is the group.
func leastLimit(root fs.FS, mount, group, file string) int64 {
	least := int64(math.MaxInt64)
	for group = path.Clean("/" + group); ; group = path.Dir(group) {
		text, err := fs.ReadFile(root, path.Join(mount, group, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return least
		}
		// "max", or in version 1 a number that is larger than any memory.
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && limit > 0 {
			least = min(least, limit)
		}
		if group == "/" {
			break
		}
	}
	if least >= noLimit {
		return math.MaxInt64
	}
	return least
}
