package proxy

import (
	"fmt"
	"testing"
	"testing/synctest"

	"nixbastion/route"
)

// Guards a person against waiting behind the bulk rebuild that asked for the same
// build before, whether it waits already or is tried again.
func TestBuildHasATurnForEachWhoWaits(t *testing.T) {
	for _, when := range []string{"before it is asked for", "while it waits"} {
		t.Run(when, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { turnForEach(t, when == "while it waits") })
		})
	}
}

func turnForEach(t *testing.T, late bool) {
	r := route.New(route.Options{})
	r.SetBuilders([]route.Builder{{Name: "b1", Systems: map[string]float64{"s": 1}, MaxJobs: 1, Domains: []string{"d"}}})
	request := func(name string, class route.Class) route.Request {
		return route.Request{Asker: route.Asker{Principal: name, Class: class}, Domain: "d", System: "s"}
	}
	lease, err := r.Acquire(t.Context(), request("first", route.Normal), nil)
	if err != nil {
		t.Fatal(err)
	}
	order := make(chan string, 2)
	acquire := func(name string, req route.Request) {
		l, err := r.Acquire(t.Context(), req, nil)
		if err != nil {
			t.Error(err)
			return
		}
		order <- name
		l.Release()
	}
	who, person := newAskers(), route.Asker{Principal: "person", Class: route.Interactive}
	if !late {
		who.add(person)
	}
	shared := request("bulk", route.Bulk)
	who.into(&shared)
	go acquire("shared", shared)
	go acquire("other", request("other", route.Normal))
	synctest.Wait()
	if late {
		who.add(person)
		synctest.Wait()
	}
	lease.Release()
	if first, second := <-order, <-order; first != "shared" || second != "other" {
		t.Errorf("%s before %s", first, second)
	}
}

// Guards against memory and channels that grow with the clients of one build.
func TestAskersAreBounded(t *testing.T) {
	who := newAskers()
	for i := range 3 * maxAskers {
		who.add(route.Asker{Principal: fmt.Sprint(i)})
		who.add(route.Asker{Principal: "again"})
	}
	if len(who.all) != maxAskers || len(who.joined) != maxAskers {
		t.Errorf("%d askers, %d to be told", len(who.all), len(who.joined))
	}
}
