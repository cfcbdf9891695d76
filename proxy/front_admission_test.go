package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// room is a waiting room with a clock of its own and no dice.
type room struct {
	*waitingRoom
	now     time.Time
	chanced float64
	evicted []string
}

func newRoom(limits Limits) *room {
	r := &room{waitingRoom: newWaitingRoom(limits.withDefaults()), now: time.Unix(1e9, 0)}
	r.chance = func() float64 { return r.chanced }
	return r
}

// enters lets somebody come from an address.
func (r *room) enters(ip string) (w *waiter, ok bool) {
	name := fmt.Sprintf("%s+%d", ip, r.now.Unix()-1e9)
	w = &waiter{source: source(netip.MustParseAddr(ip)), since: r.now, evict: func(string) { r.evicted = append(r.evicted, name) }}
	return w, r.enter(w)
}

func (r *room) after(d time.Duration) { r.now = r.now.Add(d) }

// Guards against honest clients that are turned away by slow ones, and against
// strangers without number.
func TestSlowLoginsGoBeforeNewcomersDo(t *testing.T) {
	r := newRoom(Limits{Pending: 4, PendingStart: 2, PendingPerSource: 4})
	for range 2 {
		r.enters("10.0.0.1")
		r.after(time.Second)
	}
	r.after(time.Minute)
	r.chanced = 0.31 // above the 0.3 of the second place
	r.enters("10.0.0.2")
	r.chanced = 0
	r.enters("10.0.0.3")
	if want := []string{"10.0.0.1+0"}; !slices.Equal(r.evicted, want) {
		t.Errorf("evicted %v, want %v: the oldest slow login, once the dice say so", r.evicted, want)
	}
}

// Guards against an honest login that is slow because the machine is busy with a
// crowd of slow ones: the crowd goes first, however long the other took.
func TestSlowLoginOfACrowdGoesBeforeALoneOne(t *testing.T) {
	r := newRoom(Limits{Pending: 20, PendingStart: 1, PendingPerSource: 20})
	r.chanced = 0.99
	r.enters("10.0.0.2")
	for range 5 {
		r.after(time.Second)
		r.enters("10.0.0.1")
	}
	r.after(time.Minute)
	r.chanced = 0
	r.enters("10.0.0.1")
	r.enters("10.0.0.3")
	if want := []string{"10.0.0.1+1", "10.0.0.1+2"}; !slices.Equal(r.evicted, want) {
		t.Errorf("evicted %v, want %v", r.evicted, want)
	}
}

// Guards against a crowd that opens new connections without a pause, so that none of
// its own is ever slow, and by that pushes out whoever is on a busy machine.
func TestCrowdPushesOutNoLoneSlowLogin(t *testing.T) {
	r := newRoom(Limits{Pending: 20, PendingStart: 1, PendingPerSource: 30})
	r.chanced = 0.99
	r.enters("10.0.0.2")
	var crowd []*waiter
	for range 10 {
		w, _ := r.enters("10.0.0.1")
		crowd = append(crowd, w)
	}
	r.after(time.Minute)
	for _, w := range crowd {
		r.leave(w)
		r.enters("10.0.0.1")
	}
	r.chanced = 0
	r.enters("10.0.0.1")
	if len(r.evicted) > 0 {
		t.Errorf("evicted %v", r.evicted)
	}
	if _, ok := r.enters("10.0.0.3"); !ok || !slices.Equal(r.evicted, []string{"10.0.0.2+0"}) {
		t.Errorf("evicted %v, want the slow one to go for a stranger", r.evicted)
	}
}

// Guards against one source that fills the room with quick connections.
func TestCrowdGoesBeforeOthersDo(t *testing.T) {
	r := newRoom(Limits{Pending: 20, PendingStart: 20, PendingPerSource: 3})
	for i := range 20 {
		ip := "10.0.0.1"
		if i%5 == 0 {
			ip = "10.0.0.2"
		}
		if _, ok := r.enters(ip); !ok {
			t.Fatalf("turned away while there is room: %d", i)
		}
		r.after(time.Millisecond)
	}
	if _, ok := r.enters("10.0.0.1"); ok {
		t.Error("the crowd itself pushed somebody out")
	}
	if _, ok := r.enters("10.0.0.3"); !ok {
		t.Error("a stranger was turned away because of the crowd")
	}
	if want := []string{"10.0.0.1+0"}; !slices.Equal(r.evicted, want) {
		t.Errorf("evicted %v, want %v", r.evicted, want)
	}
	if n := len(r.waiting); n != 20 {
		t.Errorf("%d are waiting, want 20", n)
	}
}

// Guards against one source whose slow logins take the places of all.
func TestSlowLoginsOfOneSourceAreBounded(t *testing.T) {
	r := newRoom(Limits{Pending: 100, PendingStart: 100, PendingPerSource: 3})
	for range 10 {
		r.enters("10.0.0.1")
		r.after(3 * time.Second)
	}
	if n := len(r.waiting); n != 3 {
		t.Errorf("%d slow logins of one source are waiting, want 3", n)
	}
}

// Guards against a full room of young logins from everywhere: then the newcomer
// goes, and a place is free as soon as somebody leaves.
func TestFullRoomOfYoungLoginsTurnsAway(t *testing.T) {
	r := newRoom(Limits{Pending: 10})
	var first *waiter
	for i := range 10 {
		w, ok := r.enters(fmt.Sprintf("10.0.%d.1", i))
		if !ok {
			t.Fatal("turned away while there is room")
		}
		if first == nil {
			first = w
		}
	}
	if _, ok := r.enters("10.1.0.1"); ok || len(r.evicted) != 0 {
		t.Errorf("came in, or %v was evicted; want the newcomer to go", r.evicted)
	}
	r.leave(first)
	r.leave(first)
	if _, ok := r.enters("10.1.0.1"); !ok || len(r.waiting) != 10 {
		t.Error("no place after one left")
	}
}

// Guards against a source that walks through its own /64.
func TestSourceIsWhatAnAddressCosts(t *testing.T) {
	for _, c := range []struct{ addr, want string }{
		{"10.0.0.1", "10.0.0.1/32"},
		{"::ffff:10.0.0.1", "10.0.0.1/32"},
		{"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
		{"fe80::1%eth0", "fe80::/64"},
	} {
		if got := source(netip.MustParseAddr(c.addr)); got.String() != c.want {
			t.Errorf("source of %s is %s, want %s", c.addr, got, c.want)
		}
	}
	if got := source(netip.Addr{}); got.IsValid() {
		t.Errorf("source of no address is %s", got)
	}
}

// Guards against a limit that zero or a negative number switches off.
func TestLimitsHaveNoUnlimited(t *testing.T) {
	def := Limits{}.withDefaults()
	if got := (Limits{Sessions: -1, LoginGrace: -1, SessionMemory: -1, LoginBytes: -1}).withDefaults(); got != def {
		t.Errorf("negative limits become %+v, want the defaults", got)
	}
	if def.LoginGrace != 20*time.Second || def.Sessions != 64 || def.Pending != 100 || def.KeepAlive != 15*time.Second ||
		def.KeepAliveMisses != 3 || def.WriteStall != 2*time.Minute || def.EnvVars != 32 || def.EnvBytes != 4096 ||
		def.CommandBytes != 4096 || def.Requests != 64 || def.ConnectionsPerPrincipal != 1000 {
		t.Errorf("defaults are %+v", def)
	}
	if n := (Limits{Connections: 1 << 30}).withDefaults().openConnections(); n >= 1<<30 {
		t.Errorf("%d connections, which file descriptors cannot hold", n)
	}
}
