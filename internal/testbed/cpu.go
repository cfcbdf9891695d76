package testbed

import (
	"strconv"
	"time"
)

// CPU returns the CPU time that the host's processes have used so far, those
// that ended included. What runs by Command counts too where the machine lets
// us have control groups (version 2) and the command runs by Shell or Run;
// elsewhere only what the host's daemons started does, in steps of
// 10 ms.
func (h *Host) CPU() (time.Duration, error) {
	if h.cgroup != "" {
		return h.cgroup.cpu()
	}
	return h.procCPU()
}

// procCPU adds up what living processes used and what their ended children did.
func (h *Host) procCPU() (time.Duration, error) {
	all, err := h.Processes()
	if err != nil {
		return 0, err
	}
	var ticks int64
	for _, p := range all {
		ticks += cpuTicks(p.PID)
	}
	const perSecond = 100 // USER_HZ, the same on every Linux machine of ours
	return time.Duration(ticks) * time.Second / perSecond, nil
}

// cpuTicks sums utime, stime, cutime and cstime: fields 14 to 17 of proc(5).
func cpuTicks(pid int) int64 {
	fields := statFields(pid)
	if len(fields) < 15 {
		return 0
	}
	var sum int64
	for _, f := range fields[11:15] {
		n, _ := strconv.ParseInt(f, 10, 64)
		sum += n
	}
	return sum
}
