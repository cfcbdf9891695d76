package main

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"nixbastion/internal/metrics"
	"nixbastion/policy"
	"nixbastion/proxy"
)

// startedProxy is a proxy that nobody has let serve yet.
func startedProxy(t *testing.T, m *metrics.Metrics) *proxy.Proxy {
	t.Helper()
	live, err := policy.NewLive(writePolicy(t, "state_dir: state\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(t.Context(), proxy.Options{Policy: live, Version: "test", Log: slog.New(slog.DiscardHandler), Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := shutdown(p); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return p
}

// Guards against an address that is open although nobody asked for it, and against one
// that is left open.
func TestMetricsAreServedWhereThePolicySaysSo(t *testing.T) {
	noLeaks(t)
	log := slog.New(slog.DiscardHandler)
	m := metrics.New("test")
	p := startedProxy(t, m)
	if s, err := startMonitor(nil, policy.Metrics{}, m, p, log); s != nil || err != nil || s.stop() != nil {
		t.Errorf("without a word: %v, %v", s, err)
	}
	reserved, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := reserved.Addr().String()
	if _, err := startMonitor(nil, policy.Metrics{Listen: address}, m, p, log); err == nil || !strings.Contains(err.Error(), address) || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("an address that is taken: %v", err)
	}
	reserved.Close()
	s, err := startMonitor(nil, policy.Metrics{Listen: address}, m, p, log)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]string{"/metrics": "nixbastion_ready 0\n", "/ready": "not ready: ", "/live": "live"} {
		res, err := client.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if !strings.Contains(string(text), want) {
			t.Errorf("%s: %s", path, text)
		}
	}
	if err := s.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("it is open after the end")
	}
}

// Guards against a socket that is inherited and closed, so that who takes the place of
// another process finds its address taken, and against one that stays open for nobody.
func TestInheritedSocketOfMetricsIsUsed(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "localhost", ""} { // none: it is wanted no more
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		wanted, address := host != "", ""
		if wanted {
			_, port, _ := net.SplitHostPort(l.Addr().String())
			address = net.JoinHostPort(host, port)
		}
		got, err := listenMonitor(l, address)
		if err != nil || (got == l) != wanted {
			t.Errorf("%q: %v, %v", address, got, err)
		}
		if err := l.Close(); (err == nil) != wanted {
			t.Errorf("%q: close the inherited one: %v", address, err)
		}
	}
}

// Guards against an upgrade that fails since metrics are served on all addresses, which
// the policy and the system write differently.
func TestInheritedSocketOfMetricsOnAllAddressesIsUsed(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if got, err := listenMonitor(l.(*net.TCPListener), ":"+port); err != nil || got != l {
		t.Errorf("%v, %v", got, err)
	}
}
