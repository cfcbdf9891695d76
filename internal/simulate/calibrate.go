package simulate

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Calibration makes the trace by which the models are compared with real hosts:
// four clients that each want twelve builds of 1, 2 and 4 seconds at once, on
// three machines of two slots and speeds 1, 1 and 2. Its bound is 14 seconds. In
// which order a client asks depends on the hashes of its derivations: here on seed.
func Calibration(seed uint64) *Trace {
	order := rand.New(rand.NewPCG(seed, 48))
	t := &Trace{}
	for i, speed := range []float64{1, 1, 2} {
		t.Machines = append(t.Machines, Machine{
			Name: fmt.Sprintf("builder-%d", i+1), Systems: map[string]float64{linux: 1}, Slots: 2, Speed: speed, Link: 110 * mega,
		})
	}
	for i := range 4 {
		c := Client{Name: fmt.Sprintf("client-%d", i+1)}
		for _, n := range order.Perm(12) {
			c.Asks = append(c.Asks, Ask{Build: len(t.Builds)})
			t.Builds = append(t.Builds, Build{
				Name: fmt.Sprintf("work-%d-%d", i, n), System: linux, Work: time.Second << (n % 3), Output: 1000,
			})
		}
		t.Clients = append(t.Clients, c)
	}
	return t
}

// Makespans are those of the models of one policy for a trace in each of several
// orders, by seed from 0.
func Makespans(policy string, trace func(seed uint64) *Trace, n int, costs Costs) ([]time.Duration, error) {
	var spans []time.Duration
	for seed := range n {
		res, err := runPolicy(policy, trace(uint64(seed)), costs)
		if err != nil {
			return nil, err
		}
		spans = append(spans, res.Makespan)
	}
	return spans, nil
}
