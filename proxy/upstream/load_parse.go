package upstream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

const (
	// maxLoadAnswer is the most that a builder may say to one question, in bytes; some
	// 500 are usual.
	maxLoadAnswer = 8 << 10
	// maxLoadLine is the longest of its lines.
	maxLoadLine = 1 << 10
)

// Bounds of what a builder may claim. They keep sums and products in range.
const (
	maxLoadAverage = 1e6
	maxLoadCores   = 1 << 16
	maxLoadBytes   = 1 << 60
)

// loadHead is what loadScript says first.
type loadHead struct {
	system string
	cores  int
	clock  time.Time
}

// loadReader reads the answers of loadScript.
type loadReader struct {
	in   *bufio.Reader
	head loadHead
	left int // bytes of this answer
}

func newLoadReader(r io.Reader) *loadReader {
	return &loadReader{in: bufio.NewReaderSize(r, maxLoadLine)}
}

// first reads the head and the first answer, and notes how far the clock is ahead
// of now.
func (r *loadReader) first(now func() time.Time) (Load, error) {
	r.left = maxLoadAnswer
	line, err := r.line()
	if err != nil {
		return Load{}, err
	}
	if r.head, err = parseLoadHead(line); err != nil {
		return Load{}, err
	}
	ahead := r.head.clock.Sub(now()).Truncate(time.Second)
	sample, err := r.next(1)
	sample.ClockAhead = ahead
	return sample, err
}

// next reads the answer to a question, which must be all that has come.
func (r *loadReader) next(number int) (Load, error) {
	r.left = maxLoadAnswer
	var lines []string
	for {
		line, err := r.line()
		if err != nil {
			return Load{}, err
		}
		if line == "end "+strconv.Itoa(number) {
			break
		}
		if strings.HasPrefix(line, "end ") {
			return Load{}, junk(line)
		}
		lines = append(lines, line)
	}
	if n := r.in.Buffered(); n > 0 {
		return Load{}, fmt.Errorf("says %d bytes more than it was asked", n)
	}
	return parseLoad(r.head, lines)
}

func (r *loadReader) line() (string, error) {
	slice, err := r.in.ReadSlice('\n')
	r.left -= len(slice)
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", fmt.Errorf("says a line of more than %d bytes, which begins with %q", maxLoadLine, clean(string(slice[:64])))
	case r.left < 0:
		return "", fmt.Errorf("says more than %d bytes", maxLoadAnswer)
	case err != nil:
		return "", err
	}
	return string(slice[:len(slice)-1]), nil
}

func parseLoadHead(line string) (loadHead, error) {
	words := strings.Fields(line)
	if len(words) == 2 && words[0] == "load" {
		return loadHead{}, fmt.Errorf("runs %s, whose load nobody here can read", clean(words[1]))
	}
	if len(words) != 4 || words[0] != "load" || words[1] != "Linux" && words[1] != "Darwin" {
		return loadHead{}, junk(line)
	}
	cores, err := loadInteger(words[2], maxLoadCores)
	if err != nil || cores == 0 {
		return loadHead{}, junk(line)
	}
	seconds, err := loadInteger(words[3], 1<<40)
	if err != nil {
		return loadHead{}, junk(line)
	}
	return loadHead{system: words[1], cores: int(cores), clock: time.Unix(seconds, 0)}, nil
}

func junk(line string) error { return fmt.Errorf("says what makes no sense here: %q", clean(line)) }

// sampleParser collects what the lines of an answer say. Each thing is said once.
type sampleParser struct {
	load     Load
	pressure Pressure
	// seen are the things that were said.
	seen map[string]bool
	// disk says that the next line is df's, and pages, if not 0, that lines of vm_stat
	// come, which count pages of so many bytes.
	disk  bool
	pages int64
}

func parseLoad(head loadHead, lines []string) (Load, error) {
	p := sampleParser{load: Load{System: head.system, Cores: head.cores}, seen: map[string]bool{}}
	return p.parse(lines)
}

// needed are the things without which there is no sample.
var needed = []struct{ what, words string }{
	{"avg", "its load average"},
	{"total", "how much memory it has"},
	{"available", "how much memory is available"},
	{"df", "how much space is free on /nix/store"},
}

func (p *sampleParser) parse(lines []string) (Load, error) {
	for _, line := range lines {
		if err := p.line(line); err != nil {
			return Load{}, err
		}
	}
	for _, n := range needed {
		if !p.seen[n.what] {
			return Load{}, fmt.Errorf("does not say %s", n.words)
		}
	}
	if p.seen["pressure cpu"] && p.seen["pressure memory"] && p.seen["pressure io"] {
		p.load.Pressure = &p.pressure
	}
	return p.load, nil
}

func (p *sampleParser) line(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	var err error
	switch {
	case p.disk:
		p.disk = false
		p.load.DiskFree, err = parseDF(line)
		err = p.once("df", err)
	case word == "Filesystem":
		p.disk, p.pages = true, 0
	case p.pages > 0:
		err = p.vmStat(line)
	case word == "avg":
		err = p.once(word, p.averages(rest))
	case word == "total":
		p.load.MemoryTotal, err = loadBytes(rest)
		err = p.once(word, err)
	case word == "available":
		p.load.MemoryAvailable, err = loadBytes(rest)
		err = p.once(word, err)
	case word == "pressure":
		err = p.pressureLine(rest)
	case word == "Mach" && p.load.System == "Darwin":
		p.pages, err = parsePageSize(line)
		err = p.once("available", err)
	default:
		err = errors.New("unknown")
	}
	if err != nil {
		return junk(line)
	}
	return nil
}

// once passes err on, or makes one of what was said before.
func (p *sampleParser) once(what string, err error) error {
	if p.seen[what] {
		return errors.New("said twice")
	}
	p.seen[what] = true
	return err
}

// averages reads "0.52 0.58 0.59 1/602 12345" of Linux or "{ 1.23 1.20 1.10 }" of
// macOS.
func (p *sampleParser) averages(text string) error {
	words := strings.Fields(text)
	if len(words) != 5 {
		return errors.New("not five words")
	}
	if words[0] == "{" && words[4] == "}" {
		words = words[1:]
	}
	var err error
	for i, into := range []*float64{&p.load.Load1, &p.load.Load5, &p.load.Load15} {
		if *into, err = loadDecimal(words[i], maxLoadAverage); err != nil {
			return err
		}
	}
	return nil
}

// pressureLine reads "io some avg10=1.23 avg60=... avg300=... total=...".
func (p *sampleParser) pressureLine(text string) error {
	words := strings.Fields(text)
	if len(words) != 6 || words[1] != "some" {
		return errors.New("not a line of /proc/pressure")
	}
	into := map[string]*float64{"cpu": &p.pressure.CPU, "memory": &p.pressure.Memory, "io": &p.pressure.IO}[words[0]]
	number, found := strings.CutPrefix(words[2], "avg10=")
	if into == nil || !found {
		return errors.New("not a line of /proc/pressure")
	}
	var err error
	*into, err = loadDecimal(number, 100)
	return p.once("pressure "+words[0], err)
}

// parseDF reads a row of df -Pk. What stands before and behind the numbers may have
// spaces in it.
func parseDF(line string) (free int64, err error) {
	words := strings.Fields(line)
	for i := len(words) - 5; i >= 1; i-- {
		if percent := words[i+3]; !strings.HasSuffix(percent, "%") && percent != "-" {
			continue
		}
		if _, err := loadInteger(words[i], maxLoadBytes>>10); err != nil {
			continue
		}
		if strings.HasPrefix(words[i+2], "-") {
			return 0, nil // less than what is reserved for root
		}
		free, err := loadInteger(words[i+2], maxLoadBytes>>10)
		return free << 10, err
	}
	return 0, errors.New("not a row of df")
}

// parsePageSize reads "Mach Virtual Memory Statistics: (page size of 16384 bytes)".
func parsePageSize(line string) (int64, error) {
	text, found := strings.CutPrefix(line, "Mach Virtual Memory Statistics: (page size of ")
	text, closed := strings.CutSuffix(text, " bytes)")
	if !found || !closed {
		return 0, errors.New("not the head of vm_stat")
	}
	size, err := loadInteger(text, 1<<30)
	if err == nil && size == 0 {
		err = errors.New("no size")
	}
	return size, err
}

// availablePages are those of vm_stat that programs can have at once. "Pages free"
// are without the speculative ones there.
var availablePages = map[string]bool{"Pages free": true, "Pages inactive": true, "Pages speculative": true}

// vmStat reads "Pages free:  12345." and adds up what is available.
func (p *sampleParser) vmStat(line string) error {
	name, number, found := strings.Cut(line, ":")
	number, dot := strings.CutSuffix(strings.TrimSpace(number), ".")
	if !found || !dot {
		return errors.New("not a line of vm_stat")
	}
	count, err := loadInteger(number, 1<<62)
	if err != nil || !availablePages[name] {
		return err
	}
	if err := p.once(name, nil); err != nil {
		return err
	}
	if count > (maxLoadBytes-p.load.MemoryAvailable)/p.pages {
		return errors.New("too much")
	}
	p.load.MemoryAvailable += count * p.pages
	return nil
}

// loadBytes reads "16384000 kB" or "17179869184 B".
func loadBytes(text string) (int64, error) {
	number, unit, _ := strings.Cut(text, " ")
	switch unit {
	case "kB":
		n, err := loadInteger(number, maxLoadBytes>>10)
		return n << 10, err
	case "B":
		return loadInteger(number, maxLoadBytes)
	}
	return 0, fmt.Errorf("unknown unit %q", unit)
}

// loadInteger reads digits and nothing else.
func loadInteger(text string, most int64) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, err
	}
	if int64(n) > most {
		return 0, fmt.Errorf("%d is more than %d", n, most)
	}
	return int64(n), nil
}

// loadDecimal reads digits with or without a dot, and nothing else that Go takes for
// a number.
func loadDecimal(text string, most float64) (float64, error) {
	if strings.Trim(text, "0123456789.") != "" {
		return 0, fmt.Errorf("%q is no number", text)
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, err
	}
	if f > most {
		return 0, fmt.Errorf("%g is more than %g", f, most)
	}
	return f, nil
}
