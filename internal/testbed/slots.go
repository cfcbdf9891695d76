package testbed

import (
	"bufio"
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
)

// slotDir holds the files by which a builder's capacity is made real: Nix does
// not enforce max-jobs across connections, so with sleeping builds an overloaded
// builder would look as good as an idle one. A build with Work holds one of N
// lock files while it works; those who wait hold the queue file one after
// another, which the kernel grants in order of arrival.
const slotDir = "/var/lib/testbed"

// slotFiles are writable for build users, which are other accounts.
func (s HostSpec) slotFiles(l *layer) {
	l.write(path.Join(slotDir, "slots"), strconv.Itoa(s.Slots)+"\n", 0o644)
	l.write(path.Join(slotDir, "speed"), strconv.FormatFloat(s.Speed, 'f', -1, 64)+"\n", 0o644)
	l.write(path.Join(slotDir, "queue"), "", 0o666)
	l.write(path.Join(slotDir, "builds"), "", 0o666)
	for n := 1; n <= s.Slots; n++ {
		l.write(path.Join(slotDir, fmt.Sprintf("slot.%d", n)), "", 0o666)
	}
}

// workScript takes a slot, works for $1 seconds at the builder's speed and
// writes down when. One line is one write, so lines of several builds do not mix.
const workScript = `
work() {
  d=` + slotDir + ` arrived=$(date +%s.%N)
  exec 9<$d/queue; flock 9
  while :; do
    for n in $(seq $(cat $d/slots)); do exec 8<$d/slot.$n; flock -n 8 && break 2; done
    sleep 0.02
  done
  exec 9<&-
  started=$(date +%s.%N)
  sleep $(awk -v t=$1 -v s=$(cat $d/speed) 'BEGIN { printf "%.3f", t / s }')
  echo "$name $arrived $started $(date +%s.%N)" >> $d/builds
  exec 8<&-
}
`

// BuildRecord tells of a build with Work that ended: when it arrived on the
// builder, had a slot, and was done with its work.
type BuildRecord struct {
	Name                   string
	Arrived, Started, Done time.Time
}

// BuildRecords returns the builds with Work that ended on this builder, in the
// order of their ends.
func (h *Host) BuildRecords(ctx context.Context) ([]BuildRecord, error) {
	text, err := h.ReadFile(ctx, path.Join(slotDir, "builds"))
	if err != nil {
		return nil, err
	}
	var records []BuildRecord
	lines := bufio.NewScanner(strings.NewReader(string(text)))
	for lines.Scan() {
		r, err := parseBuildRecord(lines.Text())
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, lines.Err()
}

func parseBuildRecord(line string) (BuildRecord, error) {
	f := strings.Fields(line)
	if len(f) != 4 {
		return BuildRecord{}, fmt.Errorf("build record %q has not four fields", line)
	}
	var times [3]time.Time
	for i := range times {
		seconds, err := strconv.ParseFloat(f[i+1], 64)
		if err != nil {
			return BuildRecord{}, fmt.Errorf("build record %q: %w", line, err)
		}
		times[i] = time.UnixMicro(int64(seconds * 1e6))
	}
	return BuildRecord{f[0], times[0], times[1], times[2]}, nil
}

// PeakBuilds is how many of the builds held a slot at the same moment, at most.
func PeakBuilds(records []BuildRecord) int {
	peak := 0
	for _, a := range records {
		n := 0
		for _, b := range records {
			if !b.Started.After(a.Started) && b.Done.After(a.Started) {
				n++
			}
		}
		peak = max(peak, n)
	}
	return peak
}
