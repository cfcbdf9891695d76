package fleet

import (
	"fmt"
	"time"

	"nixbastion/internal/simulate"
)

// Mixed makes the trace by which the models are calibrated, see [simulate.Calibration],
// of three packages: builds of one duration have one name, in many versions.
func Mixed(seed uint64) *simulate.Trace {
	t := simulate.Calibration(seed)
	for i := range t.Builds {
		b := &t.Builds[i]
		b.Name = fmt.Sprintf("takes%ds-%d", b.Work/time.Second, i)
	}
	return t
}

// Sample makes a trace of 150 derivations and four clients that is like the synthetic
// one of internal/simulate and small enough for the hosts of one machine: four
// builders with a quarter of the slots, durations scaled so that no placement is
// quicker than bound, and a twentieth of the bytes. All is asked for at once.
func Sample(seed uint64, bound time.Duration) *simulate.Trace {
	t := simulate.Synthetic(seed, simulate.Shape{Derivations: 150, Clients: 4, Roots: 40, NoBigParallel: true})
	t.Machines = quarter(t.Machines, "fast-1", "usual-1", "usual-2", "slow-1")
	scale := float64(bound) / float64(t.Bound())
	for i := range t.Builds {
		b := &t.Builds[i]
		b.Work = time.Duration(float64(b.Work) * scale)
		b.Estimate = time.Duration(float64(b.Estimate) * scale)
		b.Output /= lighter
		for j := range b.Sources {
			b.Sources[j].Size /= lighter
		}
	}
	for i := range t.Clients {
		for j := range t.Clients[i].Asks {
			t.Clients[i].Asks[j].At = 0
		}
	}
	return t
}

// lighter is how much smaller paths are than in the synthetic trace: each byte costs
// processors at both ends, of which this machine has few.
const lighter = 20

// quarter picks machines by name and leaves them a fourth of their slots.
func quarter(all []simulate.Machine, names ...string) []simulate.Machine {
	var picked []simulate.Machine
	for _, name := range names {
		for _, m := range all {
			if m.Name == name {
				m.Slots = max(1, m.Slots/4)
				picked = append(picked, m)
			}
		}
	}
	return picked
}
