package upstream

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// ownLoad reads how busy this machine is.
func ownLoad() (Load, error) {
	l, err := readOwnLoad()
	if err != nil {
		return Load{}, fmt.Errorf("is this machine: %w", err)
	}
	return l, nil
}

func readOwnLoad() (Load, error) {
	cores, err := ownCores()
	if err != nil {
		return Load{}, err
	}
	lines, err := ownLoadLines()
	if err != nil {
		return Load{}, err
	}
	p := sampleParser{load: Load{System: "Linux", Cores: cores}, seen: map[string]bool{"df": true}}
	if p.load.DiskFree, err = ownDiskFree(); err != nil {
		return Load{}, err
	}
	return p.parse(lines)
}

// ownLoadLines are what loadScript would say.
func ownLoadLines() ([]string, error) {
	average, err := readProc("loadavg")
	if err != nil {
		return nil, err
	}
	memory, err := readProc("meminfo")
	if err != nil {
		return nil, err
	}
	lines := []string{"avg " + firstLine(average)}
	for line := range strings.Lines(memory) {
		for _, what := range [][2]string{{"MemTotal:", "total "}, {"MemAvailable:", "available "}} {
			if rest, found := strings.CutPrefix(line, what[0]); found {
				lines = append(lines, what[1]+strings.TrimSpace(rest))
			}
		}
	}
	for _, resource := range []string{"cpu", "memory", "io"} {
		if text, err := readProc("pressure/" + resource); err == nil { // the kernel may be without
			lines = append(lines, "pressure "+resource+" "+firstLine(text))
		}
	}
	return lines, nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// ownCores counts the processors that are online.
func ownCores() (int, error) {
	stat, err := readProc("stat")
	if err != nil {
		return 0, err
	}
	n := 0
	for line := range strings.Lines(stat) {
		if !strings.HasPrefix(line, "cpu") {
			break
		}
		n++
	}
	if n < 2 { // the first line is their sum
		return 0, fmt.Errorf("/proc/stat does not say how many processors there are")
	}
	return n - 1, nil
}

func readProc(name string) (string, error) {
	f, err := os.Open("/proc/" + name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	return string(text), err
}

func ownDiskFree() (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs("/nix/store", &fs); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: "/nix/store", Err: err}
	}
	return int64(min(fs.Bavail, maxLoadBytes/uint64(max(fs.Bsize, 1)))) * int64(fs.Bsize), nil
}
