package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// What the proxy answers about itself, over ssh to clients and on the admin's
// socket, as text for people and with --json for programs:
//
//	talk_status.go  status  builders, slots and queue
//	talk_why.go     why     where a build would go, and why
//	talk_explain.go explain the same for somebody else, whether he may, and for a .drv file: for the admin alone
//	talk_check.go   check   what a key is here, and what its client needs
//	talk_help.go    help    what works here
//
// A client learns what its domain and role allow, the admin learns all. Keys of
// the JSON are stable: new ones may come, none changes its meaning.

// questions are the words that begin one.
var questions = []string{"status", "why", "check", "help"}

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

// answer is what a question comes to. As JSON it is itself.
type answer interface {
	// print writes it for people.
	print(page *page)
}

// answerQuestion answers a client and returns its exit status.
func (p *Proxy) answerQuestion(ctx context.Context, x *Exec, words []string) int {
	text, err := p.ask(ctx, &asker{client: x.Identity, access: accessOf(x)}, words)
	if err == nil {
		x.print(x.Stdout, text)
		return 0
	}
	x.say(printable(endText(err)))
	if errors.As(err, new(*UsageError)) {
		return statusUsage
	}
	return 1
}

// adminQuestions are the words that begin a question of the admin.
var adminQuestions = []string{"status", "why", "explain"}

// AskAdmin answers the admin, who may learn all. Words are one of adminQuestions and
// what follows. The error may be a [UsageError].
func (p *Proxy) AskAdmin(ctx context.Context, words []string) (string, error) {
	if len(words) == 0 || !slices.Contains(adminQuestions, words[0]) {
		return "", usage("there is %s", strings.Join(adminQuestions, ", "))
	}
	return p.ask(ctx, &asker{}, words)
}

// ask returns the answer to a question as the asker wants it.
func (p *Proxy) ask(ctx context.Context, a *asker, words []string) (string, error) {
	args := slices.DeleteFunc(slices.Clone(words[1:]), func(arg string) bool { return arg == "--json" })
	asJSON := len(args) < len(words)-1
	if i := slices.IndexFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "-") }); i >= 0 {
		return "", usage("%s knows no option %q but --json", words[0], args[i])
	}
	answer, err := p.find(ctx, a, words[0], args)
	if err != nil {
		return "", err
	}
	if asJSON {
		return inJSON(answer)
	}
	return inWords(answer), nil
}

func (p *Proxy) find(ctx context.Context, a *asker, question string, args []string) (answer, error) {
	switch question {
	case "status":
		return p.status(a, args)
	case "why":
		return p.why(ctx, a, args)
	case "explain":
		return p.explain(ctx, args)
	case "check":
		return p.checkKey(a, args)
	}
	return help(a, args)
}

func inJSON(a answer) (string, error) {
	var text strings.Builder
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(a); err != nil {
		return "", fmt.Errorf("write the answer: %w", err)
	}
	return printable(text.String()), nil
}

func inWords(a answer) string {
	var page page
	a.print(&page)
	return printable(page.String())
}

// printable takes away what could do more to a terminal than print: texts of
// peers are in answers, such as what a builder's sshd said.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.ToValidUTF8(text, "?"))
}

// page collects lines for people.
type page struct{ strings.Builder }

func (p *page) line(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

// table writes rows with aligned columns, indented.
func (p *page) table(rows [][]string) {
	t := tabwriter.NewWriter(p, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, "  "+strings.Join(row, "\t"))
	}
	t.Flush()
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
