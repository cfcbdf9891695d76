package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A leftError says that not everything could be taken down.
type leftError struct{ err error }

func (e *leftError) Error() string { return "Something was left behind: " + e.err.Error() }
func (e *leftError) Unwrap() error { return e.err }

// A view is what the demo must leave as it found it. Others may work on the
// same machine meanwhile, so it holds only what can be told from theirs.
type view struct{ children, namespaces, mounts, folders []string }

// look takes a view of this moment.
func look() (view, error) {
	var v view
	var errs [4]error
	v.children, errs[0] = children()
	v.namespaces, errs[1] = namespaces()
	v.mounts, errs[2] = mounts()
	v.folders, errs[3] = folders()
	return v, errors.Join(errs[:]...)
}

// remains returns what is there now and was not before, nil if nothing is.
func (v view) remains() error {
	now, err := look()
	if err != nil {
		return err
	}
	return errors.Join(
		added("process", v.children, now.children),
		added("namespace", v.namespaces, now.namespaces),
		added("mount", v.mounts, now.mounts),
		added("folder", v.folders, now.folders),
	)
}

func added(what string, before, now []string) error {
	var errs []error
	for _, thing := range now {
		if !slices.Contains(before, thing) {
			errs = append(errs, fmt.Errorf("%s %s", what, thing))
		}
	}
	return errors.Join(errs...)
}

// children are the processes that this one started and that have not ended.
// Each host hangs on one of them.
func children() ([]string, error) {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	var all []string
	for _, list := range lists {
		// A thread that has ended meanwhile has no list any more.
		if pids, err := os.ReadFile(list); err == nil {
			all = append(all, strings.Fields(string(pids))...)
		}
	}
	return all, err
}

// namespaceLink is how the kernel names a namespace, as in "net:[4026531840]".
var namespaceLink = regexp.MustCompile(`^(cgroup|ipc|mnt|net|pid|time|user|uts):\[[0-9]+\]$`)

// namespaces are those that this process keeps alive by open files. One
// without a process, an open file or a mount does not exist.
func namespaces() ([]string, error) {
	fds, err := filepath.Glob("/proc/self/fd/*")
	var all []string
	for _, fd := range fds {
		// The one of the listing itself is closed already.
		if target, err := os.Readlink(fd); err == nil && namespaceLink.MatchString(target) {
			all = append(all, target)
		}
	}
	return all, err
}

// mounts are those of the machine that lead to a bed of this process.
func mounts() ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	var all []string
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, ownBeds()) {
			all = append(all, strings.TrimSpace(line))
		}
	}
	return all, err
}

// folders are the beds of this process on disk, and its control groups.
func folders() ([]string, error) {
	beds, err := filepath.Glob(filepath.Join(cacheDir(), "beds", ownBeds()+"*"))
	groups, err2 := filepath.Glob("/sys/fs/cgroup/*" + ownBeds() + "*")
	return append(beds, groups...), errors.Join(err, err2)
}

// ownBeds is how the names of this process's beds begin.
func ownBeds() string { return fmt.Sprintf("bed-%d-", os.Getpid()) }

// cacheDir is where beds are.
func cacheDir() string {
	if dir := os.Getenv("NIXBASTION_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/nixbastion"
}
