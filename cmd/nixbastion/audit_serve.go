package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"nixbastion/internal/audit"
	"nixbastion/policy"
	"nixbastion/proxy"
)

// auditOptions are how the policy has the log kept. Its File is empty for none.
func auditOptions(a policy.Audit, log *slog.Logger) audit.Options {
	return audit.Options{
		File: a.File, SyncAlways: a.SyncAlways, RotateSize: a.RotateSize, RotateAge: a.RotateAge,
		Keep: a.Keep, Continue: a.Continue, Version: version, Log: log,
	}
}

// openAudit opens the audit log of the policy and notes the start. The function
// returned notes the end; everything that records must have ended before.
func openAudit(live *policy.Live, config string, log *slog.Logger) (proxy.Auditor, func(), error) {
	pol := live.Current()
	if pol.Audit.File == "" {
		log.Warn("no audit log is kept (audit: off)")
		return nil, func() {}, nil
	}
	l, err := audit.Open(auditOptions(pol.Audit, log))
	if err != nil {
		return nil, nil, fmt.Errorf("%w\nhint: let the proxy's account write there, choose another place (audit: {file: PATH}), or audit: off", err)
	}
	l.Record(audit.Event{Kind: audit.Start, Version: version, File: config, FileHash: pol.FileHash})
	return l, func() {
		l.Record(audit.Event{Kind: audit.Stop, Version: version})
		if err := l.Close(); err != nil {
			log.Error("audit log does not end in order", "error", err)
		}
	}, nil
}

// How an admin's command went.
const (
	auditDone    = "done"
	auditRefused = "refused"
	auditFailed  = "failed"
)

// record keeps a command of the admin that changes something.
func (a *admin) record(who peer, words []string, result string, err error) {
	if a.audit != nil {
		a.audit.Record(adminEvent(who.uid, words, result, err))
	}
}

func adminEvent(uid int, words []string, result string, err error) audit.Event {
	e := audit.Event{Kind: audit.Admin, UID: strconv.Itoa(uid), Command: strings.Join(words, " "), Result: result}
	if err != nil {
		e.Result, e.Reason = auditFailed, err.Error()
	}
	return e
}

// recordAlone keeps a command on the store of a proxy that does not run.
func (q *cacheRequest) recordAlone(a policy.Audit, failure error, log *slog.Logger) error {
	if a.File == "" {
		return nil
	}
	l, err := audit.Open(auditOptions(a, log))
	if err != nil {
		return err
	}
	err = l.Commit(adminEvent(os.Geteuid(), q.words(), auditDone, failure))
	return errors.Join(err, l.Close())
}

// words are a command on the store as the audit log has it, with what it may do, and
// as much of its paths as there is room for.
func (q *cacheRequest) words() []string {
	words := []string{"cache", q.Do}
	if q.Domain != "" {
		words = append(words, "--domain", q.Domain)
	}
	if q.Vouch {
		words = append(words, "--vouch")
	}
	if q.Referrers {
		words = append(words, "--referrers")
	}
	if q.Size != nil {
		words = append(words, "--size", strconv.FormatInt(*q.Size, 10))
	}
	return append(words, q.Paths...)
}
