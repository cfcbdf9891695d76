package metrics

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// headerBytes is the largest request. There is no body.
	headerBytes = 16 << 10
	readTimeout = 5 * time.Second
	// writeTimeout bounds an answer, and so does a reader that does not read.
	writeTimeout = 20 * time.Second
	// idleTimeout is above the 15 s or 30 s after which most scrape again.
	idleTimeout = 2 * time.Minute
	// maxScrapes are collected at once; others are told to come again.
	maxScrapes = 4
)

// ServerOptions are what a Server needs.
type ServerOptions struct {
	Metrics *Metrics
	// Ready says why the proxy takes no clients, nil if it does.
	Ready func() error
	// Draining reports whether the proxy begins nothing new and ends when what runs has
	// ended.
	Draining func() bool
	Log      *slog.Logger
}

// Server answers over HTTP, to GET alone:
//
//	/metrics   what Prometheus reads
//	/live      200 while the process answers at all
//	/ready     200 if clients are taken, else 503 with the reason
//	/draining  200 while the proxy drains, else 503
//
// Whoever reaches it is answered: it knows no accounts and no secrets.
type Server struct {
	http   *http.Server
	served chan error
}

// Serve answers on a listener, which it owns, until Stop. How many connections there
// may be is the listener's to say.
func Serve(l net.Listener, opts ServerOptions) *Server {
	s := &Server{served: make(chan error, 1), http: &http.Server{
		Handler: handler(opts), MaxHeaderBytes: headerBytes,
		ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		ErrorLog: slog.NewLogLogger(opts.Log.Handler(), slog.LevelDebug),
	}}
	go func() { s.served <- s.http.Serve(l) }()
	return s
}

// Stop closes the listener, and waits for those who are being answered until ctx
// ends.
func (s *Server) Stop(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	if end := <-s.served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	return err
}

func handler(opts ServerOptions) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(opts.Metrics.registry, promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(opts.Log.Handler(), slog.LevelError),
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes,
	}))
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) { answer(w, true, "live") })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := opts.Ready(); err != nil {
			answer(w, false, "not ready: "+err.Error())
			return
		}
		answer(w, true, "ready")
	})
	mux.HandleFunc("GET /draining", func(w http.ResponseWriter, _ *http.Request) {
		if opts.Draining() {
			answer(w, true, "draining")
			return
		}
		answer(w, false, "not draining")
	})
	return mux
}

func answer(w http.ResponseWriter, yes bool, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	if !yes {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = io.WriteString(w, text+"\n") // an error means that nobody reads it
}
