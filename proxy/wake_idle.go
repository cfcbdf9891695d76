package proxy

import (
	"context"
	"time"
)

// awaitIdle has a look after a pause whether a builder can sleep. The caller holds mu.
func (s *sleepers) awaitIdle(w *sleeper, pause time.Duration) {
	w.stopIdle()
	if s.closed || len(w.config.Sleep) == 0 || w.config.After <= 0 || w.state != awake {
		return
	}
	w.idle = time.AfterFunc(pause, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.spawn(func() { s.lookIdle(w) })
	})
}

func (w *sleeper) stopIdle() {
	if w.idle != nil {
		w.idle.Stop()
		w.idle = nil
	}
}

// lookIdle puts a builder to sleep that nobody has used for long enough, or looks
// again when that may be so.
func (s *sleepers) lookIdle(w *sleeper) {
	idle := s.pool.Idle(w.name)
	s.mu.Lock()
	if s.all[w.name] != w || w.state != awake {
		s.mu.Unlock()
		return
	}
	switch after := w.config.After; {
	case w.users > 0 || w.down || s.drained(w.name) || s.shared():
		s.awaitIdle(w, after)
		s.mu.Unlock()
	case idle < after:
		s.awaitIdle(w, after-idle)
		s.mu.Unlock()
	default:
		w.state, w.turn = falling, make(chan struct{})
		s.mu.Unlock()
		s.fall(w, after)
	}
}

// fall puts a builder to sleep. Whoever needs it meanwhile waits until that is done.
func (s *sleepers) fall(w *sleeper, idle time.Duration) {
	s.mu.Lock()
	config, address, expected := w.config, w.address, w.expected()
	s.mu.Unlock()
	s.router.SetAsleep(w.name, true, expected)
	fell := s.pool.Sleep(w.ctx, w.name, idle)
	if fell {
		s.log.Info("putting builder to sleep", "builder", w.name, "idle_seconds", idle.Seconds())
		ctx, cancel := context.WithTimeoutCause(w.ctx, config.Timeout, errSleepTimeout)
		defer cancel()
		fell = s.command(ctx, w.name, address, "sleep command", config.Sleep) == nil
	}
	if !fell {
		s.pool.Wake(w.name)
		s.router.SetAsleep(w.name, false, 0)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.state = asleep
	if !fell {
		w.state = awake
		s.awaitIdle(w, config.After)
	}
	close(w.turn)
	w.turn = nil
}
