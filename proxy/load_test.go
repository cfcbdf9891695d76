package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/policy"
	"nixbastion/proxy/upstream"
)

// judge is a loads with one builder of 16 cores and 4 slots, in a bubble of virtual
// time.
type judge struct {
	*testing.T
	*loads
	wants policy.LoadLimits
	ours  int
	told  []string // what the router heard
}

func inJudge(t *testing.T, limits policy.LoadLimits, test func(j *judge)) {
	synctest.Test(t, func(t *testing.T) {
		j := &judge{T: t, wants: limits}
		j.loads = &loads{
			limits:     func(builder string) (policy.LoadLimits, int, bool) { return j.wants, 4, builder == "b1" },
			busy:       func(string) int { return j.ours },
			overloaded: func(_, reason string) { j.told = append(j.told, reason) },
			log:        slog.New(slog.DiscardHandler), builders: map[string]*judgement{},
		}
		test(j)
	})
}

// sample is of a builder on which nothing happens, as change changes it.
func (j *judge) sample(change func(*upstream.Load)) {
	l := upstream.Load{System: "Linux", Cores: 16, MemoryTotal: 64 << 30, MemoryAvailable: 60 << 30, DiskFree: 100 << 30}
	if change != nil {
		change(&l)
	}
	j.note("b1", l, nil)
}

// settle has samples come until the builds of an earlier process count no more.
func (j *judge) settle() {
	for range 120 {
		j.sample(nil)
		time.Sleep(loadEvery)
	}
}

func (j *judge) heard(want ...string) {
	j.Helper()
	if fmt.Sprintf("%q", j.told) != fmt.Sprintf("%q", want) {
		j.Errorf("the router heard %q, want %q", j.told, want)
	}
	j.told = nil
}

// Guards against thresholds that nothing passes, and against a builder that gets
// no reason, or another one with each sample.
func TestBusyBuilderGetsNoBuildsAndAReason(t *testing.T) {
	limits := policy.LoadLimits{MaxLoad: 1.5, MaxPressure: 40, MinMemory: 4 << 30, MinDisk: 5 << 30}
	for reason, change := range map[string]func(*upstream.Load){
		"load 35.2 on 16 cores is over 1.5 per core":                                            func(l *upstream.Load) { l.Load1 = 35.2 },
		"something waits for memory 60 % of the time, more than 40 %":                           func(l *upstream.Load) { l.Pressure = &upstream.Pressure{Memory: 60, IO: 50, CPU: 99} },
		"something waits for the disk 50 % of the time, more than 40 %":                         func(l *upstream.Load) { l.Pressure = &upstream.Pressure{IO: 50} },
		"1.0 GiB of memory available, less than 4.0 GiB":                                        func(l *upstream.Load) { l.MemoryAvailable = 1 << 30 },
		"2.1 GiB free on /nix/store, less than 5.0 GiB":                                         func(l *upstream.Load) { l.DiskFree = 2150 << 20 },
		"0 B of memory available, less than 4.0 GiB; 0 B free on /nix/store, less than 5.0 GiB": func(l *upstream.Load) { l.MemoryAvailable, l.DiskFree = 0, 0 },
	} {
		inJudge(t, limits, func(j *judge) {
			j.settle()
			j.heard()
			for i := range 5 {
				j.sample(func(l *upstream.Load) {
					change(l)
					l.Load1 += float64(i) // the words are of when it began
				})
			}
			j.heard(reason)
			j.sample(nil)
			j.heard("")
		})
	}
}

// Guards against builds that come and go with each sample.
func TestBusyBuilderGetsBuildsAgainWellBelowTheThreshold(t *testing.T) {
	inJudge(t, policy.LoadLimits{MaxLoad: 2, MinDisk: 9 << 30}, func(j *judge) {
		j.settle()
		load := func(n float64) { j.sample(func(l *upstream.Load) { l.Load1 = n }) }
		load(31.9)
		j.heard()
		load(32.1)
		load(31.9)
		load(29)
		j.heard("load 32.1 on 16 cores is over 2 per core")
		load(28.7)
		j.heard("")
		load(31)
		j.heard()
		free := func(n int64) { j.sample(func(l *upstream.Load) { l.DiskFree = n }) }
		free(9<<30 - 1)
		j.told = nil
		free(9<<30 + 1)
		free(10<<30 - 1)
		j.heard()
		free(10<<30 + 1)
		j.heard("")
	})
}

// Guards against a builder that gets no more builds because of those that it has,
// or had a moment ago. The load is that of the kernel's average when each of our
// builds uses all cores.
func TestOurOwnBuildsKeepNoBuildsAway(t *testing.T) {
	inJudge(t, policy.LoadLimits{MaxLoad: 2}, func(j *judge) {
		load := 4 * 16.0 // an earlier process left its builds
		for _, phase := range []struct {
			builds int
			lasts  time.Duration
		}{{0, 5 * time.Minute}, {4, 10 * time.Minute}, {0, 30 * time.Second}, {4, time.Minute}, {1, 10 * time.Minute}, {0, 10 * time.Minute}} {
			j.ours = phase.builds
			for end := time.Now().Add(phase.lasts); time.Now().Before(end); time.Sleep(loadEvery) {
				const fades = 0.92 // in 5 s, as the kernel has it: exp(-5/60)
				load = load*fades + float64(phase.builds)*16*(1-fades)
				j.sample(func(l *upstream.Load) { l.Load1 = load })
			}
		}
		j.heard()
		j.ours = 1
		for range 60 {
			j.sample(func(l *upstream.Load) { l.Load1 = 90 })
			time.Sleep(loadEvery)
		}
		if len(j.told) != 1 || !strings.HasPrefix(j.told[0], "load 90.0") {
			j.Errorf("the router heard %q", j.told)
		}
	})
}

// Guards against defaults that keep a builder from work.
func TestWithoutThresholdsNothingKeepsBuildsAway(t *testing.T) {
	inJudge(t, policy.LoadLimits{}, func(j *judge) {
		j.settle()
		j.sample(func(l *upstream.Load) {
			*l = upstream.Load{Cores: 1, Load1: 1e6, Pressure: &upstream.Pressure{CPU: 100, Memory: 100, IO: 100}}
		})
		j.heard()
	})
}

// Guards against a builder that is kept away for ever by a load that nobody sees
// any more, and against one that gets builds because it is too busy to answer.
func TestUnknownLoadKeepsNoBuildsAway(t *testing.T) {
	inJudge(t, policy.LoadLimits{MinDisk: 9 << 30}, func(j *judge) {
		full := func(l *upstream.Load) { l.DiskFree = 1 << 30 }
		j.sample(full)
		j.told = nil
		j.note("b1", upstream.Load{}, fmt.Errorf("%w since noon", upstream.ErrLoadLate))
		j.heard()
		j.note("b1", upstream.Load{}, errors.New("does not run a shell"))
		j.heard("")
		j.sample(full)
		j.told = nil
		j.wants.MinDisk = 0 // by a reload
		j.sample(full)
		j.heard("")
	})
}

// Guards against words about a builder that was removed and came back.
func TestRemovedBuilderIsForgotten(t *testing.T) {
	inJudge(t, policy.LoadLimits{MinDisk: 9 << 30}, func(j *judge) {
		full := func(l *upstream.Load) { l.DiskFree = 1 << 30 }
		j.sample(full)
		j.keep(nil)
		j.told = nil
		j.sample(full)
		j.heard("1.0 GiB free on /nix/store, less than 9.0 GiB")
		j.note("other", upstream.Load{}, nil)
		j.heard()
	})
}
