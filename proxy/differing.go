package proxy

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"nixbastion/internal/nix"
)

const (
	// maxCompared is how many inputs of builders are remembered as looked at. They
	// take about 15 MiB; what falls out is looked at, and perhaps logged, again.
	maxCompared = 100_000
	// maxCompareAtOnce bounds what one build waits for because of this. Later builds
	// look at the rest.
	maxCompareAtOnce = 256
)

// differences remembers which inputs of which builders were compared with ours,
// where the admin accepts that they differ: each is asked for, counted and logged
// once.
type differences struct {
	log *slog.Logger

	mu sync.Mutex
	// compared has our NAR hash of the input when it was looked at. A builder's
	// store never replaces a valid path.
	compared *simplelru.LRU[heldInput, nix.Hash]
	// differing counts by builder.
	differing map[string]int64
}

type heldInput struct {
	builder string
	path    nix.StorePath
}

func newDifferences(log *slog.Logger) *differences {
	compared, err := simplelru.NewLRU[heldInput, nix.Hash](maxCompared, nil)
	if err != nil {
		panic(fmt.Sprintf("size of compared inputs: %v", err)) // it is a constant
	}
	return &differences{log: log, compared: compared, differing: map[string]int64{}}
}

// unseen returns those of held that were not compared with these bytes of ours yet,
// as many as one build may ask for.
func (d *differences) unseen(builder string, held []nix.StorePath, ours map[nix.StorePath]*nix.PathInfo) []nix.StorePath {
	d.mu.Lock()
	defer d.mu.Unlock()
	var unseen []nix.StorePath
	for _, path := range held {
		our := ours[path]
		if hash, ok := d.compared.Get(heldInput{builder, path}); our != nil && (!ok || hash != our.NarHash) {
			unseen = append(unseen, path)
		}
		if len(unseen) == maxCompareAtOnce {
			break
		}
	}
	return unseen
}

// note takes what a builder says of an input that it holds, or nil if that is what
// it was just sent.
func (d *differences) note(builder string, our, theirs *nix.PathInfo) {
	d.mu.Lock()
	d.compared.Add(heldInput{builder, our.Path}, our.NarHash)
	differs := theirs != nil && theirs.NarHash.Algo() == nix.SHA256 && theirs.NarHash != our.NarHash
	if differs {
		d.differing[builder]++
	}
	count := d.differing[builder]
	d.mu.Unlock()
	if differs {
		d.log.Warn("builder holds an input with other content, which is used (builder_content: accept)", "builder", builder,
			"path", our.Path.String(), "theirs", theirs.NarHash.String(), "ours", our.NarHash.String(), "count", count)
	}
}

// of is how many inputs of a builder differed so far.
func (d *differences) of(builder string) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.differing[builder]
}
