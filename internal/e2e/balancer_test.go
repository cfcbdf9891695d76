package e2e

import (
	"fmt"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// haproxyConfig sends the client's address along in either version of the header, and
// on a third port not at all.
const haproxyConfig = `
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
listen v1
  bind :2201
  server proxy %[1]s:22 send-proxy
listen v2
  bind :2202
  server proxy %[1]s:22 send-proxy-v2
listen none
  bind :2203
  server proxy %[1]s:22
`

// testBalancer shows that a client that comes through HAProxy is who it is by its own
// address, and that nobody else may send such a header. Guards against from= of keys,
// limits and a log that are about the balancer, or about what a stranger says.
func (y *arena) testBalancer(t *testing.T) {
	client, balancer, stranger, proxy := y.good, y.balancer, y.hostile, y.proxy
	for _, host := range []*testbed.Host{balancer, stranger} {
		if err := host.WriteFile(t.Context(), "/root/haproxy.cfg", fmt.Appendf(nil, haproxyConfig, proxy.Host().Addr())); err != nil {
			t.Fatal(err)
		}
		startScript(t, host, "exec haproxy -f /root/haproxy.cfg")
		eventually(t, "haproxy listens", patience, func() bool {
			conn, err := client.Dial(t.Context(), host.Name()+":2203")
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	logIn := func(through string, port int) testbed.Result {
		t.Helper()
		return startScript(t, client, fmt.Sprintf("ssh -o HostKeyAlias=proxy -i %s -p %d nix@%s help", y.key.File(), port, through)).wait(t)
	}
	for i, port := range []int{2201, 2202} {
		mark := proxy.Mark()
		if res := logIn(balancer.Name(), port); res.Status != 0 {
			t.Errorf("header v%d: status %d: %s", i+1, res.Status, res.Stderr)
		}
		waitLine(t, proxy, mark, world.Message("ssh login", "addr", client.Addr().String()))
	}
	if res := logIn(balancer.Name(), 2203); res.Status == 0 {
		t.Error("the balancer got in without a header")
	}
	waitLine(t, proxy, 0, world.Message("ssh connection refused: no PROXY header", "addr", balancer.Addr().String()))
	for _, port := range []int{2201, 2202} {
		mark := proxy.Mark()
		if res := logIn(stranger.Name(), port); res.Status == 0 {
			t.Error("a stranger said where it comes from, and got in")
		}
		waitLine(t, proxy, mark, world.Message("ssh handshake failed", "addr", stranger.Addr().String(), "reason", "not listed"))
	}
	if res := logIn("proxy", 22); res.Status != 0 {
		t.Errorf("past the balancer: status %d: %s", res.Status, res.Stderr)
	}
}
