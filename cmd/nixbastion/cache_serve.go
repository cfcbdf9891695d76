package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"nixbastion/cache"
)

const (
	// maxCacheRequest bounds a request without what is imported: a list of 100,000
	// paths.
	maxCacheRequest = 16 << 20
	// cacheWriteTimeout is how long who reads the answer may do nothing, looking at
	// a page of it say.
	cacheWriteTimeout = 10 * time.Minute
)

// serveCache carries out a command on the store.
func (a *admin) serveCache(w http.ResponseWriter, r *http.Request, who peer) {
	if !a.open.TryRLock() {
		http.Error(w, "the proxy is shutting down", http.StatusServiceUnavailable)
		return
	}
	defer a.open.RUnlock()
	q, files, err := readCacheRequest(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !cacheWork[q.Do].changes { // who looks may be anybody of admin.users
		if !a.beginLong(w) {
			return
		}
		defer a.endLong()
	}
	log := a.log.With("uid", who.uid, "command", q.Do, "domain", q.Domain, "paths", len(q.Paths))
	if cacheWork[q.Do].changes && !who.mayChange() {
		log.Warn("admin's command refused")
		a.record(who, q.words(), auditRefused, nil)
		http.Error(w, "this account may look at the store; only root and the proxy's own account may do that", http.StatusForbidden)
		return
	}
	log.Info("admin's command on the store")
	control := http.NewResponseController(w)
	// The server's limits are for short questions. With them, the context would end.
	if err := errors.Join(control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Now().Add(cacheWriteTimeout))); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if q.Do != "import" {
		_, _ = io.Copy(io.Discard, files) // only behind its end it is seen that the client is gone
	}
	err = a.answerCache(w, r, q, files, log)
	if cacheWork[q.Do].changes {
		a.record(who, q.words(), auditDone, err)
	}
}

func (a *admin) answerCache(w http.ResponseWriter, r *http.Request, q *cacheRequest, files io.Reader, log *slog.Logger) error {
	control := http.NewResponseController(w)
	frames := newFrameWriter(patientWriter{w, control}, control.Flush)
	archive := cache.TarSink{Writer: tar.NewWriter(frameStream{frames, frameFile})}
	d := &desk{
		out:      frameStream{frames, frameOut},
		progress: func(line string) { _ = frames.say(frameProgress, line) },
		source:   cache.NewTarSource(files), sink: archive,
	}
	if q.Do == "import" {
		d.progress = func(string) {} // the client sees what it sent, and reads behind it
	}
	err := q.run(r.Context(), a.cache, a.policy.Current(), d)
	if q.Do == "export" && err == nil {
		err = archive.Close()
	}
	_, _ = io.Copy(io.Discard, files) // who still sends would not read why it failed
	if err != nil {
		log.Warn("admin's command failed", "error", err)
		_ = frames.say(frameError, err.Error())
		return err
	}
	_ = frames.say(frameEnd, "") // an error means that nobody reads it
	return nil
}

// patientWriter gives each write its own time limit.
type patientWriter struct {
	w       io.Writer
	control *http.ResponseController
}

func (p patientWriter) Write(b []byte) (int, error) {
	if err := p.control.SetWriteDeadline(time.Now().Add(cacheWriteTimeout)); err != nil {
		return 0, err
	}
	return p.w.Write(b)
}

// readCacheRequest reads a request, a line of JSON, and returns what is behind it.
func readCacheRequest(body io.Reader) (*cacheRequest, io.Reader, error) {
	dec := json.NewDecoder(io.LimitReader(body, maxCacheRequest))
	q := new(cacheRequest)
	if err := dec.Decode(q); err != nil {
		return nil, nil, err
	}
	rest := io.MultiReader(dec.Buffered(), body)
	var newline [1]byte
	if _, err := io.ReadFull(rest, newline[:]); err != nil || newline[0] != '\n' {
		return nil, nil, errors.New("the request does not end in a newline")
	}
	return q, rest, q.check()
}
