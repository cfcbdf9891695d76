package proxy

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"nixbastion/internal/nix"
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

// Guards against the same with whole builds: the second client's turn must reach the
// queue in which the first one's build waits.
func TestSharedBuildHasTheTurnOfItsSecondClient(t *testing.T) {
	release := make(chan struct{})
	b := newLabBuilder("b1")
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		select {
		case <-release:
			return makeOutputs(ctx, b, log, drv)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l := newLabOf(t, labPolicy{principals: map[string]string{"bulk": "role: full, class: bulk", "person": "role: full, class: interactive"}}, b)
	var all sync.WaitGroup
	ask := func(principal, name string) {
		client := l.client(principal)
		all.Go(func() {
			if result, err := client.build(t.Context(), nix.Discard, name); err != nil || !result.Status.Success() {
				t.Errorf("%s for %s: %+v, %v", name, principal, result, err)
			}
		})
	}
	waiting := func(n int) {
		eventually(t, fmt.Sprintf("%d builds wait", n), func() bool { return len(l.proxy.router.Status().Queue) == n })
	}
	ask("alice", "first")
	eventually(t, "the first build runs", func() bool { return len(b.built()) == 1 })
	ask("bulk", "shared")
	waiting(1)
	ask("alice", "other")
	waiting(2)
	ask("person", "shared")
	eventually(t, "the shared build is next", func() bool { return l.proxy.router.Status().Queue[0].Waiting.Ahead == 0 })
	close(release)
	all.Wait()
	if order := b.built(); len(order) != 3 || !strings.Contains(order[1], "shared") {
		t.Errorf("built %q", order)
	}
}
