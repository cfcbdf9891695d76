package proxy

import (
	"slices"
	"sync"

	"nixbastion/route"
)

// askers are the principals that wait for one build: it has a turn in the queue for
// each of them. A nil one is nobody.
type askers struct {
	// joined tells the request that waits of those who came after it.
	joined chan route.Asker

	mu  sync.Mutex // guards what follows
	all []route.Asker
}

// maxAskers bounds the principals that count for one build.
const maxAskers = 16

func newAskers() *askers { return &askers{joined: make(chan route.Asker, maxAskers)} }

// add has a principal count, once.
func (a *askers) add(asker route.Asker) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := slices.ContainsFunc(a.all, func(other route.Asker) bool { return other.Principal == asker.Principal })
	if known || len(a.all) == maxAskers {
		return
	}
	a.all = append(a.all, asker)
	a.joined <- asker // there is room for all
}

// into names them in a request, which reads what comes after.
func (a *askers) into(req *route.Request) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.joined) > 0 { // these are named
		<-a.joined
	}
	req.Others = slices.Clone(a.all)
	req.Joined = a.joined
}

// names are the principals, those of first before the others. It is a new list.
func (a *askers) names(first []string) []string {
	names := slices.Clone(first)
	if a == nil {
		return names
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, other := range a.all {
		if !slices.Contains(names, other.Principal) {
			names = append(names, other.Principal)
		}
	}
	return names
}
