package policy

import (
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
)

// Live is a policy that follows its file when it is told to. Its methods may be
// called from any goroutine.
type Live struct {
	file    string
	current atomic.Pointer[Policy]
	loading sync.Mutex // one Reload at a time: the last one called is what counts
}

// NewLive loads a policy file. Errors are those of [Load].
func NewLive(file string) (*Live, error) {
	pol, err := Load(file)
	if err != nil {
		return nil, err
	}
	l := &Live{file: file}
	l.current.Store(pol)
	return l, nil
}

// Current returns the policy that counts now. Whoever needs several answers that
// belong together asks once.
func (l *Live) Current() *Policy { return l.current.Load() }

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
	pol, err := Load(l.file)
	if err != nil {
		return err
	}
	before(pol)
	l.current.Store(pol)
	return nil
}
