package proxy

import "strings"

// splitWords takes a command apart as a shell does: at blanks, and without the
// quotes. plain is false where a shell would do more than that, such as run
// something else, expand a variable or go on behind the end of a line; the words
// are then good for nothing but a better refusal.
//
// What a URI may hold is plain as it stands: since 2.20 Nix sends store URIs
// without quotes.
func splitWords(text string) (words []string, plain bool) {
	s := wordSplitter{rest: text, plain: true}
	for s.next() {
		words = append(words, s.word.String())
	}
	return words, s.plain
}

// wordSplitter reads one word after the other.
type wordSplitter struct {
	rest  string
	word  strings.Builder
	plain bool
}

// next reads the next word and reports whether there is one.
func (s *wordSplitter) next() bool {
	s.rest = strings.TrimLeft(s.rest, " ")
	s.word.Reset()
	if s.rest == "" {
		return false
	}
	if strings.ContainsRune("#~!", rune(s.rest[0])) && !strings.HasPrefix(s.rest, "~/") {
		s.plain = false // a comment, somebody's home, a negation
	}
	for s.rest != "" && s.rest[0] != ' ' {
		s.step()
	}
	return true
}

// step takes a quoted part or one byte.
func (s *wordSplitter) step() {
	c := s.rest[0]
	s.rest = s.rest[1:]
	switch {
	case c == '\'' || c == '"':
		s.quoted(c)
	case c == '\\' && s.rest != "":
		s.take(s.rest[0])
		s.rest = s.rest[1:]
	case c == '&' && !s.insideWord():
		s.plain = false
		s.take(c)
	case strings.IndexByte("\\;|<>()$`*{}", c) >= 0:
		s.plain = false
		s.take(c)
	default:
		s.take(c)
	}
}

// quoted takes what stands before the closing quote.
func (s *wordSplitter) quoted(quote byte) {
	inside, rest, closed := strings.Cut(s.rest, string(quote))
	s.rest = rest
	if !closed || quote == '"' && strings.ContainsAny(inside, "$`\\!") {
		s.plain = false
	}
	for i := range len(inside) {
		s.take(inside[i])
	}
}

// take adds a byte to the word. Nothing that Nix sends is outside of ASCII.
func (s *wordSplitter) take(c byte) {
	if c < ' ' || c > '~' {
		s.plain = false
	}
	s.word.WriteByte(c)
}

// insideWord says that the byte just read has others of the same word around it,
// as an & between the parameters of a URI does.
func (s *wordSplitter) insideWord() bool {
	return s.word.Len() > 0 && s.rest != "" && s.rest[0] != ' ' && s.rest[0] != '&' &&
		!strings.HasSuffix(s.word.String(), "&")
}
