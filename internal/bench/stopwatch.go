package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"nixbastion/internal/testbed"
)

// A sample is one run of a bench.
type sample struct {
	round int
	wall  time.Duration
	// CPU time of the hosts; of middle only if there is one.
	client, middle, builder time.Duration
	// memory is the largest RssAnon of all processes of the middle together, in
	// bytes.
	memory int64
	// foreign is what others used of the machine meanwhile, in cores.
	foreign float64
}

// watch runs a command on the client and measures it and the hosts it uses. The
// command must end with status 0.
func (l *lab) watch(ctx context.Context, client *testbed.Host, w *way, argv []string) (sample, error) {
	var output strings.Builder
	cmd := client.Command(ctx, argv...)
	cmd.Stdout, cmd.Stderr = &output, &output

	before, err := l.readMeters(client, w)
	if err != nil {
		return sample{}, err
	}
	memory := watchMemory(w.middle)
	runErr := client.Run(cmd)
	after, err := l.readMeters(client, w)
	peak := memory()
	if runErr != nil {
		return sample{}, fmt.Errorf("%s over %s: %w: %s", strings.Join(argv[:min(3, len(argv))], " "), w.name, runErr, reason(output.String()))
	}
	if err != nil {
		return sample{}, err
	}
	s := after.minus(before)
	s.memory = peak
	return s, nil
}

// meters are what the clocks of machine and hosts show at one moment.
type meters struct {
	at                      time.Time
	client, middle, builder time.Duration
	// ours is the CPU time of all hosts and this process, busy that of all the
	// machine.
	ours, busy time.Duration
}

func (l *lab) readMeters(client *testbed.Host, w *way) (m meters, err error) {
	if m.client, err = client.CPU(); err != nil {
		return m, err
	}
	if m.builder, err = l.builder.CPU(); err != nil {
		return m, err
	}
	if w.middle != nil {
		if m.middle, err = w.middle.CPU(); err != nil {
			return m, err
		}
	}
	if m.busy, err = busyTime(); err != nil {
		return m, err
	}
	own, err := ownTime()
	m.ours = m.client + m.middle + m.builder + own
	m.at = time.Now()
	return m, err
}

func (m meters) minus(before meters) sample {
	wall := m.at.Sub(before.at)
	foreign := (m.busy - before.busy) - (m.ours - before.ours)
	return sample{
		wall: wall, client: m.client - before.client, middle: m.middle - before.middle, builder: m.builder - before.builder,
		foreign: max(0, foreign.Seconds()/wall.Seconds()),
	}
}

// busyTime is what all processors spent for processes so far, and what other
// machines took from this one: user, nice, system and steal of proc(5). Time in
// interrupts is left out, as it is in the hosts' own.
func busyTime() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(strings.SplitN(string(stat), "\n", 2)[0])
	if len(fields) < 9 {
		return 0, fmt.Errorf("/proc/stat begins with %q", fields)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 8} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	const perSecond = 100 // USER_HZ
	return time.Duration(ticks) * time.Second / perSecond, nil
}

func ownTime() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// watchMemory looks at a host's memory until the returned function is called,
// which gives the largest value seen, in bytes. Looking costs 2 ms each time.
func watchMemory(h *testbed.Host) (peak func() int64) {
	if h == nil {
		return func() int64 { return 0 }
	}
	const interval = 200 * time.Millisecond
	stop := make(chan struct{})
	var most int64
	var looking sync.WaitGroup
	looking.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				most = max(most, rssAnon(h))
			}
		}
	})
	return func() int64 {
		close(stop)
		looking.Wait()
		return max(most, rssAnon(h)) // for runs that are shorter than the interval
	}
}

// rssAnon adds up the processes of a host. One that ends meanwhile counts zero.
func rssAnon(h *testbed.Host) int64 {
	processes, err := h.Processes()
	if err != nil {
		return 0
	}
	var sum int64
	for _, p := range processes {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
		sum += rssAnonOf(string(status))
	}
	return sum
}

// rssAnonOf reads the line "RssAnon: 123 kB" of proc(5) as bytes.
func rssAnonOf(status string) int64 {
	for line := range strings.Lines(status) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "RssAnon:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// reason is what a command's output says about its failure: from its first error
// on, or else its end.
func reason(output string) string {
	const most = 400
	if i := strings.Index(output, "error: "); i >= 0 {
		output = output[i:]
		return strings.TrimSpace(output[:min(most, len(output))])
	}
	return strings.TrimSpace(output[max(0, len(output)-most):])
}
