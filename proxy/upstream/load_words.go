package upstream

import "fmt"

// String says it for people, in one line.
func (l Load) String() string {
	text := fmt.Sprintf("load %.2f on %d cores, %s of %s of memory available, %s free on /nix/store",
		l.Load1, l.Cores, Bytes(l.MemoryAvailable), Bytes(l.MemoryTotal), Bytes(l.DiskFree))
	if p := l.Pressure; p != nil {
		text += fmt.Sprintf(", pressure cpu %.0f %%, memory %.0f %%, disk %.0f %%", p.CPU, p.Memory, p.IO)
	}
	return text
}

// Bytes is a number of bytes in words: "2.1 GiB".
type Bytes int64

// String has one digit behind the point from KiB on.
func (n Bytes) String() string {
	size, unit := float64(n), ""
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if size < 1023.95 || unit == "" && size < 1024 { // nothing is 1024.0 of them
			break
		}
		size, unit = size/1024, next
	}
	if unit == "" {
		return fmt.Sprintf("%d B", int64(n))
	}
	return fmt.Sprintf("%.1f %s", size, unit)
}
