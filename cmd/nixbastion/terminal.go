package main

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"

	"github.com/alecthomas/kong"
)

// query has the words of a question, and how the answer may look.
func query(out io.Writer, words []string) url.Values {
	q := url.Values{"word": words}
	if isTerminal(out) {
		q.Set("terminal", "1")
		if os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
			q.Set("colour", "1")
		}
	}
	return q
}

// isTerminal reports whether somebody may look at what is written. Of /dev/null it says
// so too, where it does not matter.
func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// watchFlag is --watch, with a number of seconds or without.
type watchFlag struct {
	on      bool
	seconds string
}

// IsBool says that no value need follow.
func (watchFlag) IsBool() bool { return true }

// Decode takes --watch=5, and the word behind --watch if it is a number.
func (f *watchFlag) Decode(ctx *kong.DecodeContext) error {
	f.on = true
	switch token := ctx.Scan.Peek(); {
	case token.Type == kong.FlagValueToken:
		f.seconds = fmt.Sprint(ctx.Scan.Pop().Value)
	case token.IsValue():
		if _, err := strconv.ParseFloat(fmt.Sprint(token.Value), 64); err != nil {
			return nil
		}
		f.seconds = fmt.Sprint(ctx.Scan.Pop().Value)
	}
	return nil
}

// words are those that the proxy is asked with.
func (f watchFlag) words() []string {
	switch {
	case !f.on:
		return nil
	case f.seconds == "":
		return []string{"--watch"}
	}
	return []string{"--watch=" + f.seconds}
}
