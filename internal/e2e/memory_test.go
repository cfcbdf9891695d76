package e2e

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// The proxy's memory does not depend on what goes through it. Guards against a
// NAR, or a part of it that grows with it, being held in memory.
func TestLargePathsNeedNoMemory(t *testing.T) { testLargePath(t, 256<<20) }

func TestSoakLargePathsNeedNoMemory(t *testing.T) {
	onlyInSoak(t)
	testLargePath(t, 4<<30)
}

// testLargePath has a path of some size uploaded, sent to a builder, built from,
// and fetched.
func testLargePath(t *testing.T, size int64) {
	const limit = 100 << 20
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	disk := []string{"/nix", "/root"}
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder, MaxJobs: 1, OnDisk: disk[:1]},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, OnDisk: disk})
	client := hosts[1]
	if _, err := client.PlaceKey(t.Context(), "root", key); err != nil {
		t.Fatal(err)
	}
	proxy := startProxy(t, bed, world.ProxySpec{
		StateOnDisk: true,
		Builders:    []world.Builder{{Host: hosts[0]}},
		Principals:  []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	setMachines(t, client, proxy.Machine(key))
	client.MustShell(t, fmt.Sprintf("yes a large input | head -c %d >/root/large", size))
	file := writeExpression(t, client, testbed.Derivation{Name: "large", Sources: []string{"/root/large"},
		Script: `for i in $inputs; do cat $i > $out; done; echo more >> $out; exit 0`})

	peak := proxy.PeakRssAnon()
	run := startBuildFor(t, 20*time.Minute, client, file, []string{"large"})
	paths, _ := run.mustSucceed(t)
	most := peak()
	t.Logf("%d MiB in and out took %v; RssAnon was at most %d MiB", size>>20, run.took, most>>20)
	if most == 0 || most > limit {
		t.Errorf("RssAnon was %d MiB, want at most %d", most>>20, limit>>20)
	}
	client.MustShell(t, "nix-store --verify-path "+paths[0])
	got := client.MustShell(t, "stat -c %s "+paths[0])
	if want := fmt.Sprintln(size + int64(len("more\n"))); got != want {
		t.Errorf("the output has %s bytes, want %s", got, want)
	}
}

// A thousand clients that have logged in and wait cost little. Guards against
// buffers that every connection has whether it moves bytes or not.
func TestIdleConnectionsCostLittle(t *testing.T) {
	const connections, limit = 1000, 150 << 20
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder, MaxJobs: 1},
		testbed.HostSpec{Name: "client", Kind: testbed.Client})
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: hosts[0]}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}, MaxConnections: connections}},
	})
	before := rss(t, proxy)
	open := connect(t, hosts[1], proxy, key, connections)
	cost := rss(t, proxy) - before
	t.Logf("%d connections cost %d MiB, %d KiB each", len(open), cost>>20, cost>>10/connections)
	if cost > limit {
		t.Errorf("%d connections cost %d MiB, want at most %d", connections, cost>>20, limit>>20)
	}
	// All of them are still there, and each can still ask.
	for _, c := range []*ssh.Client{open[0], open[connections/2], open[connections-1]} {
		session, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		session.Close()
	}
}

func rss(t *testing.T, proxy *world.Proxy) int64 {
	t.Helper()
	n, err := proxy.RssAnon()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// connect logs in many times, as a host would; the connections end with the test.
func connect(t *testing.T, from *testbed.Host, proxy *world.Proxy, key testbed.Key, n int) []*ssh.Client {
	t.Helper()
	hostKey, _, _, _, err := ssh.ParseAuthorizedKey([]byte(proxy.HostKey()))
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ClientConfig{User: "nix", HostKeyCallback: ssh.FixedHostKey(hostKey),
		Auth: []ssh.AuthMethod{ssh.PublicKeys(key.Signer())}}
	open := make([]*ssh.Client, n)
	t.Cleanup(func() {
		for _, c := range open {
			if c != nil {
				c.Close()
			}
		}
	})
	var group errgroup.Group
	group.SetLimit(4)
	for i := range open {
		group.Go(func() error {
			conn, err := from.Dial(t.Context(), "proxy:22")
			if err != nil {
				return err
			}
			c, channels, requests, err := ssh.NewClientConn(conn, "proxy:22", config)
			if err != nil {
				conn.Close()
				return fmt.Errorf("connection %d: %w", i, err)
			}
			open[i] = ssh.NewClient(c, channels, requests)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return open
}
