package fleet

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"nixbastion/internal/testbed"
)

// A sight is what can be seen of builders and machine at one moment.
type sight struct {
	records [][]testbed.BuildRecord // by builder: what has ended so far
	bytes   int64                   // that builders received
	// Of all processors, in ticks.
	busy, all int64
}

func (f *Fleet) look(ctx context.Context) (s sight, err error) {
	for _, b := range f.builders {
		records, err := b.BuildRecords(ctx)
		if err != nil {
			return s, err
		}
		s.records = append(s.records, records)
		received, err := receivedBytes(ctx, b)
		if err != nil {
			return s, err
		}
		s.bytes += received
	}
	s.busy, s.all, err = processors()
	return s, err
}

// receivedBytes is what came in through a host's cable.
func receivedBytes(ctx context.Context, h *testbed.Host) (int64, error) {
	text, err := h.ReadFile(ctx, "/proc/net/dev")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if _, numbers, ok := strings.Cut(line, "eth0:"); ok {
			return strconv.ParseInt(strings.Fields(numbers)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no eth0 in /proc/net/dev", h.Name())
}

// processors reads the first line of proc(5)'s stat: user, nice, system, idle,
// iowait and so on.
func processors() (busy, all int64, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		const idle, iowait, guest = 3, 4, 8
		if i >= guest {
			break // counted as user already
		}
		all += n
		if i != idle && i != iowait {
			busy += n
		}
	}
	return busy, all, nil
}

// since are the builds that ended between two sights.
func (s sight) since(before sight) (records []testbed.BuildRecord) {
	for i, all := range s.records {
		records = append(records, all[len(before.records[i]):]...)
	}
	return records
}

func (s sight) busySince(before sight) float64 {
	return float64(s.busy-before.busy) / float64(max(1, s.all-before.all))
}
