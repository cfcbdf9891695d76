package nix

import (
	"fmt"
	"strings"
)

// IngestionMethod says which bytes of a store object a content address hashes.
// The zero value is none.
type IngestionMethod uint8

// The methods. Text is a flat file with references (.drv files, toFile); Git is
// experimental in Nix.
const (
	Text IngestionMethod = iota + 1
	Flat
	NAR
	Git
)

// ContentAddressMethod is how a path is to be content-addressed: a method and
// an algorithm, without the hash. AddToStore carries it as "text:sha256",
// "fixed:sha256", "fixed:r:sha256" or "fixed:git:sha1".
type ContentAddressMethod struct {
	Method IngestionMethod
	Algo   HashAlgo
}

var methodPrefix = [...]string{Text: "text:", Flat: "fixed:", NAR: "fixed:r:", Git: "fixed:git:"}

// outputPrefix is how derivations spell a method, in front of the algorithm.
var outputPrefix = [...]string{Text: "text:", Flat: "", NAR: "r:", Git: "git:"}

// ParseContentAddressMethod parses the form that AddToStore carries.
func ParseContentAddressMethod(s string) (ContentAddressMethod, error) {
	method, rest, err := cutMethod(s)
	if err != nil {
		return ContentAddressMethod{}, err
	}
	algo, err := ParseHashAlgo(rest)
	if err != nil {
		return ContentAddressMethod{}, fmt.Errorf("content address method %q: %w", clip(s), err)
	}
	m := ContentAddressMethod{Method: method, Algo: algo}
	return m, m.check()
}

// ParseOutputMethod parses the form that outputs of derivations carry: "sha256",
// "r:sha256", "text:sha256" or "git:sha1".
func ParseOutputMethod(s string) (ContentAddressMethod, error) {
	m := ContentAddressMethod{Method: Flat}
	algo := s
	for _, method := range []IngestionMethod{Text, NAR, Git} {
		if rest, ok := strings.CutPrefix(s, outputPrefix[method]); ok {
			m.Method, algo = method, rest
		}
	}
	var err error
	if m.Algo, err = ParseHashAlgo(algo); err != nil {
		return ContentAddressMethod{}, fmt.Errorf("output method %q: %w", clip(s), err)
	}
	return m, m.check()
}

// OutputString returns the form that ParseOutputMethod reads.
func (m ContentAddressMethod) OutputString() string { return outputPrefix[m.Method] + m.Algo.String() }

func cutMethod(s string) (IngestionMethod, string, error) {
	for _, m := range []IngestionMethod{Text, NAR, Git, Flat} { // Flat last: its prefix starts the others
		if rest, ok := strings.CutPrefix(s, methodPrefix[m]); ok {
			return m, rest, nil
		}
	}
	return 0, "", fmt.Errorf("unknown content address %q", clip(s))
}

func (m ContentAddressMethod) check() error {
	if m.Method == Text && m.Algo != SHA256 {
		return fmt.Errorf("text is addressed by sha256, not %s", m.Algo)
	}
	if m.Method == Git && m.Algo != SHA1 && m.Algo != SHA256 {
		return fmt.Errorf("git trees are addressed by sha1 or sha256, not %s", m.Algo)
	}
	return nil
}

// String returns the form that ParseContentAddressMethod reads.
func (m ContentAddressMethod) String() string { return methodPrefix[m.Method] + m.Algo.String() }

// ContentAddress says that a path's name follows from its content. The zero
// value is "not content-addressed". It is a claim until the content was hashed.
type ContentAddress struct {
	Method IngestionMethod
	Hash   Hash
}

// ParseContentAddress parses "text:sha256:<digest>", "fixed:<algo>:<digest>",
// "fixed:r:<algo>:<digest>" or "fixed:git:<algo>:<digest>". The empty string is
// the zero value.
func ParseContentAddress(s string) (ContentAddress, error) {
	if s == "" {
		return ContentAddress{}, nil
	}
	method, rest, err := cutMethod(s)
	if err != nil {
		return ContentAddress{}, err
	}
	hash, err := ParseHash(rest, 0)
	if err != nil {
		return ContentAddress{}, fmt.Errorf("content address %q: %w", clip(s), err)
	}
	ca := ContentAddress{Method: method, Hash: hash}
	return ca, ContentAddressMethod{Method: method, Algo: hash.Algo()}.check()
}

// IsZero reports whether there is no content address.
func (ca ContentAddress) IsZero() bool { return ca.Method == 0 }

// String returns the form that ParseContentAddress reads, with the digest in
// nix32; "" for the zero value.
func (ca ContentAddress) String() string {
	if ca.IsZero() {
		return ""
	}
	return methodPrefix[ca.Method] + ca.Hash.String()
}
