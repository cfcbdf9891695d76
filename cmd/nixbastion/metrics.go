package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"nixbastion/internal/metrics"
	"nixbastion/policy"
	"nixbastion/proxy"
)

// metricsConns is how many connections for metrics and health are answered at once;
// more wait.
const metricsConns = 32

// monitor is where metrics and health are served; nil if nowhere.
type monitor struct {
	*metrics.Server
	listener *net.TCPListener
}

// startMonitor answers where the policy says, until stop. Open is a socket that was
// inherited for that and is used if it is the one of the policy; nil for none.
func startMonitor(open *net.TCPListener, pol policy.Metrics, m *metrics.Metrics, p *proxy.Proxy, log *slog.Logger) (*monitor, error) {
	l, err := listenMonitor(open, pol.Listen)
	if l == nil {
		return nil, err
	}
	log.Info("serving metrics", "listen", l.Addr().String())
	return &monitor{listener: l, Server: metrics.Serve(withRoomFor(metricsConns, l), metrics.ServerOptions{
		Metrics: m, Ready: p.Ready, Draining: p.Draining, Log: log,
	})}, nil
}

// listenMonitor owns what is open. It returns nil, nil for no address.
func listenMonitor(open *net.TCPListener, address string) (*net.TCPListener, error) {
	if open != nil && listensOn(door{open, metricsName}, address) {
		return open, nil
	}
	if open != nil {
		open.Close()
	}
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics on %s: %w\nhint: choose another address, or remove it to have no metrics: metrics: {listen: HOST:PORT}", address, cause(err))
	}
	return l.(*net.TCPListener), nil
}

// stop is the last thing of all: whoever watches sees how the proxy drains.
func (m *monitor) stop() error {
	if m == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), adminPatience)
	defer cancel()
	return m.Stop(ctx)
}
