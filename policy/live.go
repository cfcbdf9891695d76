package policy

import (
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
)

// Live is a policy that follows its file when it is told to. Its methods may be
// called from any goroutine.
type Live struct {
	file    string
	disk    disk // the real one, but for tests
	current atomic.Pointer[Policy]

	loading sync.Mutex // one load at a time: the last one called is what counts
	// read are the files of the last attempt, as they were then; guarded by loading.
	read stamps
	// swapped has an item after each policy that came into force, for Watch.
	swapped chan struct{}
}

// NewLive loads a policy file. Errors are those of [Load].
func NewLive(file string) (*Live, error) {
	l := &Live{file: file, disk: realDisk{}, swapped: make(chan struct{}, 1)}
	pol, err := l.load()
	if err != nil {
		return nil, err
	}
	l.current.Store(pol)
	return l, nil
}

// maxReads is how often files are read that change meanwhile: the last time counts.
const maxReads = 3

// load notes which files it reads. What was changed while it was read may be half of
// what somebody writes, and is read again. The caller holds loading, or is alone.
func (l *Live) load() (pol *Policy, err error) {
	for range maxReads {
		noting := &notingDisk{disk: l.disk, seen: stamps{}}
		pol, err = loadFrom(l.file, noting)
		l.read = noting.seen
		if maps.Equal(l.read.now(), l.read) {
			break
		}
	}
	return pol, err
}

// Current returns the policy that counts now. Whoever needs several answers that
// belong together asks once.
func (l *Live) Current() *Policy { return l.current.Load() }

// File is the name of the policy file, as NewLive was given it.
func (l *Live) File() string { return l.file }

// NeedsRestart returns the keys whose change from p to next counts only when the
// proxy starts again. All others count at once.
func (p *Policy) NeedsRestart(next *Policy) []string {
	var keys []string
	for _, c := range []struct {
		key  string
		same bool
	}{
		{"listen", slices.Equal(p.Listen, next.Listen)},
		{"state_dir", p.StateDir == next.StateDir},
		{"ssh", slices.Equal(p.SSH.Ciphers, next.SSH.Ciphers) && p.SSH.Limits == next.SSH.Limits},
		{"cache", p.Cache == next.Cache},
		{"log", p.Log == next.Log},
		{"admin.socket", p.Admin.Socket == next.Admin.Socket || p.hasDefaultSocket() && next.hasDefaultSocket()},
		{"audit", p.sameAudit(next)},
		{"metrics", p.Metrics == next.Metrics},
		{"scheduling.history", p.Scheduling.History == next.Scheduling.History},
	} {
		if !c.same {
			keys = append(keys, c.key)
		}
	}
	return keys
}

// hasDefaultSocket says that the admin's socket follows from state_dir.
func (p *Policy) hasDefaultSocket() bool {
	return p.Admin.Socket == filepath.Join(p.StateDir, defaultAdminSocket)
}

// Reload reads the file again. If anything is wrong with it, the error says what,
// and the policy stays as it was.
func (l *Live) Reload() error { return l.ReloadAfter(func(*Policy) {}) }

// ReloadAfter is Reload for who has to do something with a policy before it
// counts. A policy that is refused is not shown to it.
func (l *Live) ReloadAfter(before func(next *Policy)) error {
	l.loading.Lock()
	defer l.loading.Unlock()
	pol, err := l.load()
	if err != nil {
		return err
	}
	before(pol)
	l.current.Store(pol)
	select {
	case l.swapped <- struct{}{}:
	default:
	}
	return nil
}
