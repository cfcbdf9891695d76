package upstream

import (
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/policy"
)

// Guards against numbers that are lost with a connection, or with a builder that is
// reached in another way, and against sessions that count as in use when they are idle.
func TestCountsFollowConnectionsAndSessions(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		if c := w.pool.Counts("b1"); c != (Counts{}) {
			w.Errorf("before anything was dialled: %+v", c)
		}
		s := w.get()
		w.works(s)
		synctest.Wait()
		c := w.pool.Counts("b1")
		if c.Connections != 1 || c.Sessions != 1 || c.SessionsIdle != 1 || c.Received < 500 || c.Sent < 500 || c.DialsFailed != 0 {
			w.Errorf("with one user, and one session for the next: %+v", c)
		}
		s.Release()
		synctest.Wait()
		if c := w.pool.Counts("b1"); c.Sessions != 0 || c.SessionsIdle != 2 {
			w.Errorf("without a user: %+v", c)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		ended := w.pool.Counts("b1")
		if ended.Connections != 0 || ended.SessionsIdle != 0 || ended.Received < c.Received || ended.Sent < c.Sent {
			w.Errorf("once all is closed: %+v", ended)
		}
		other := w.fake.target()
		other.address = "elsewhere:22"
		w.pool.update([]*target{other})
		if moved := w.pool.Counts("b1"); moved != ended {
			w.Errorf("reached in another way: %+v, before %+v", moved, ended)
		}
		w.fake.set(func() { w.fake.unreachable = errors.New("no route") })
		w.refused(Unreachable)
		if c := w.pool.Counts("b1"); c.DialsFailed != 1 {
			w.Errorf("after a connection that did not come about: %+v", c)
		}
		if c := w.pool.Counts("b2"); c != (Counts{}) {
			w.Errorf("of nobody: %+v", c)
		}
	})
}

// Guards against a builder that is the daemon of this machine and seems to do nothing.
func TestCountsOfALocalDaemon(t *testing.T) {
	d := startDaemon(t, nil)
	w := localWorld(t, d, Options{})
	s := w.get()
	w.works(s)
	c := w.pool.Counts("b1")
	if c.Connections != 0 || c.Sessions < 1 || c.Received < 50 || c.Sent < 50 || c.DialsFailed != 0 {
		t.Errorf("with one user: %+v", c)
	}
	if err := s.End(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.Remove(d.socket); err != nil {
		t.Fatal(err)
	}
	w.pool.Update([]policy.Builder{{Name: "b1", Socket: d.socket + "2", MaxJobs: 2}})
	w.refused(Unreachable)
	if failed := w.pool.Counts("b1"); failed.DialsFailed != 1 || failed.Received < c.Received {
		t.Errorf("without a socket: %+v", failed)
	}
}
