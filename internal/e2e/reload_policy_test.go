package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A principal is taken out of the policy while its build runs: its Nix reads why, the
// build ends on the builder, and whoever may stay does not notice; a file with
// mistakes changes nothing and is refused with its place. Then another is taken out
// whose build may finish, and its Nix gets the outputs. Guards against rights that
// last as long as a connection, and against a reload that costs others.
func TestReloadSendsAwayWhoIsRemovedAndNobodyElse(t *testing.T) {
	bed := testbed.ForTest(t)
	alice, bob := bed.UserKey("alice"), bed.UserKey("bob")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "b1", Kind: testbed.Builder, MaxJobs: 2},
		testbed.HostSpec{Name: "hers", Kind: testbed.Client, Keys: []testbed.Key{alice}},
		testbed.HostSpec{Name: "his", Kind: testbed.Client, Keys: []testbed.Key{bob}})
	builder, hers, his := hosts[0], hosts[1], hosts[2]
	spec := world.ProxySpec{
		Builders: []world.Builder{{Host: builder, MaxJobs: 2}},
		Principals: []world.Principal{
			{Name: "alice", Keys: []testbed.Key{alice}}, {Name: "bob", Keys: []testbed.Key{bob}}, {Name: "carol", Keys: []testbed.Key{bed.UserKey("carol")}},
		},
	}
	proxy := startProxy(t, bed, spec)
	setMachines(t, hers, proxy.Machine(alice))
	setMachines(t, his, proxy.Machine(bob))
	of, logs := map[string]*running{}, map[string]string{}
	for name, client := range map[string]*testbed.Host{"of-alice": hers, "of-bob": his} {
		of[name], logs[name] = startWatched(t, client, gated(name))
		awaitText(t, client, logs[name], "before the gate")
	}
	spec.Principals = spec.Principals[1:]
	good := spec.Policy(bed)
	if err := proxy.WritePolicy(t.Context(), good+"nonsense: 1\n"); err != nil {
		t.Fatal(err)
	}
	const reload = world.Binary + " reload --config " + world.ConfigFile
	res, err := proxy.Host().Shell(t.Context(), reload)
	place := fmt.Sprintf("%s:%d:1: unknown key \"nonsense\"\n", world.ConfigFile, strings.Count(good, "\n")+1)
	if err != nil || res.Status != 78 || !strings.HasPrefix(res.Stderr, place) {
		t.Errorf("a file with a mistake: %v, status %d\n%s%s", err, res.Status, res.Stdout, res.Stderr)
	}
	wantText(t, "status", status(t, proxy), "REFUSED", strings.TrimSpace(place))
	if n := runningBuilds(t, builder); n != 2 {
		t.Errorf("%d builds run after it", n)
	}
	if err := proxy.WritePolicy(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	wantText(t, "reload", proxy.Host().MustShell(t, reload), "policy loaded; 1 connection ended")
	of["of-alice"].mustFail(t)
	wantText(t, "her Nix", hers.MustShell(t, "cat "+logs["of-alice"]), `principal "alice" was removed from the proxy's policy`)
	awaitBuilds(t, builder, 1, patience)

	spec.Principals = spec.Principals[1:]
	spec.Extra = "reload: {running_builds: finish}\n"
	if err := proxy.WritePolicy(t.Context(), spec.Policy(bed)); err != nil {
		t.Fatal(err)
	}
	wantText(t, "reload", proxy.Host().MustShell(t, reload), "policy loaded; 1 connection will end when their builds are done")
	openGate(t, builder, "of-bob")
	of["of-bob"].mustSucceed(t)
	if _, _, _, err := dialSSH(t.Context(), his, proxy, bob); err == nil {
		t.Error("bob is still let in")
	}
}

// The policy is edited again and again, half of the time with a mistake, while builds
// run. Guards against an edit that costs a connection which the policy allows, a
// mistake that is not refused with its place, and a connection that the policy
// forbids and that stays for longer than a second.
func TestPolicyIsEditedUnderLoad(t *testing.T) { testEdits(t, 40) }

func TestSoakPolicyIsEditedUnderLoad(t *testing.T) {
	onlyInSoak(t)
	testEdits(t, 1000)
}

func testEdits(t *testing.T, edits int) {
	const pause, residents, forbiddenAfter = 50 * time.Millisecond, 20, time.Second
	line := counted(t)
	line.rounds = edits
	bed := testbed.ForTest(t)
	alice, bob := bed.UserKey("alice"), bed.UserKey("bob")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "b1", Kind: testbed.Builder, MaxJobs: 2},
		testbed.HostSpec{Name: "b2", Kind: testbed.Builder, MaxJobs: 2},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{bob}})
	client := hosts[2]
	b1, b2 := world.Builder{Host: hosts[0], MaxJobs: 2}, world.Builder{Host: hosts[1], MaxJobs: 2}
	home := world.Principal{Name: "bob", Keys: []testbed.Key{bob}}
	spec := world.ProxySpec{Builders: []world.Builder{b1, b2}, Principals: []world.Principal{home, {Name: "alice", Keys: []testbed.Key{alice}}}}
	proxy := startProxy(t, bed, spec)
	setMachines(t, client, proxy.Machine(bob))
	may := newCrowd(t, proxy, client, bob, residents)
	may.first(t, residents, (*idler).logIn)
	may.first(t, residents/2, (*idler).openSession)
	stop := keepBuilding(t, client)

	e := &editor{t: t, proxy: proxy, guest: alice, random: rand.New(rand.NewPCG(6, 1))}
	var guests *crowd // of alice, while the policy has her
	var slowest time.Duration
	refused := 0
	for began, i := time.Now(), 0; i < edits; i++ {
		time.Sleep(time.Until(began.Add(time.Duration(i) * pause)))
		if i%2 == 1 {
			e.refused(e.spoil(spec.Policy(bed)))
			refused++
			continue
		}
		spec = e.change(spec, b1, b2)
		removed := len(spec.Principals) == 1
		start := time.Now()
		e.loaded(spec.Policy(bed))
		switch {
		case removed && guests != nil:
			for k, guest := range guests.all {
				select {
				case <-guest.gone:
				case <-time.After(patience):
					t.Fatalf("edit %d: forbidden connection %d stays", i, k)
				}
			}
			slowest = max(slowest, time.Since(start))
			guests = nil
		case !removed && guests == nil:
			guests = newCrowd(t, proxy, client, alice, 2)
			guests.first(t, 2, (*idler).logIn)
			guests.first(t, 1, (*idler).openSession)
		}
	}
	n := stop()
	may.wantAlive(t)
	may.first(t, residents/2, (*idler).ask)
	if guests != nil {
		guests.wantAlive(t)
	}
	if slowest > forbiddenAfter {
		t.Errorf("a forbidden connection was gone after %v only", slowest)
	}
	if n == 0 || slowest == 0 {
		t.Errorf("%d builds ran, the slowest end took %v: nothing was shown", n, slowest)
	}
	line.note("%d of them refused, %d builds beside, forbidden connections gone after %s at most", refused, n, slowest.Round(time.Millisecond))
	t.Log(line.notes)
}

// keepBuilding has a client build one thing after another, until stop, which returns how
// many there were. None may fail.
func keepBuilding(t *testing.T, client *testbed.Host) (stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	n := 0
	go func() {
		defer close(ended)
		for ; ctx.Err() == nil; n++ {
			d := testbed.Derivation{Name: fmt.Sprintf("steady-%d", n), Work: 300 * time.Millisecond}
			file := fmt.Sprintf("/root/e2e/steady-%d.nix", n)
			if err := client.WriteFile(t.Context(), file, []byte(testbed.Expression(d))); err != nil {
				t.Error(err)
				return
			}
			res, err := client.Shell(t.Context(), buildScript(file, []string{d.Name}))
			if err != nil || res.Status != 0 {
				t.Errorf("build %d: %v, status %d\n%s", n, err, res.Status, tail(res.Stderr))
				return
			}
		}
	}()
	stop = func() int {
		cancel()
		<-ended
		return n
	}
	t.Cleanup(func() { stop() })
	return stop
}

// editor is an admin who edits the policy. It speaks to the proxy from outside of its
// host, since a process for each edit would be most of the load.
type editor struct {
	t      *testing.T
	proxy  *world.Proxy
	guest  testbed.Key
	random *rand.Rand
}

// change makes another policy: the guest comes or goes, a builder comes, goes or changes.
func (e *editor) change(spec world.ProxySpec, b1, b2 world.Builder) world.ProxySpec {
	b2.MaxJobs = 1 + e.random.IntN(4)
	b2.SpeedFactor = 1 + float64(e.random.IntN(3))
	spec.Builders = []world.Builder{b1, b2}
	if e.random.IntN(3) == 0 {
		spec.Builders = spec.Builders[:1]
	}
	home := spec.Principals[0]
	home.Extra = []string{fmt.Sprintf("weight: %d", 1+e.random.IntN(9))}
	guest := world.Principal{Name: "alice", Keys: []testbed.Key{e.guest}}
	if len(spec.Principals) == 2 {
		spec.Principals = []world.Principal{home}
	} else {
		spec.Principals = []world.Principal{home, guest}
	}
	return spec
}

// spoil puts a mistake on a random line of a policy, and returns the number of the line.
func (e *editor) spoil(text string) (spoiled string, line int) {
	lines := strings.SplitAfter(text, "\n")
	top := 0 // a line on which something at the top level begins
	for top == 0 || lines[top][0] == ' ' {
		top = 1 + e.random.IntN(len(lines)-2)
	}
	mistake := []string{"nonsense: 1\n", "listen: [1]\n", "limits: {nar_size: 5}\n", "{: ]\n", "\tstate_dir: x\n"}[e.random.IntN(5)]
	lines[top] = mistake + lines[top]
	return strings.Join(lines, ""), top + 1
}

func (e *editor) loaded(text string) {
	e.t.Helper()
	if status, answer := e.reload(text); status != http.StatusOK || !strings.HasPrefix(answer, "policy loaded") {
		e.t.Errorf("a good policy: status %d\n%s", status, answer)
	}
}

// refused wants a place: that of the mistake, or for what is no YAML any line, as the
// parser knows no better.
func (e *editor) refused(text string, line int) {
	e.t.Helper()
	status, answer := e.reload(text)
	place := fmt.Sprintf(`^%s:%d:[1-9]`, world.ConfigFile, line)
	if strings.Contains(answer, "not YAML") {
		place = fmt.Sprintf(`^%s:[1-9][0-9]*:1: not YAML`, world.ConfigFile)
	}
	if status != http.StatusConflict || !regexp.MustCompile(`(?m)`+place).MatchString(answer) {
		e.t.Errorf("a mistake on line %d: status %d\n%s", line, status, answer)
	}
}

// reload writes the policy and asks on the admin's socket.
func (e *editor) reload(text string) (status int, answer string) {
	e.t.Helper()
	root := fmt.Sprintf("/proc/%d/root", e.proxy.PID())
	if err := os.WriteFile(root+world.ConfigFile, []byte(text), 0o600); err != nil {
		e.t.Fatal(err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", root+world.StateDir+"/admin.sock")
	}}
	defer transport.CloseIdleConnections()
	asked, err := http.NewRequestWithContext(e.t.Context(), http.MethodPost, "http://admin/reload", nil)
	if err != nil {
		e.t.Fatal(err)
	}
	res, err := transport.RoundTrip(asked)
	if err != nil {
		e.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}
