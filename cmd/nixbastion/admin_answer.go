package main

import (
	"context"
	"errors"
	"net/http"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"nixbastion/proxy"
)

// adminLong is how many answers may go on at once that have no end of their own or are
// as long as a log or a list of the store. The others of adminConns are for short ones.
const adminLong = adminConns / 2

// isLong says of a question that its answer may be one of those.
func isLong(words []string) bool {
	return words[0] == "log" || slices.ContainsFunc(words, func(w string) bool {
		return w == "--follow" || w == "--watch" || strings.HasPrefix(w, "--watch=")
	})
}

// answer answers a question piece by piece. It ends when nobody reads any more, or when
// the proxy stops.
func (a *admin) answer(w http.ResponseWriter, r *http.Request, words []string) {
	if !a.open.TryRLock() {
		http.Error(w, "the proxy is shutting down", http.StatusServiceUnavailable)
		return
	}
	defer a.open.RUnlock()
	if isLong(words) {
		if !a.beginLong(w) {
			return
		}
		defer a.endLong()
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(a.halted, func() { cancel(proxy.ErrStops) })()
	q := r.URL.Query()
	out := &answerWriter{to: w, control: http.NewResponseController(w)}
	err := a.ask(ctx, out, words, proxy.Look{Terminal: q.Has("terminal"), Colour: q.Has("colour")})
	switch {
	case err == nil && !out.begun:
		out.begin()
	case err != nil && !out.begun:
		http.Error(w, err.Error(), statusOf(err))
	case err != nil:
		if !errors.Is(err, proxy.ErrStops) {
			a.log.Warn("answer to the admin ended early", "error", err)
		}
		panic(http.ErrAbortHandler) // so that it is not taken for a whole one
	}
}

// beginLong makes room for a long answer until endLong, or says that there is none.
func (a *admin) beginLong(w http.ResponseWriter) (ok bool) {
	select {
	case a.long <- struct{}{}:
		return true
	default:
		http.Error(w, "as many logs, lists of the store and answers with --follow or --watch are open already as can be; end one of them", http.StatusServiceUnavailable)
		return false
	}
}

func (a *admin) endLong() { <-a.long }

// answerWriter writes an answer to a socket. Each piece has adminWriteTimeout: a
// reader that does not read ends its answer, and holds up nobody else.
type answerWriter struct {
	to      http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func (w *answerWriter) begin() {
	w.begun = true
	w.to.Header().Set("Content-Type", "text/plain; charset=utf-8")
}

func (w *answerWriter) Write(text []byte) (int, error) {
	if !w.begun {
		w.begin()
	}
	if err := w.control.SetWriteDeadline(time.Now().Add(adminWriteTimeout)); err != nil {
		return 0, err
	}
	return w.to.Write(text)
}

// Flush sends what was written. An error comes again with the next piece.
func (w *answerWriter) Flush() { _ = w.control.Flush() }

// name is the account's name, for those to read whom its commands concern.
func (p peer) name() string {
	id := strconv.Itoa(p.uid)
	account, err := user.LookupId(id)
	if err != nil {
		return "account " + id
	}
	return account.Username
}
