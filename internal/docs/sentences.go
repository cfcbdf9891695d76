package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var quotedHeading = regexp.MustCompile("(?m)^### `(.+)`$")

// Sentences returns what a page has as headings between backquotes: what a user reads,
// with "..." for what differs.
func Sentences(page string) []string {
	var all []string
	for _, m := range quotedHeading.FindAllStringSubmatch(page, -1) {
		all = append(all, m[1])
	}
	return all
}

// Texts returns the texts that stand in the Go files below a directory, those of tests
// aside. Texts that are added to each other are one.
func Texts(dir string) ([]string, error) {
	var texts []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			expr, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			text, constant := textOf(expr)
			if constant {
				texts = append(texts, text)
			}
			return !constant
		})
		return nil
	})
	return texts, err
}

func textOf(e ast.Expr) (text string, ok bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		left, okLeft := textOf(e.X)
		right, okRight := textOf(e.Y)
		return left + right, okLeft && okRight && e.Op == token.ADD
	}
	return "", false
}

// leastWords is how much of a sentence must stand in the code in one piece, in bytes: less
// is found anywhere.
const leastWords = 10

// Missing returns the parts of a sentence, between its "...", that stand in none of the
// texts. A sentence without any part of some length is missing as a whole.
func Missing(sentence string, texts []string) []string {
	var missing []string
	long := 0
	for part := range strings.SplitSeq(sentence, "...") {
		part = strings.Trim(part, " ")
		long = max(long, len(part))
		if part != "" && !stands(part, texts) {
			missing = append(missing, part)
		}
	}
	if long < leastWords {
		missing = append(missing, sentence)
	}
	return missing
}

// stands reports whether a part is in a text, or begins before a verb of one and goes
// on at the begin of another, as errors do that are put into each other.
func stands(part string, texts []string) bool {
	if slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(text, part) }) {
		return true
	}
	for at, c := range part {
		if c != ' ' {
			continue
		}
		before, behind := part[:at+1]+"%", part[at+1:]
		if slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(text, before) }) &&
			slices.ContainsFunc(texts, func(text string) bool { return strings.HasPrefix(text, behind) }) {
			return true
		}
	}
	return false
}
