package metrics

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// site is a Server on loopback.
type site struct {
	*testing.T
	address  string
	metrics  *Metrics
	notReady atomic.Pointer[error]
	draining atomic.Bool
}

func openSite(t *testing.T) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{T: t, address: l.Addr().String(), metrics: New("1.2.3")}
	server := Serve(l, ServerOptions{
		Metrics: s.metrics, Draining: s.draining.Load, Log: slog.New(slog.DiscardHandler),
		Ready: func() error {
			if err := s.notReady.Load(); err != nil {
				return *err
			}
			return nil
		},
	})
	t.Cleanup(func() {
		if err := server.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return s
}

func (s *site) ask(method, path string) (status int, body string, header http.Header) {
	s.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(s.Context(), method, "http://"+s.address+path, nil)
	if err != nil {
		s.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		s.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		s.Fatal(err)
	}
	return res.StatusCode, string(text), res.Header
}

// Guards against a balancer that sends clients to a proxy that does not take them, and
// against one that cannot tell why.
func TestHealthSaysWhetherClientsAreTaken(t *testing.T) {
	s := openSite(t)
	expect := func(path string, status int, says string) {
		t.Helper()
		if got, body, header := s.ask("GET", path); got != status || !strings.Contains(body, says) || header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %q %v, not %d %q", path, got, body, header, status, says)
		}
	}
	no := errors.New("no builders yet")
	s.notReady.Store(&no)
	expect("/live", 200, "live")
	expect("/ready", 503, "no builders yet")
	expect("/draining", 503, "not draining")
	s.notReady.Store(nil)
	expect("/ready", 200, "ready")
	s.draining.Store(true)
	expect("/draining", 200, "draining")
	expect("/live", 200, "live")
}

// Guards against an address without accounts that does more than to tell numbers.
func TestOnlyMetricsAndHealthAreAnswered(t *testing.T) {
	s := openSite(t)
	status, body, _ := s.ask("GET", "/metrics")
	for _, name := range []string{`nixbastion_build_info{goversion="go`, `version="1.2.3"} 1`, "go_goroutines", "process_open_fds"} {
		if status != 200 || !strings.Contains(body, name) {
			t.Errorf("/metrics: %d, without %s", status, name)
		}
	}
	for _, path := range []string{"/", "/debug/pprof/", "/debug/vars", "/metrics/x", "/status"} {
		if status, _, _ := s.ask("GET", path); status != 404 {
			t.Errorf("%s: %d", path, status)
		}
	}
	for _, path := range []string{"/metrics", "/live", "/ready", "/draining"} {
		if status, _, _ := s.ask("POST", path); status != 405 {
			t.Errorf("POST %s: %d", path, status)
		}
	}
	if status, _, _ := s.ask("GET", "/"+strings.Repeat("x", 2*headerBytes)); status != 431 {
		t.Errorf("a request of %d bytes: %d", 2*headerBytes, status)
	}
}

// Guards against scrapes that ask a proxy that is gone.
func TestNobodyIsAskedAfterTheEnd(t *testing.T) {
	s := openSite(t)
	s.metrics.Watch(func() State { return State{Ready: true} })
	if _, body, _ := s.ask("GET", "/metrics"); !strings.Contains(body, "nixbastion_ready 1") {
		t.Error("nobody was asked")
	}
	s.metrics.Watch(nil)
	status, body, _ := s.ask("GET", "/metrics")
	if status != 200 || strings.Contains(body, "nixbastion_ready") || !strings.Contains(body, "nixbastion_build_info") {
		t.Errorf("afterwards: %d\n%s", status, body)
	}
}
