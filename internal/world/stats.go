package world

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// RssAnon is the memory of the program itself, in bytes: what it allocated, not
// the files that the kernel keeps for it.
func (p *Proxy) RssAnon() (int64, error) {
	file := fmt.Sprintf("/proc/%d/status", p.PID())
	status, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no RssAnon", file)
}

// CPU is the time that the program used since it was started, in steps of 10 ms.
func (p *Proxy) CPU() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return 0, err
	}
	// utime and stime are fields 14 and 15 of proc(5); the name before may have
	// blanks and brackets, and ends with the last bracket.
	text := string(stat)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("process %d has no times: %q", p.PID(), text)
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	const perSecond = 100 // USER_HZ
	return time.Duration(ticks) * time.Second / perSecond, nil
}

// PeakRssAnon asks for RssAnon all the time until the returned function is
// called, which gives the largest answer in bytes.
func (p *Proxy) PeakRssAnon() (peak func() int64) {
	const interval = 10 * time.Millisecond
	stop, largest := make(chan struct{}), make(chan int64)
	go func() {
		var most int64
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			// An error means that the program has ended: then nothing grows.
			if now, err := p.RssAnon(); err == nil {
				most = max(most, now)
			}
			select {
			case <-stop:
				largest <- most
				return
			case <-tick.C:
			}
		}
	}()
	return func() int64 {
		close(stop)
		return <-largest
	}
}
