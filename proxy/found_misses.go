package proxy

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

const (
	// missAge is for how long a builder that lacked a listed path, or did not give
	// it, is not asked for it again. What comes into the cache meanwhile is
	// answered all the same: it is asked first.
	missAge = 10 * time.Second
	// wrongAge is the same for a builder whose output was not what it had announced.
	wrongAge = 10 * time.Minute
	// restAge is for how long a builder that did not answer is asked for nothing.
	restAge = 5 * time.Second
	// maxMisses bounds the paths that are remembered.
	maxMisses = 20_000
)

// misses remember which builders do not have what they listed.
type misses struct {
	mu    sync.Mutex // guards what follows
	paths *simplelru.LRU[miss, time.Time]
	rests map[string]time.Time // by builder; until when
}

// miss is told apart by domain, too: how long an answer takes must not tell one
// domain what another asks for.
type miss struct {
	domain, builder string
	hash            [20]byte
}

func newMisses() *misses {
	paths, err := simplelru.NewLRU[miss, time.Time](maxMisses, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &misses{paths: paths, rests: map[string]time.Time{}}
}

func (m *misses) has(key foundKey, builder string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	until, known := m.paths.Get(miss{key.domain, builder, key.path.HashBytes()})
	return known && now.Before(until) || now.Before(m.rests[builder])
}

// note remembers that a builder did not give a path.
func (m *misses) note(key foundKey, builder string, err error) {
	m.put(miss{key.domain, builder, key.path.HashBytes()}, missAge)
	if unresponsive(err) {
		m.rest(builder)
	}
}

// distrust keeps a builder from being asked for an output that it is sending, and
// that is lost from the cache the moment it turns out wrong. The caller says in the
// end whether it did.
func (m *misses) distrust(key foundKey, builder string) (end func(wrong bool)) {
	const copying = 24 * time.Hour // nobody copies for longer
	this := miss{key.domain, builder, key.path.HashBytes()}
	m.put(this, copying)
	return func(wrong bool) {
		if wrong {
			m.put(this, wrongAge)
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.paths.Remove(this)
	}
}

func (m *misses) put(what miss, age time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paths.Add(what, time.Now().Add(age))
}

// rest remembers that a builder did not answer.
func (m *misses) rest(builder string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rests[builder] = time.Now().Add(restAge)
}

// unresponsive reports whether an error is about the builder and not about one path.
func unresponsive(err error) bool {
	return !errors.Is(err, nix.ErrNotFound) && (upstream.Broken(err) || errors.Is(err, errSlow) || errors.Is(err, context.DeadlineExceeded))
}
