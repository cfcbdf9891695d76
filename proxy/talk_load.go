package proxy

import (
	"time"

	"nixbastion/proxy/upstream"
)

// loadStatus is how busy a builder is, with all that runs there.
type loadStatus struct {
	System string  `json:"system"`
	Load1  float64 `json:"load1"`
	Load5  float64 `json:"load5"`
	Load15 float64 `json:"load15"`
	Cores  int     `json:"cores"`
	// Bytes.
	MemoryTotal     int64 `json:"memory_total"`
	MemoryAvailable int64 `json:"memory_available"`
	DiskFree        int64 `json:"disk_free"`
	// Pressure is missing where the builder's kernel does not tell.
	Pressure *pressureStatus `json:"pressure,omitempty"`
	// ClockAheadSeconds is by how much the builder's clock is ahead of ours.
	ClockAheadSeconds int64 `json:"clock_ahead_seconds"`
	// AgeSeconds is how long ago that was.
	AgeSeconds int64 `json:"age_seconds"`

	text string // for people
}

// pressureStatus has the share of the last 10 seconds in which something waited, in
// percent.
type pressureStatus struct {
	CPU    float64 `json:"cpu"`
	Memory float64 `json:"memory"`
	IO     float64 `json:"io"`
}

func newLoadStatus(l upstream.Load, age time.Duration) *loadStatus {
	s := &loadStatus{
		System: l.System, Load1: l.Load1, Load5: l.Load5, Load15: l.Load15, Cores: l.Cores,
		MemoryTotal: l.MemoryTotal, MemoryAvailable: l.MemoryAvailable, DiskFree: l.DiskFree,
		ClockAheadSeconds: int64(l.ClockAhead / time.Second), AgeSeconds: int64(age / time.Second), text: l.String(),
	}
	if p := l.Pressure; p != nil {
		s.Pressure = &pressureStatus{CPU: p.CPU, Memory: p.Memory, IO: p.IO}
	}
	return s
}

// addLoads adds what is known of the builders' load.
func (s *statusAnswer) addLoads(of func(builder string) (upstream.Load, time.Time, error), now time.Time) {
	for i := range s.Builders {
		b := &s.Builders[i]
		load, at, err := of(b.Name)
		if err != nil {
			b.LoadUnknown = err.Error()
			continue
		}
		b.Load = newLoadStatus(load, now.Sub(at))
	}
}

func (s *statusAnswer) printLoads(page *page) {
	for i := range s.Builders {
		switch b := &s.Builders[i]; {
		case b.Load != nil:
			page.line("  %s has %s", b.Name, b.Load.text)
		case b.LoadUnknown != "" && b.State != "down" && b.State != "removed":
			page.line("  %s: no load known: it %s", b.Name, b.LoadUnknown)
		}
	}
}
