package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"nixbastion/internal/audit"
	"nixbastion/policy"
)

// defaultAuditFile is that of the state directory which the unit and the example
// have.
const defaultAuditFile = "/var/lib/nixbastion/audit/audit.jsonl"

type auditCmd struct {
	Verify auditVerifyCmd `cmd:"" help:"Look whether the audit log is whole, and name the first line that is not as it was written."`
	Grep   auditGrepCmd   `cmd:"" help:"Print events of the audit log."`
}

// auditFiles say which files are read.
type auditFiles struct {
	Files  []string `arg:"" optional:"" name:"file" help:"Files of one log, in any order. Default: all files of the proxy's log." type:"path"`
	Config string   `help:"The policy file, which names the log (default: /var/lib/nixbastion/audit/audit.jsonl)." type:"path"`
}

// find returns them, the oldest first.
func (f auditFiles) find() ([]string, error) {
	if len(f.Files) > 0 {
		return audit.InOrder(f.Files), nil
	}
	file := defaultAuditFile
	if f.Config != "" {
		pol, err := policy.Load(f.Config)
		if err != nil {
			return nil, reportMistakes(err)
		}
		if file = pol.Audit.File; file == "" {
			return nil, errors.New("the policy keeps no audit log (audit: off)\nhint: name the files of an old one")
		}
	}
	files, err := audit.Files(file)
	switch {
	case err != nil:
		return nil, fmt.Errorf("find the audit log: %w\nhint: root and the proxy's own account may read it", err)
	case len(files) == 0:
		return nil, fmt.Errorf("there is no audit log at %s\nhint: say --config FILE, or name its files", file)
	}
	return files, nil
}

type auditVerifyCmd struct {
	auditFiles
	Head []string `help:"A hash from the proxy's log (head); the log must still have the line of it. May stand several times." placeholder:"HASH"`
}

// Run prints what it found of each file. Its error names the first wrong line.
func (c auditVerifyCmd) Run(out io.Writer) error {
	heads, err := parseHeads(c.Head)
	if err != nil {
		return err
	}
	var reports []audit.FileReport
	var missing []audit.Hash
	err = c.whole(func(files []string) (err error) {
		reports = nil
		missing, err = audit.Verify(files, heads, func(r audit.FileReport) { reports = append(reports, r) })
		return err
	})
	for _, r := range reports {
		printReport(out, r)
	}
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("no line has the hash %s: lines were cut off, or the chain was made anew", missing[0])
	}
	return err
}

// whole has all files read, once more if that failed and their names stand for others
// by then.
func (f auditFiles) whole(read func(files []string) error) error {
	for {
		files, err := f.find()
		if err != nil {
			return err
		}
		failure := read(files)
		if now, err := f.find(); failure == nil || err != nil || slices.Equal(now, files) {
			return failure
		}
	}
}

func parseHeads(texts []string) ([]audit.Hash, error) {
	heads := make([]audit.Hash, len(texts))
	for i, text := range texts {
		h, ok := audit.ParseHash(text)
		if !ok {
			return nil, mistaken("%s is not a hash; the proxy's log has it as head, 64 digits of hex", strconv.Quote(text))
		}
		heads[i] = h
	}
	return heads, nil
}

func printReport(out io.Writer, r audit.FileReport) {
	fmt.Fprintf(out, "%s: %d lines are whole, head %s\n", r.File, r.Lines, r.Head)
	for _, note := range r.Notes {
		fmt.Fprintf(out, "  note: %s\n", note)
	}
}

// mistaken is an error in the command line, once it was told.
func mistaken(format string, args ...any) error {
	fmt.Fprintf(os.Stderr, "nixbastion: "+format+"\n", args...)
	return errMistakes
}

type auditGrepCmd struct {
	auditFiles
	Event     []string `help:"Only these events, as login,build." placeholder:"EVENT"`
	Principal string   `help:"Only of this principal."`
	Address   string   `help:"Only of clients from this address."`
	Builder   string   `help:"Only about this builder."`
	Drv       string   `help:"Only about derivations with this in their path."`
	Path      string   `help:"Only about paths with this in them: uploads, signatures, outputs."`
	Since     string   `help:"Only from then on: 24h or 7d for so long ago, or 2026-11-30, or \"2026-11-30 18:45\", or with a zone as 2026-11-30T18:45:13Z." placeholder:"TIME"`
	Until     string   `help:"Only before then." placeholder:"TIME"`
	JSON      bool     `help:"Lines as they stand in the log." name:"json"`
}

// Run streams the events that the flags choose.
func (c auditGrepCmd) Run(out io.Writer) error {
	filter, err := c.filter(time.Now())
	if err != nil {
		return err
	}
	lines := bufio.NewWriterSize(out, 64<<10)
	passed := 0
	err = c.each(func(file string) error {
		n, err := audit.Scan(file, filter, func(e *audit.Event, line []byte) error { return c.print(lines, e, line) })
		passed += n
		return err
	})
	if passed > 0 {
		fmt.Fprintf(os.Stderr, "nixbastion: %d lines are not events; nixbastion audit verify says more\n", passed)
	}
	return errors.Join(err, lines.Flush())
}

// each visits the files, and those that become full meanwhile.
func (f auditFiles) each(visit func(file string) error) error {
	seen := map[string]bool{}
	for {
		files, err := f.find()
		if err != nil {
			return err
		}
		next := slices.IndexFunc(files, func(file string) bool { return !seen[file] })
		if next < 0 {
			return nil
		}
		seen[files[next]] = true
		if err := visit(files[next]); err != nil || next == len(files)-1 {
			return err
		}
	}
}

func (c auditGrepCmd) print(out *bufio.Writer, e *audit.Event, line []byte) error {
	if !c.JSON {
		_, err := fmt.Fprintln(out, e)
		return err
	}
	_, err := out.Write(append(line, '\n'))
	return err
}

func (c auditGrepCmd) filter(now time.Time) (*audit.Filter, error) {
	f := &audit.Filter{Principal: c.Principal, Address: c.Address, Builder: c.Builder, Drv: c.Drv, Path: c.Path}
	for _, name := range c.Event {
		if !slices.Contains(audit.Kinds, audit.Kind(name)) {
			return nil, mistaken("there is no event %s; there is %s", strconv.Quote(name), kindsText())
		}
		f.Kinds = append(f.Kinds, audit.Kind(name))
	}
	var err error
	if f.Since, err = parseTime(c.Since, now); err != nil {
		return nil, err
	}
	f.Until, err = parseTime(c.Until, now)
	return f, err
}

func kindsText() string {
	all := make([]string, len(audit.Kinds))
	for i, kind := range audit.Kinds {
		all[i] = string(kind)
	}
	return strings.Join(all, ", ")
}

// parseTime reads a time, or how long ago it is. No text is no time.
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, -int(n)), nil
		}
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateTime, "2006-01-02 15:04", "2006-01-02T15:04:05", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, mistaken("%s is not a time; write 24h, 7d, 2026-11-30, \"2026-11-30 18:45\" or 2026-11-30T18:45:13Z", strconv.Quote(text))
}
