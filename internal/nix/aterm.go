package nix

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ParseDerivation parses the content of a .drv file. Name is the derivation's
// name without ".drv": the paths of fixed outputs depend on it. Only text in the
// one form in which Nix writes it is accepted, so that whatever parses prints
// the same again. The result shares no memory with data.
func ParseDerivation(name string, data []byte) (*Derivation, error) {
	drv, err := parseDerivation(name, string(data))
	if err != nil {
		return nil, fmt.Errorf("derivation %q: %w", clip(name), err)
	}
	return drv, nil
}

func parseDerivation(name, text string) (*Derivation, error) {
	p := atermParser{rest: text}
	drv := p.derivation()
	if p.err == nil && p.rest != "" {
		p.fail("%d bytes behind the end", len(p.rest))
	}
	if p.err != nil {
		return nil, p.err
	}
	for _, o := range drv.Outputs {
		if err := checkWritten(o, name); err != nil {
			return nil, err
		}
	}
	if drv.ATerm() != text {
		return nil, errors.New("not in the form in which Nix writes it: unsorted, doubled or oddly escaped")
	}
	return drv, nil
}

func checkWritten(o DerivationOutput, drvName string) error {
	kind, err := o.CheckOutput(drvName)
	if err != nil || kind != FixedOutput {
		return err
	}
	if ca, err := o.ContentAddress(); err != nil || o.Hash != ca.Hash.Base16() {
		return fmt.Errorf("the hash of output %q is not in lower-case hex", o.Name)
	}
	return nil
}

// atermParser eats its text from the front; the first error stops everything.
type atermParser struct {
	rest string
	err  error
}

func (p *atermParser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

func (p *atermParser) expect(s string) {
	rest, ok := strings.CutPrefix(p.rest, s)
	if !ok {
		p.fail("expected string %q", s)
		return
	}
	p.rest = rest
}

// list calls element for each element of a list. A comma before the closing
// bracket is caught by the comparison of the whole.
func (p *atermParser) list(element func()) {
	p.expect("[")
	for p.err == nil {
		if rest, ok := strings.CutPrefix(p.rest, "]"); ok {
			p.rest = rest
			return
		}
		element()
		if !strings.HasPrefix(p.rest, "]") {
			p.expect(",")
		}
	}
}

func (p *atermParser) derivation() *Derivation {
	drv := new(Derivation)
	if strings.HasPrefix(p.rest, "DrvWithVersion(") {
		p.fail("dynamic derivations are not supported")
	}
	p.expect("Derive(")
	p.list(func() { drv.Outputs = append(drv.Outputs, p.output()) })
	p.expect(",")
	p.list(func() { drv.InputDrvs = append(drv.InputDrvs, p.inputDrv()) })
	p.expect(",")
	p.list(func() { drv.InputSrcs = append(drv.InputSrcs, p.storePath()) })
	p.expect(",")
	drv.Platform = p.string()
	p.expect(",")
	drv.Builder = p.string()
	p.expect(",")
	p.list(func() { drv.Args = append(drv.Args, p.string()) })
	p.expect(",")
	p.list(func() { drv.Env = append(drv.Env, p.envVar()) })
	p.expect(")")
	return drv
}

func (p *atermParser) output() DerivationOutput {
	var o DerivationOutput
	p.expect("(")
	o.Name = p.outputName()
	p.expect(",")
	if strings.HasPrefix(p.rest, `""`) {
		p.expect(`""`)
	} else {
		o.Path = p.storePath()
	}
	p.expect(",")
	o.HashAlgo = p.string()
	p.expect(",")
	o.Hash = p.string()
	p.expect(")")
	return o
}

func (p *atermParser) outputName() string {
	name := p.string()
	if err := CheckName(name); err != nil {
		p.fail("output %q: %w", clip(name), err)
	}
	return name
}

func (p *atermParser) inputDrv() InputDrv {
	var in InputDrv
	p.expect("(")
	in.Path = p.storePath()
	if p.err == nil && !in.Path.IsDerivation() {
		p.fail("input %s is not a derivation", in.Path)
	}
	p.expect(",")
	p.list(func() { in.Outputs = append(in.Outputs, p.outputName()) })
	if len(in.Outputs) == 0 {
		p.fail("inputDrvs entry for %q specifies no outputs", in.Path)
	}
	p.expect(")")
	return in
}

func (p *atermParser) envVar() EnvVar {
	var v EnvVar
	p.expect("(")
	v.Name = p.string()
	p.expect(",")
	v.Value = p.string()
	p.expect(")")
	return v
}

func (p *atermParser) storePath() StorePath {
	text := p.string()
	if p.err != nil {
		return StorePath{}
	}
	path, err := ParseStorePath(text)
	if err != nil {
		p.fail("%w", err)
	}
	return path
}

// string reads a quoted string. It copies, so that the parsed derivation does
// not keep the whole file alive for one name.
func (p *atermParser) string() string {
	p.expect(`"`)
	if p.err != nil {
		return ""
	}
	var b strings.Builder
	for {
		i := strings.IndexAny(p.rest, `"\`)
		if i < 0 || p.rest[i] == '\\' && i+1 == len(p.rest) {
			p.fail("unterminated string")
			return ""
		}
		b.WriteString(p.rest[:i])
		if p.rest[i] == '"' {
			p.rest = p.rest[i+1:]
			return b.String()
		}
		b.WriteByte(unescape(p.rest[i+1]))
		p.rest = p.rest[i+2:]
	}
}

func unescape(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c
}

var atermEscaper = strings.NewReplacer(`"`, `\"`, `\`, `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`)

// ATerm returns the content of the derivation's .drv file.
func (d *Derivation) ATerm() string {
	inputs := make([]hashedInput, len(d.InputDrvs))
	for i, in := range d.InputDrvs {
		inputs[i] = hashedInput{key: in.Path.String(), outputs: in.Outputs}
	}
	return d.aterm(inputs)
}

// hashedInput is an input derivation as it is printed: by its path in a .drv
// file, by its hash where a derivation's own hash is taken.
type hashedInput struct {
	key     string
	outputs []string
}

// aterm prints the derivation with sets sorted and without duplicates; of a
// doubled variable the last one counts, of a doubled output the first, as when
// Nix reads them.
func (d *BasicDerivation) aterm(inputs []hashedInput) string {
	w := new(atermWriter)
	w.WriteString("Derive(")
	list(w, sortedOutputs(d.Outputs), func(o DerivationOutput) { w.tuple(o.Name, o.Path.String(), o.HashAlgo, o.Hash) })
	w.WriteByte(',')
	list(w, sortedInputs(inputs), w.input)
	w.WriteByte(',')
	list(w, SortPaths(slices.Clone(d.InputSrcs)), func(p StorePath) { w.quote(p.String()) })
	w.WriteByte(',')
	w.quote(d.Platform)
	w.WriteByte(',')
	w.quote(d.Builder)
	w.WriteByte(',')
	list(w, d.Args, w.quote)
	w.WriteByte(',')
	list(w, sortedEnv(d.Env), func(v EnvVar) { w.tuple(v.Name, v.Value) })
	w.WriteByte(')')
	return w.String()
}

type atermWriter struct{ strings.Builder }

func list[T any](w *atermWriter, elements []T, write func(T)) {
	w.WriteByte('[')
	for i, e := range elements {
		if i > 0 {
			w.WriteByte(',')
		}
		write(e)
	}
	w.WriteByte(']')
}

func (w *atermWriter) quote(s string) {
	w.WriteByte('"')
	atermEscaper.WriteString(w, s) // a Builder takes everything
	w.WriteByte('"')
}

func (w *atermWriter) tuple(parts ...string) {
	for i, s := range parts {
		w.WriteByte("(,"[min(i, 1)])
		w.quote(s)
	}
	w.WriteByte(')')
}

func (w *atermWriter) input(in hashedInput) {
	w.WriteByte('(')
	w.quote(in.key)
	w.WriteByte(',')
	list(w, in.outputs, w.quote)
	w.WriteByte(')')
}

func sortedOutputs(outputs []DerivationOutput) []DerivationOutput {
	sorted := slices.Clone(outputs)
	slices.SortStableFunc(sorted, func(a, b DerivationOutput) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(sorted, func(a, b DerivationOutput) bool { return a.Name == b.Name })
}

func sortedEnv(env []EnvVar) []EnvVar {
	sorted := slices.Clone(env)
	slices.Reverse(sorted)
	slices.SortStableFunc(sorted, func(a, b EnvVar) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(sorted, func(a, b EnvVar) bool { return a.Name == b.Name })
}

// sortedInputs joins entries of the same key: different derivations may have the
// same hash.
func sortedInputs(inputs []hashedInput) []hashedInput {
	sorted := slices.Clone(inputs)
	slices.SortStableFunc(sorted, func(a, b hashedInput) int { return strings.Compare(a.key, b.key) })
	var joined []hashedInput
	for _, in := range sorted {
		if n := len(joined); n > 0 && joined[n-1].key == in.key {
			joined[n-1].outputs = append(joined[n-1].outputs, in.outputs...)
		} else {
			joined = append(joined, hashedInput{in.key, slices.Clone(in.outputs)})
		}
	}
	for i, in := range joined {
		slices.Sort(in.outputs)
		joined[i].outputs = slices.Compact(in.outputs)
	}
	return joined
}
