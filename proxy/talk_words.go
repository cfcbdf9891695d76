package proxy

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// question is one as it was put.
type question struct {
	word string
	args []string
	// json wants the answer for programs; watch wants it again after so long, until the
	// asker leaves; 0 is once.
	json  bool
	watch time.Duration
	// follow wants what a log still gets.
	follow bool
	filter buildFilter
}

// option is one word with two dashes. Take has its value, "" where it has none.
type option struct {
	name string
	// value says that one follows, as --name VALUE or --name=VALUE.
	value bool
	take  func(q *question, value string) error
}

var (
	optionJSON   = option{name: "--json", take: func(q *question, _ string) error { q.json = true; return nil }}
	optionFollow = option{name: "--follow", take: func(q *question, _ string) error { q.follow = true; return nil }}
	// optionWatch may have a value.
	optionWatch = option{name: "--watch", take: (*question).takeWatch}
)

// optionsOf are the questions, and what may stand behind them.
var optionsOf = map[string][]option{
	"status":  {optionJSON, optionWatch},
	"queue":   {optionJSON, optionWatch},
	"who":     {optionJSON, optionWatch},
	"why":     {optionJSON, optionWatch},
	"check":   {optionJSON, optionWatch},
	"explain": {optionJSON},
	"help":    {optionJSON, optionWatch},
	"log":     {optionJSON, optionFollow},
	"builds":  append([]option{optionJSON, optionWatch}, filterOptions...),
}

const (
	defaultWatch = 2 * time.Second
	maxWatch     = time.Hour
)

func (q *question) takeWatch(value string) error {
	q.watch = defaultWatch
	if value == "" {
		return nil
	}
	seconds, err := strconv.ParseFloat(value, 64)
	if err != nil || !(seconds >= 1 && seconds <= maxWatch.Seconds()) {
		return usage("--watch takes a number of seconds, 1 to %d, and not %s", maxWatch/time.Second, quoted(value))
	}
	q.watch = time.Duration(seconds * float64(time.Second))
	return nil
}

// parseQuestion takes words apart. Their first is one of optionsOf.
func parseQuestion(words []string) (*question, error) {
	q := &question{word: words[0], filter: buildFilter{limit: defaultBuildsShown}}
	for rest := words[1:]; len(rest) > 0; {
		word := rest[0]
		rest = rest[1:]
		if !strings.HasPrefix(word, "-") {
			q.args = append(q.args, word)
			continue
		}
		name, value, joined := strings.Cut(word, "=")
		i := slices.IndexFunc(optionsOf[q.word], func(o option) bool { return o.name == name })
		if i < 0 {
			return nil, usage("%s knows no option %q but %s", q.word, word, optionNames(q.word))
		}
		o := optionsOf[q.word][i]
		switch wants := o.value || o.name == optionWatch.name; {
		case joined && !wants:
			return nil, usage("%s takes no value", name)
		case o.value && !joined && len(rest) == 0:
			return nil, usage("%s needs a value", name)
		case o.value && !joined, !joined && wants && len(rest) > 0 && isSeconds(rest[0]):
			value, rest = rest[0], rest[1:]
		}
		if err := o.take(q, value); err != nil {
			return nil, err
		}
	}
	return q, nil
}

func isSeconds(word string) bool { return word != "" && strings.Trim(word, "0123456789.") == "" }

func optionNames(word string) string {
	var names []string
	for _, o := range optionsOf[word] {
		names = append(names, o.name)
	}
	return strings.Join(names, ", ")
}

// noArgs refuses what stands behind a question that takes only options.
func noArgs(word string, args []string) error {
	if len(args) > 0 {
		return usage("%s takes no arguments but %s", word, optionNames(word))
	}
	return nil
}
