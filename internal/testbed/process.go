package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A Process runs on a host.
type Process struct {
	// PID is its number as this process sees it: good for /proc and kill.
	PID int
	// Command is the command line, its words joined by spaces.
	Command string
}

// Processes returns what runs on the host, lowest number first.
func (h *Host) Processes() ([]Process, error) {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", h.pid))
	if err != nil {
		return nil, fmt.Errorf("host %s has ended: %w", h.spec.Name, err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		return nil, err
	}
	var found []Process
	for _, link := range links {
		// A process that ends meanwhile has no link any more.
		if ns, err := os.Readlink(link); err != nil || ns != own {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
		found = append(found, Process{pid, commandLine(pid)})
	}
	slices.SortFunc(found, func(a, b Process) int { return a.PID - b.PID })
	return found, nil
}

func commandLine(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.TrimSpace(string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '})))
}

// PIDs returns the processes of the host whose command line the regular
// expression matches, numbered as in Process.PID.
func (h *Host) PIDs(pattern string) ([]int, error) {
	expr, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	all, err := h.Processes()
	var pids []int
	for _, p := range all {
		if expr.MatchString(p.Command) {
			pids = append(pids, p.PID)
		}
	}
	return pids, err
}

// RunningBuilds returns the builds whose processes run on the host at this
// moment, by the names of their temporary folders. It asks the kernel and not
// Nix: a build is a process that Nix gave a folder to build in.
func (h *Host) RunningBuilds() ([]string, error) {
	all, err := h.Processes()
	if err != nil {
		return nil, err
	}
	var builds []string
	for _, p := range all {
		if top := buildTop(p.PID); top != "" && !slices.Contains(builds, top) {
			builds = append(builds, top)
		}
	}
	return builds, nil
}

func buildTop(pid int) string {
	environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		if top, ok := bytes.CutPrefix(v, []byte("NIX_BUILD_TOP=")); ok {
			return string(top)
		}
	}
	return ""
}

// Freeze stops every process of the host where it stands: its kernel still
// answers the network, its programs do not. Thaw lets them go on.
func (h *Host) Freeze() error {
	told := map[int]bool{}
	// One that waits in the kernel stops when it comes back from there. It may never
	// do so: the parent of a vfork waits for a child that is stopped.
	stopped := func(pid int, state string) bool {
		return state == "T" || state == "Z" || state == "D" && told[pid]
	}
	// Those that still ran may have started others meanwhile.
	for {
		running, err := h.processesInState(func(pid int, state string) bool { return !stopped(pid, state) })
		if err != nil || len(running) == 0 {
			return err
		}
		if err := signalAll(running, syscall.SIGSTOP); err != nil {
			return err
		}
		for _, pid := range running {
			told[pid] = true
		}
	}
}

// Thaw undoes Freeze.
func (h *Host) Thaw() error {
	stopped, err := h.processesInState(func(_ int, state string) bool { return state == "T" || state == "D" })
	if err != nil {
		return err
	}
	return signalAll(stopped, syscall.SIGCONT)
}

func (h *Host) processesInState(match func(pid int, state string) bool) ([]int, error) {
	all, err := h.Processes()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range all {
		// One that has ended meanwhile has no state.
		if fields := statFields(p.PID); fields != nil && match(p.PID, fields[0]) {
			pids = append(pids, p.PID)
		}
	}
	return pids, nil
}

func signalAll(pids []int, sig syscall.Signal) error {
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// statFields returns the fields of /proc/PID/stat from the state on, which is
// field 3 of proc(5); nil if there is no such process.
func statFields(pid int) []string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// The name before may have any character, brackets among them.
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
}
