package docs

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// shape is what is needed of a JSON Schema here.
type shape struct {
	Description          string
	Type                 string
	Enum                 []string
	Const                *int
	Pattern              string
	Minimum, Maximum     *float64
	Items                *shape
	UniqueItems          bool
	Properties           map[string]*shape
	Required             []string
	AdditionalProperties json.RawMessage
	AnyOf                []*shape
}

const referenceHead = `# Configuration

<!-- Made of policy/schema.json: go test ./internal/docs -run Reference -update -->

Every key of the policy file, by the alphabet. [config.example.yaml](../config.example.yaml) has the same in the order in which one writes a policy.
` + "`nixbastion check FILE` says what a file means, `nixbastion check --print FILE` what counts with all defaults and where it is from; " +
	"`nixbastion schema`" + ` prints the schema for editors.

Keys that are not listed here are mistakes. **Needed** is said of keys that their mapping cannot be without. Sizes are whole numbers with B, KiB, MiB, GiB or
TiB, durations numbers with ms, s, m or h, as ` + "`1h30m`" + `. Paths that do not begin with / start from the directory of the file that has them.
`

// Reference makes the page of all keys of a JSON Schema. Defaults have the values of
// keys that are not set, by the key's path.
func Reference(schema []byte, defaults map[string]string) (string, error) {
	var root shape
	if err := json.Unmarshal(schema, &root); err != nil {
		return "", fmt.Errorf("read schema: %w", err)
	}
	r := reference{defaults: defaults}
	r.WriteString(referenceHead)
	r.keys("", "##", &root)
	return r.String(), nil
}

type reference struct {
	strings.Builder
	defaults map[string]string
}

// keys writes those of a mapping, or of the mappings that a value may be or have.
func (r *reference) keys(path, level string, s *shape) {
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		r.key(path+name, level, s.Properties[name], slices.Contains(s.Required, name))
	}
	if s.Items != nil {
		r.keys(strings.TrimSuffix(path, ".")+"[].", level, s.Items)
	}
	for _, one := range s.AnyOf {
		r.keys(path, level, one)
	}
}

func (r *reference) key(path, level string, s *shape, needed bool) {
	fmt.Fprintf(r, "\n%s `%s`\n\n%s.", level, path, upper(words(s)))
	if value, ok := r.defaults[path]; ok && !strings.Contains(s.Description, "efault") {
		fmt.Fprintf(r, " Default `%s`.", value)
	}
	if needed {
		r.WriteString(" **Needed.**")
	}
	r.WriteString("\n")
	if s.Description != "" {
		r.WriteString("\n" + prose(s.Description))
	}
	r.keys(path+".", "###", s)
}

// words say what a value may be.
func words(s *shape) string {
	switch {
	case len(s.AnyOf) > 0:
		return anyOf(s.AnyOf)
	case len(s.Enum) > 0:
		return "`" + strings.Join(s.Enum, "` or `") + "`"
	case s.Const != nil:
		return "`" + strconv.Itoa(*s.Const) + "`"
	case strings.Contains(s.Pattern, "KiB"):
		return "a size"
	case strings.Contains(s.Pattern, "ms|s|m|h"):
		return "a duration"
	}
	return typeWords(s)
}

func anyOf(shapes []*shape) string {
	var all []string
	for _, one := range shapes {
		if w := words(one); !slices.Contains(all, w) {
			all = append(all, w)
		}
	}
	return strings.Join(all, ", or ")
}

func typeWords(s *shape) string {
	switch s.Type {
	case "boolean":
		return "`true` or `false`"
	case "integer":
		return "a whole number" + bounds(s)
	case "number":
		return "a number" + bounds(s)
	case "array":
		return listWords(words(s.Items))
	case "object":
		var value shape
		if json.Unmarshal(s.AdditionalProperties, &value) == nil {
			return "names, each with " + words(&value)
		}
		return "a mapping"
	}
	return "text"
}

func listWords(items string) string {
	switch items {
	case "text":
		return "a list of text"
	case "a mapping":
		return "a list of mappings"
	}
	return "a list; each item is " + items
}

func bounds(s *shape) string {
	if s.Minimum == nil || s.Maximum == nil {
		return ""
	}
	return fmt.Sprintf(", %s to %s", number(*s.Minimum), number(*s.Maximum))
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

func upper(text string) string {
	if text == "" || text[0] == '`' {
		return text
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

var escape = strings.NewReplacer("*", `\*`, "<", "&lt;", "[", `\[`)

// prose makes Markdown of a comment, in which lines that are indented are code.
func prose(comment string) string {
	var b strings.Builder
	code := false
	for line := range strings.Lines(comment + "\n") {
		indented := strings.HasPrefix(line, " ")
		if indented != code {
			b.WriteString(map[bool]string{true: "\n```text\n", false: "```\n\n"}[indented])
			code = indented
		}
		if !code {
			line = escape.Replace(line)
		}
		b.WriteString(line)
	}
	if code {
		b.WriteString("```\n")
	}
	return b.String()
}
