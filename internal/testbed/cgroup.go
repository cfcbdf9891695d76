package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A cgroup is a control group of version 2, used for one thing: the kernel adds
// up the CPU time of everything that ever ran in it. The empty string is a
// machine without a writable hierarchy of version 2.
type cgroup string

// cgroupOf names the control group of a bed, which may not exist.
func cgroupOf(bed string) cgroup {
	mount := cgroupMount()
	if mount == "" {
		return ""
	}
	return cgroup(filepath.Join(mount, "nixbastion-"+bed))
}

func cgroupMount() string {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	return ""
}

// newCgroup makes the control group of a bed if the machine lets it.
func newCgroup(bed string) cgroup { return cgroupOf(bed).make() }

// child makes a group within g.
func (g cgroup) child(name string) cgroup {
	if g == "" {
		return ""
	}
	return cgroup(filepath.Join(string(g), name)).make()
}

func (g cgroup) make() cgroup {
	if g == "" || os.Mkdir(string(g), 0o755) != nil {
		return ""
	}
	return g
}

// remove removes the group and those within, the innermost first. The kernel may
// still count a process that was waited for just now, so it tries for a moment.
func (g cgroup) remove() error {
	if g == "" {
		return nil
	}
	children, _ := filepath.Glob(filepath.Join(string(g), "*", "cgroup.procs"))
	for _, c := range children {
		if err := cgroup(filepath.Dir(c)).remove(); err != nil {
			return err
		}
	}
	return g.removeLeaf()
}

func (g cgroup) removeLeaf() error {
	var err error
	for range 1000 { // 10 s: a busy machine takes its time to bury a large process
		err = os.Remove(string(g))
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// cpu returns the CPU time that the group has used.
func (g cgroup) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(filepath.Join(string(g), "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(stat)) {
		if usec, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(usec), 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("control group %s does not count CPU time", g)
}

// join makes a process that is about to start begin its life in the group.
// leave must be called once it was started.
func (g cgroup) join(attr *syscall.SysProcAttr) (leave func(), err error) {
	if g == "" {
		return func() {}, nil
	}
	dir, err := os.Open(string(g))
	if err != nil {
		return nil, err
	}
	attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	return func() { dir.Close() }, nil
}
