package proxy

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/metrics"
	"nixbastion/internal/nix/worker"
)

// monitor scrapes as Prometheus does.
type monitor struct {
	testing.TB
	base string
}

// watchMetrics serves metrics and health on loopback.
func watchMetrics(t testing.TB, opts metrics.ServerOptions) *monitor {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opts.Log = slog.New(slog.DiscardHandler)
	server := metrics.Serve(l, opts)
	t.Cleanup(func() {
		if err := server.Stop(context.Background()); err != nil {
			t.Errorf("stop the metrics: %v", err)
		}
	})
	return &monitor{TB: t, base: "http://" + l.Addr().String()}
}

func (m *monitor) get(path string) (status int, body string) {
	m.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get(m.base + path)
	if err != nil {
		m.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		m.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// numbers are all series of ours as they are scraped, by name and labels:
// `builds_total{builder="b1",...}`.
func (m *monitor) numbers() map[string]float64 {
	m.Helper()
	status, text := m.get("/metrics")
	if status != http.StatusOK {
		m.Fatalf("scrape: %d %s", status, text)
	}
	all := map[string]float64{}
	for line := range strings.Lines(text) {
		series, ours := strings.CutPrefix(strings.TrimSpace(line), "nixbastion_")
		end := strings.LastIndexByte(series, ' ')
		if !ours || end < 0 {
			continue
		}
		value, err := strconv.ParseFloat(series[end+1:], 64)
		if err != nil {
			m.Fatalf("line %q: %v", line, err)
		}
		all[series[:end]] = value
	}
	return all
}

// rises does something and wants series to grow by it, soon. Others may grow, too.
func (m *monitor) rises(what string, do func(), series ...string) {
	m.Helper()
	before := m.numbers()
	do()
	m.grown(what, before, series...)
}

func (m *monitor) grown(what string, before map[string]float64, series ...string) {
	m.Helper()
	for _, s := range series {
		eventually(m, what+": "+s+" grows", func() bool { return m.numbers()[s] > before[s] })
	}
}

// becomes wants a series to have a value, soon.
func (m *monitor) becomes(series string, value float64) {
	m.Helper()
	eventually(m, series+" becomes "+strconv.FormatFloat(value, 'f', -1, 64), func() bool {
		got, there := m.numbers()[series]
		return there && got == value
	})
}

// servedLab is a lab whose proxy serves on loopback, with a monitor.
type servedLab struct {
	*lab
	*monitor
	address string
	// leave ends the door, as the signal to end does.
	leave func()
}

func (l *lab) monitored() *monitor {
	return watchMetrics(l.TB, metrics.ServerOptions{Metrics: l.proxy.metrics, Ready: l.proxy.Ready, Draining: l.proxy.Draining})
}

// serveMonitored opens the door.
func (l *lab) serveMonitored(m *monitor) *servedLab {
	l.Helper()
	s := &servedLab{lab: l, monitor: m}
	s.address, s.leave = l.openDoor()
	return s
}

// dial logs in.
func (s *servedLab) dial(user string, key ssh.Signer) (*ssh.Client, error) {
	return ssh.Dial("tcp", s.address, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.FixedHostKey(s.lab.proxy.hostKey),
	})
}

// nix is a client of the worker protocol over SSH.
func (s *servedLab) nix(principal string) *worker.Client {
	s.lab.Helper()
	conn, err := s.dial("nix", testKey(principal))
	if err != nil {
		s.lab.Fatal(err)
	}
	s.lab.Cleanup(func() { conn.Close() })
	session, err := conn.NewSession()
	if err != nil {
		s.lab.Fatal(err)
	}
	in, _ := session.StdinPipe()
	out, _ := session.StdoutPipe()
	if err := session.Start("nix-daemon --stdio"); err != nil {
		s.lab.Fatal(err)
	}
	client, err := worker.NewClient(s.lab.Context(), struct {
		io.Reader
		io.WriteCloser
	}{out, in}, worker.ClientOptions{})
	if err != nil {
		s.lab.Fatal(err)
	}
	return client
}
