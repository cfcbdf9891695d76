package testbed

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// A Derivation is a build that needs no nixpkgs: /bin/sh runs a script made
// from these fields, with the sandbox off. Name alone gives a build that writes
// its name to $out at once. What is random in the output is made anew by every
// build; all else is the same each time.
type Derivation struct {
	// Name is also the attribute in [Expression], so letters, digits, - and _.
	Name string
	// System "" is NativeSystem.
	System string
	// RequiredFeatures is requiredSystemFeatures.
	RequiredFeatures []string

	// Inputs are names of other derivations of the same Expression.
	Inputs []string
	// Sources are files or folders on the client, which become inputs.
	Sources []string
	// KeepInputs makes the first output refer to all inputs.
	KeepInputs bool

	// Sleep is how long the build takes without a thought for capacity.
	Sleep time.Duration
	// Work is how long it takes once it holds one of the builder's Slots, at
	// Speed 1; see BuildRecords.
	Work time.Duration
	// LogLines is the number of lines "log line N" that the build writes.
	LogLines int
	// Script is shell text that runs before outputs are made, with $out and the
	// other outputs in the environment.
	Script string
	// ExitStatus other than 0 fails the build before outputs are made.
	ExitStatus int

	// Outputs nil is "out". Each output refers to the one after it.
	Outputs []string
	// OutputFiles is the number of files in the first output; 0 makes it a file
	// itself. OutputSize is the size in bytes of each file, where 0 means the
	// name of the derivation and a newline.
	OutputFiles int
	OutputSize  int64
	// Random fills files with incompressible bytes instead of repeated text.
	Random bool

	// Fixed makes a fixed-output derivation (flat, sha256) whose output is
	// exactly this text; it goes with none of the fields on outputs.
	Fixed string
	// ContentAddressed makes the outputs floating content-addressed.
	ContentAddressed bool
	// Attributes are more attributes in the Nix language: {"preferLocalBuild": "true"}.
	Attributes map[string]string
}

// Expression returns Nix text: a set with one attribute per derivation, to
// build with nix-build FILE -A NAME.
func Expression(derivations ...Derivation) string {
	var text strings.Builder
	text.WriteString("rec {\n")
	for _, d := range derivations {
		d.write(&text)
	}
	text.WriteString("}\n")
	return text.String()
}

func (d Derivation) write(w *strings.Builder) {
	fmt.Fprintf(w, "  %s = derivation {\n", d.Name)
	set := func(name, value string) { fmt.Fprintf(w, "    %s = %s;\n", name, value) }
	set("name", quote(d.Name))
	set("system", quote(d.systemOrNative()))
	set("builder", quote("/bin/sh"))
	set("args", list([]string{quote("-c"), quote(d.script())}))
	set("PATH", quote("/usr/bin:/bin"))
	set("inputs", list(append(append([]string{}, d.Inputs...), d.Sources...)))
	if d.Outputs != nil {
		set("outputs", list(quoteAll(d.Outputs)))
	}
	if d.RequiredFeatures != nil {
		set("requiredSystemFeatures", list(quoteAll(d.RequiredFeatures)))
	}
	d.writeAddressing(set)
	for name, value := range d.Attributes {
		set(name, value)
	}
	w.WriteString("  };\n")
}

func (d Derivation) writeAddressing(set func(name, value string)) {
	switch {
	case d.Fixed != "":
		sum := sha256.Sum256([]byte(d.Fixed))
		set("outputHashMode", quote("flat"))
		set("outputHashAlgo", quote("sha256"))
		set("outputHash", quote(hex.EncodeToString(sum[:])))
	case d.ContentAddressed:
		set("__contentAddressed", "true")
		set("outputHashMode", quote("recursive"))
		set("outputHashAlgo", quote("sha256"))
	}
}

func (d Derivation) systemOrNative() string {
	if d.System == "" {
		return NativeSystem
	}
	return d.System
}

// script is what /bin/sh runs. Inputs are read through first: a builder that
// misses one must not look well.
func (d Derivation) script() string {
	var s strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&s, format+"\n", args...) }
	line("set -eu")
	line(`for i in $inputs; do test -e $i; done`)
	if d.LogLines > 0 {
		line(`seq -f 'log line %%.0f' 1 %d >&2`, d.LogLines)
	}
	if d.Sleep > 0 {
		line("sleep %.3f", d.Sleep.Seconds())
	}
	if d.Work > 0 {
		line("%s\nwork %.3f", workScript, d.Work.Seconds())
	}
	if d.Script != "" {
		line("%s", d.Script)
	}
	if d.ExitStatus != 0 {
		line("exit %d", d.ExitStatus)
	}
	if d.Fixed != "" {
		line(`printf %%s %s > $out`, shellQuote(d.Fixed))
	} else {
		d.writeOutputs(line)
	}
	return s.String()
}

// writeOutputs fills the first output and chains the others to it.
func (d Derivation) writeOutputs(line func(format string, args ...any)) {
	line("fill() { %s; }", d.fill())
	outputs := d.Outputs
	if outputs == nil {
		outputs = []string{"out"}
	}
	first := outputs[0]
	if d.OutputFiles == 0 && len(outputs) == 1 && !d.KeepInputs {
		line(`fill > "$%s"`, first)
		return
	}
	line(`mkdir "$%s"`, first)
	line(`for n in $(seq %d); do fill > "$%s/file$n"; done`, max(d.OutputFiles, 1), first)
	if d.KeepInputs {
		line(`echo "$inputs" > "$%s/inputs"`, first)
	}
	for i, name := range outputs[1:] {
		line(`mkdir "$%s"; echo "$name" > "$%s/name"`, name, name)
		line(`echo "$%s" > "$%s/next"`, name, outputs[i])
	}
}

func (d Derivation) fill() string {
	switch {
	case d.OutputSize == 0:
		return `echo "$name"`
	case d.Random:
		return fmt.Sprintf("head -c %d /dev/urandom", d.OutputSize)
	default:
		return fmt.Sprintf(`yes "$name" | head -c %d`, d.OutputSize)
	}
}

// quote makes a string of the Nix language.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `${`, `\${`).Replace(s) + `"`
}

func quoteAll(all []string) []string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = quote(s)
	}
	return quoted
}

func list(elements []string) string { return "[ " + strings.Join(elements, " ") + " ]" }

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Chain returns n derivations, each with the one before as input, named NAME1
// to NAMEn after each.Name; all else is as in each.
func Chain(n int, each Derivation) []Derivation {
	all := Numbered(n, each)
	for i := 1; i < n; i++ {
		all[i].Inputs = append(append([]string{}, each.Inputs...), all[i-1].Name)
	}
	return all
}

// Fan returns n independent derivations, as Numbered does, and last one called
// each.Name that has all of them as inputs.
func Fan(n int, each Derivation) []Derivation {
	all := Numbered(n, each)
	var names []string
	for _, d := range all {
		names = append(names, d.Name)
	}
	last := each
	last.Inputs = append(append([]string{}, each.Inputs...), names...)
	return append(all, last)
}

// Numbered returns n copies of each, named NAME1 to NAMEn.
func Numbered(n int, each Derivation) []Derivation {
	all := make([]Derivation, n)
	for i := range all {
		all[i] = each
		all[i].Name = fmt.Sprintf("%s%d", each.Name, i+1)
	}
	return all
}
