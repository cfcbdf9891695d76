package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// What the proxy answers about itself, over ssh to clients and on the admin's
// socket, as text for people and with --json for programs:
//
//	talk_status.go  status  builders, slots and queue
//	talk_queue.go   queue   what waits, in order
//	talk_builds.go  builds  what runs, and what has ended and how
//	talk_log.go     log     the log of a build
//	talk_who.go     who     who is connected, for the admin alone
//	talk_why.go     why     where a build would go, and why
//	talk_explain.go explain the same for somebody else, whether he may, and for a .drv file: for the admin alone
//	talk_check.go   check   what a key is here, and what its client needs
//	talk_help.go    help    what works here
//	talk_words.go           how a question is put
//	talk_page.go            how it looks to people
//
// What changes something is for the admin alone: talk_drain.go, talk_kill.go. A client
// learns what its domain and role allow, the admin learns all. Keys of
// the JSON are stable: new ones may come, none changes its meaning.

// statusUsage is the exit status of a question that makes no sense.
const statusUsage = 2

// UsageError says that a question makes no sense as it was put. Its text is a line
// for whoever put it.
type UsageError struct{ Message string }

func (e *UsageError) Error() string { return e.Message }

func usage(format string, args ...any) error { return &UsageError{fmt.Sprintf(format, args...)} }

// asker is whoever puts a question.
type asker struct {
	// client is set for those that come over ssh, nil for the admin.
	client *Identity
	access *policy.Access
}

// sees reports whether the asker may learn of a domain's builders and builds.
func (a *asker) sees(domain string) bool {
	return a.client == nil || a.access.Principal.Domain == domain
}

// seesReasons reports whether the asker may learn what others build and what is
// wrong with builders: that is for those who build there.
func (a *asker) seesReasons() bool {
	return a.client == nil || a.access.Principal.Role == policy.RoleFull
}

// ErrStops ends an answer that goes on when the proxy stops, as the cause of its context.
var ErrStops = errors.New("the proxy stops, or another process takes its place: ask again for the rest")

// answer is what a question comes to. As JSON it is itself.
type answer interface {
	// print writes it for people.
	print(page *page)
}

// answerQuestion answers a client and returns its exit status.
func (p *Proxy) answerQuestion(ctx context.Context, x *Exec, words []string) int {
	ctx, stop := untilStopping(ctx, x.Stopping)
	defer stop()
	look := Look{Terminal: x.Terminal, Colour: x.Terminal && x.Env["NO_COLOR"] == "" && x.Env["TERM"] != "dumb"}
	err := p.reply(ctx, &asker{client: x.Identity, access: accessOf(x)}, exitWriter{x, stop}, words, look)
	if why := x.sentAway(); why != nil {
		err = why
	}
	if err == nil {
		return 0
	}
	x.say(Printable(endText(err)))
	if errors.As(err, new(*UsageError)) {
		return statusUsage
	}
	return 1
}

// sentAway says why the client has to go, nil if it may stay.
func (x *Exec) sentAway() error {
	if x.Dismissed == nil {
		return nil
	}
	return x.Dismissed()
}

// untilStopping ends a context also when the front stops: an answer that goes on would
// keep it from its end. Stop must be called.
func untilStopping(ctx context.Context, stopping <-chan struct{}) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case <-stopping:
			cancel(ErrStops)
		case <-ctx.Done():
		}
	})
	return ctx, func() { cancel(nil); waiting.Wait() }
}

// exitWriter writes lines to a client, and ends the answer of one that has to go: it may
// wait for its builds, and learns nothing else meanwhile.
type exitWriter struct {
	x    *Exec
	stop func()
}

func (w exitWriter) Write(text []byte) (int, error) {
	if err := w.x.sentAway(); err != nil {
		w.stop()
		return 0, err
	}
	return len(text), w.x.write(w.x.Stdout, string(text))
}

// adminQuestions are what the admin's socket answers.
var adminQuestions = []string{"status", "queue", "builds", "log", "who", "why", "explain"}

// AskAdmin answers the admin, who may learn all. Words are a question and what follows.
// The answer is written piece by piece: an error behind the first piece leaves it
// incomplete. The error may be a [UsageError]. With --watch and --follow it goes on
// until ctx ends or out fails; the error is [ErrStops] if that is why ctx ended. Out may
// have a method Flush, which is called when there is nothing more for now.
func (p *Proxy) AskAdmin(ctx context.Context, out io.Writer, words []string, look Look) error {
	if len(words) == 0 || !slices.Contains(adminQuestions, words[0]) {
		return usage("there is %s", strings.Join(adminQuestions, ", "))
	}
	return p.reply(ctx, &asker{}, out, words, look)
}

// reply answers a question as the asker wants it.
func (p *Proxy) reply(ctx context.Context, a *asker, out io.Writer, words []string, look Look) error {
	q, err := parseQuestion(words)
	if err != nil {
		return err
	}
	if q.word == "log" {
		return p.writeLog(ctx, a, out, q)
	}
	for {
		answer, err := p.find(ctx, a, q)
		if err != nil {
			return err
		}
		text, err := q.render(answer, look)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(out, text); err != nil {
			return nil // nobody reads it any more
		}
		flush(out)
		if q.watch == 0 {
			return nil
		}
		if !pause(ctx, q.watch) {
			return endedEarly(ctx)
		}
	}
}

// endedEarly is for an answer whose context ended before it: nil if nobody reads it any
// more.
func endedEarly(ctx context.Context) error {
	if err := context.Cause(ctx); err == ErrStops {
		return err
	}
	return nil
}

// pause reports whether a time has gone by before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func flush(out io.Writer) {
	if f, ok := out.(interface{ Flush() }); ok {
		f.Flush()
	}
}

func (p *Proxy) find(ctx context.Context, a *asker, q *question) (answer, error) {
	switch q.word {
	case "status":
		return p.status(a, q.args)
	case "queue":
		return p.queue(a, q.args)
	case "builds":
		return p.listBuilds(a, q)
	case "who":
		return p.who(a, q.args)
	case "why":
		return p.why(ctx, a, q.args)
	case "explain":
		return p.explain(ctx, q.args)
	case "check":
		return p.checkKey(a, q.args)
	}
	return help(a, q.args)
}

// list joins names for people, "-" if there is none.
func list(names []string) string {
	if len(names) == 0 {
		return "-"
	}
	return strings.Join(names, ",")
}

// orNone makes a list that is [] in JSON where it is empty.
func orNone(names []string) []string {
	if names == nil {
		return []string{}
	}
	return names
}

// mayAsk refuses what is not for the asker's role.
func (a *asker) mayAsk(what string) error {
	if a.seesReasons() {
		return nil
	}
	principal := a.access.Principal
	return nix.Refuse("key of %q has the role %s and may not ask %s", principal.Name, principal.Role, what)
}
