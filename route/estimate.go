package route

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// jobLimit is how many jobs are remembered; each takes a few hundred bytes.
	jobLimit = 1 << 15
	// systemLimit is for how many systems a job's durations are kept apart.
	systemLimit = 8
	// followerLimit is how many jobs are remembered to wait for another.
	followerLimit = 24
	// firstGuess is the duration of anything before a build has ended, in seconds.
	firstGuess = 60
	// unknownShare is which part of the latest builds took less than one of which
	// nothing is known is thought to take. What is short loses little by being taken for
	// long, and what is long loses hours on a slow builder.
	unknownShare = 0.95
	// newest is the weight of a job's latest duration against the earlier ones.
	newest = 0.3
	// least is the least duration, in seconds: who gets a slot has it for some time.
	least = 0.05
	// recentLimit is of how many builds the guess for unknown ones is made.
	recentLimit = 255
	// tailAge is how long what follows a job is not reckoned anew, in seconds.
	tailAge = 15
	// tailBudget is how many jobs are looked at to reckon what follows one.
	tailBudget = 1000
)

// estimates knows how long jobs took, at speed 1, and which job waits for which.
type estimates struct {
	mu     sync.Mutex // below Router.mu; guards what follows
	jobs   *simplelru.LRU[string, *job]
	recent []float64 // the latest durations; a ring
	next   int       // in recent
	guess  float64   // for what is not known
}

// job is what is known of builds of one name.
type job struct {
	bySystem []duration
	all      duration
	// followers are jobs that had outputs of this one among their inputs.
	followers []*job
	// tail is how long what follows takes, at least, by the time at.
	tail    float64
	at      float64
	reckons bool // on the way down; names can follow each other in a circle
}

// duration is a mean over builds, in seconds at speed 1.
type duration struct {
	system  string
	seconds float64
	builds  int
	// builder is where the latest of them was.
	builder string
}

func (d *duration) add(seconds float64) {
	seconds = max(seconds, least)
	if d.builds == 0 {
		d.seconds = seconds
	} else {
		d.seconds += newest * (seconds - d.seconds)
	}
	d.builds++
}

func newEstimates() *estimates {
	jobs, err := simplelru.NewLRU[string, *job](jobLimit, nil)
	if err != nil {
		panic(err) // only for a limit below 1
	}
	return &estimates{jobs: jobs, guess: firstGuess}
}

// of is how long a job will take and how long what follows it, in seconds at speed
// 1.
func (e *estimates) of(name, system string, now float64) (seconds, tail float64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	j, known := e.jobs.Get(name)
	if !known || name == "" {
		return e.guess, 0
	}
	budget := tailBudget
	return e.seconds(j, system), e.tailOf(j, now, &budget)
}

func (e *estimates) seconds(j *job, system string) float64 {
	if i := j.system(system); i >= 0 {
		return j.bySystem[i].seconds
	}
	if j.all.builds > 0 {
		return j.all.seconds
	}
	return e.guess
}

// known is what was measured of a job on a system; of no builds if nothing was.
func (e *estimates) known(name, system string) duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if j, known := e.jobs.Peek(name); known {
		if i := j.system(system); i >= 0 {
			return j.bySystem[i]
		}
	}
	return duration{}
}

func (j *job) system(name string) int {
	return slices.IndexFunc(j.bySystem, func(d duration) bool { return d.system == name })
}

// tailOf is the longest way through what follows a job. Within tailAge and beyond
// the budget an earlier answer stands.
func (e *estimates) tailOf(j *job, now float64, budget *int) float64 {
	tail, _ := e.reckonTail(j, now, budget)
	j.tail, j.at = tail, now // complete or not, for a while it is good enough
	return tail
}

// reckonTail also says whether the answer is complete: below a job that is being
// reckoned, its own name is passed over.
func (e *estimates) reckonTail(j *job, now float64, budget *int) (longest float64, complete bool) {
	if *budget <= 0 || j.at != 0 && now-j.at < tailAge {
		return j.tail, true
	}
	*budget--
	j.reckons, complete = true, true
	for _, f := range j.followers {
		if f.reckons {
			complete = false
			continue
		}
		tail, whole := e.reckonTail(f, now, budget)
		longest = max(longest, e.seconds(f, "")+tail)
		complete = complete && whole
	}
	j.reckons = false
	if complete {
		j.tail, j.at = longest, now
	}
	return longest, complete
}

// learnInputs notes that a job waits for others.
func (e *estimates) learnInputs(name string, inputs []string) {
	if name == "" || len(inputs) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	j := e.job(name)
	for _, input := range inputs {
		if input != name && input != "" {
			e.job(input).followedBy(j)
		}
	}
}

func (j *job) followedBy(f *job) {
	switch {
	case slices.Contains(j.followers, f):
	case len(j.followers) < followerLimit:
		j.followers = append(j.followers, f)
	default:
		// The one with the least behind it matters least.
		least := 0
		for i, other := range j.followers {
			if other.tail < j.followers[least].tail {
				least = i
			}
		}
		if j.followers[least].tail <= f.tail {
			j.followers[least] = f
		}
	}
}

func (e *estimates) job(name string) *job {
	j, known := e.jobs.Get(name)
	if !known {
		j = &job{}
		e.jobs.Add(name, j)
	}
	return j
}

// learn notes how long a job took on a builder, in seconds at speed 1.
func (e *estimates) learn(name, system, builder string, seconds float64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.learnGuess(max(seconds, least))
	if name == "" {
		return
	}
	j := e.job(name)
	j.all.add(seconds)
	i := j.system(system)
	if i < 0 && len(j.bySystem) < systemLimit {
		j.bySystem = append(j.bySystem, duration{system: system})
		i = len(j.bySystem) - 1
	}
	if i >= 0 {
		j.bySystem[i].add(seconds)
		j.bySystem[i].builder = builder
	}
}

func (e *estimates) learnGuess(seconds float64) {
	if len(e.recent) < recentLimit {
		e.recent = append(e.recent, seconds)
	} else {
		e.recent[e.next] = seconds
		e.next = (e.next + 1) % recentLimit
	}
	if n := len(e.recent); n < 16 || e.next%8 == 0 {
		sorted := slices.Sorted(slices.Values(e.recent))
		e.guess = sorted[int(unknownShare*float64(n-1)+0.5)]
	}
}

// Shape of what is learned of a builder.
const (
	// usualBandwidth is that of a builder before anything was sent there, in bytes a
	// second.
	usualBandwidth = 100e6
	// paceLimit bounds how far a builder's real speed is taken to differ from the
	// configured one.
	paceLimit = 4
	// shortest is the shortest build that says something about speed, in seconds, and
	// smallest the smallest transfer that does about bandwidth, in bytes.
	shortest = 0.5
	smallest = 1 << 20
)

// pace is what is learned of a builder. Guarded by Router.mu.
type pace struct {
	// bandwidth is in bytes a second; 0 before it is known.
	bandwidth float64
	// logSpeed is the logarithm of real by configured speed, by builds of them.
	logSpeed float64
	builds   int
}

func (p *pace) bytesPerSecond() float64 {
	if p.bandwidth > 0 {
		return p.bandwidth
	}
	return usualBandwidth
}

// factor is real by configured speed.
func (p *pace) factor() float64 { return math.Exp(p.logSpeed) }

func (p *pace) learnBandwidth(bytes int64, took time.Duration) {
	if bytes < smallest || took <= 0 {
		return
	}
	measured := float64(bytes) / took.Seconds()
	if p.bandwidth == 0 {
		p.bandwidth = measured
		return
	}
	p.bandwidth += newest * (measured - p.bandwidth)
}

// learnSpeed compares how long a build took with how long builds of its job take at
// speed 1; speed is the builder's configured one.
func (p *pace) learnSpeed(expected, took, speed float64) {
	if took < shortest || expected <= 0 {
		return
	}
	sample := math.Log(expected / (took * speed))
	limit := math.Log(paceLimit)
	weight := max(0.05, 1/float64(p.builds+3))
	p.logSpeed += weight * (min(max(sample, -limit), limit) - p.logSpeed)
	p.builds++
}
