package proxy

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"nixbastion/route"
)

// queueAnswer is what waits for a builder.
type queueAnswer struct {
	QueueLength int `json:"queue_length"`
	// Queue is in order: who is next comes first.
	Queue []waitingStatus `json:"queue"`
}

func (p *Proxy) queue(a *asker, args []string) (answer, error) {
	if err := noArgs("queue", args); err != nil {
		return nil, err
	}
	if err := a.mayAsk("what others have built"); err != nil {
		return nil, err
	}
	q := newQueue(p.glances.take(p.router).Queue, a, p.builds.ledger.ids(), time.Now())
	q.expect(p.router.Explain)
	return q, nil
}

// maxExpected is of how many builds, at most, a queue asks when they begin.
const maxExpected = 32

// expect says where and when those begin that are next, where the last plan does not:
// while no builder is free there is none. For those behind them nobody knows then.
func (q *queueAnswer) expect(explain func(route.Request) route.Decision) {
	asked := 0
	for i := range q.Queue {
		w := &q.Queue[i]
		if w.Position > 1 || w.ExpectedBuilder != "" || asked == maxExpected {
			continue
		}
		asked++
		d := explain(route.Request{Asker: route.Asker{Principal: w.Principal}, Domain: w.Domain, Name: w.Derivation, Job: route.JobName(w.name), System: w.System, Features: w.Features})
		if len(d.Candidates) > 0 && d.Candidates[0].State <= route.Busy {
			c := &d.Candidates[0]
			w.ExpectedBuilder, w.ExpectedStartSeconds = c.Name, (c.Terms.Wait + c.Terms.Wake).Round(time.Second).Seconds()
		}
	}
}

func newQueue(queue []route.Queued, a *asker, ids buildIDs, now time.Time) *queueAnswer {
	q := &queueAnswer{Queue: []waitingStatus{}}
	for i := range queue {
		if a.sees(queue[i].Domain) {
			q.Queue = append(q.Queue, newWaiting(&queue[i], ids, now))
		}
	}
	q.QueueLength = len(q.Queue)
	slices.SortStableFunc(q.Queue, func(a, b waitingStatus) int { return cmp.Compare(a.Position, b.Position) })
	return q
}

func (q *queueAnswer) print(page *page) {
	page.heading("%s", queueText(q.QueueLength))
	if q.QueueLength == 0 {
		return
	}
	rows := [][]string{{"BUILD", "NAME", "SYSTEM", "FOR", "WAITS", "STARTS", "REASON"}}
	for i := range q.Queue {
		rows = append(rows, q.Queue[i].row())
	}
	page.table(rows)
}

func (w *waitingStatus) row() []string {
	system := w.System
	if len(w.Features) > 0 {
		system += " {" + strings.Join(w.Features, ",") + "}"
	}
	return []string{cmp.Or(w.Build, "-"), w.name, system, w.Principal, span(time.Duration(w.WaitingSeconds) * time.Second), w.startText(), strings.TrimPrefix(w.Reason, "waiting: ")}
}

// startText says where and when it is thought to begin.
func (w *waitingStatus) startText() string {
	switch {
	case w.ExpectedBuilder == "":
		return "-"
	case w.ExpectedStartSeconds < 1:
		return "on " + w.ExpectedBuilder + " soon"
	}
	return "on " + w.ExpectedBuilder + " in " + span(time.Duration(w.ExpectedStartSeconds*float64(time.Second)))
}

// buildIDs has the ids of builds under way, by what the router knows of them.
type buildIDs map[[2]string]string

func (ids buildIDs) of(q *route.Queued) string { return ids[[2]string{q.Domain, q.Name}] }

// ids returns those of all builds under way.
func (l *ledger) ids() buildIDs {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := make(buildIDs, len(l.open))
	for id, e := range l.open {
		ids[[2]string{e.record.Domain, e.record.Derivation}] = id // neither ever changes
	}
	return ids
}
