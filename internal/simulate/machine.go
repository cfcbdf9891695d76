package simulate

import "time"

// machine is a builder during a run.
type machine struct {
	*Machine
	index int
	clock *clock

	// linkFree is when the upload booked last has arrived, and arrives when each
	// path is there: in the past if it is there already, absent if nobody sent it.
	linkFree time.Duration
	arrives  []time.Duration // by pathID
	received int64

	// running builds hold its slots; those in queue wait for one in order of
	// arrival. Whoever wants what runs already waits for that.
	running   int
	queue     []*job
	jobs      map[int]*job // by build; queued or running
	built     int
	reserved  int // slots that a policy has given out; it alone counts them
	connected int // of the connections that a balancer has opened
}

// pathID is a build's index, for its output, or one beyond them for a source.
type pathID int

const absent = time.Duration(-1)

type input struct {
	id   pathID
	size int64
}

type job struct {
	build int
	takes time.Duration
	began []func()
	ended []func()
}

// upload books the link for what the machine lacks of some inputs and returns
// when all are there, with the bytes that had to be sent. What is on its way for
// another build is waited for, not sent again.
func (m *machine) upload(inputs []input) (ready time.Duration, sent int64) {
	ready = m.clock.now
	for _, in := range inputs {
		at := m.arrives[in.id]
		if at == absent {
			m.linkFree = max(m.linkFree, m.clock.now) + seconds(float64(in.size)/m.Link)
			at = m.linkFree
			m.arrives[in.id] = at
			sent += in.size
		}
		ready = max(ready, at)
	}
	m.received += sent
	return ready, sent
}

// missing is how many bytes an upload would send now.
func (m *machine) missing(inputs []input) int64 {
	var bytes int64
	for _, in := range inputs {
		if m.arrives[in.id] == absent {
			bytes += in.size
		}
	}
	return bytes
}

// start runs a build whose inputs are there, as soon as a slot is free, and calls
// began and ended. An output that the machine has is not built again.
func (m *machine) start(build int, takes time.Duration, began, ended func()) {
	if at := m.arrives[build]; at != absent && at <= m.clock.now {
		began()
		ended()
		return
	}
	if j := m.jobs[build]; j != nil {
		j.began, j.ended = append(j.began, began), append(j.ended, ended)
		return
	}
	j := &job{build: build, takes: takes, began: []func(){began}, ended: []func(){ended}}
	m.jobs[build] = j
	m.queue = append(m.queue, j)
	m.next()
}

func (m *machine) next() {
	for m.running < m.Slots && len(m.queue) > 0 {
		j := m.queue[0]
		m.queue = m.queue[1:]
		m.running++
		m.built++
		for _, f := range j.began {
			f()
		}
		m.clock.after(j.takes, func() { m.end(j) })
	}
}

func (m *machine) end(j *job) {
	m.running--
	delete(m.jobs, j.build)
	m.arrives[j.build] = m.clock.now
	m.next()
	for _, f := range j.ended {
		f()
	}
}

// sends is how long it takes to copy something from the machine. That direction
// of a link is never the bottleneck here, so it is not booked.
func (m *machine) sends(bytes int64) time.Duration { return seconds(float64(bytes) / m.Link) }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
