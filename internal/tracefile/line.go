package tracefile

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Bounds of a line.
const (
	maxLine   = 1 << 20
	maxName   = 1024 // bytes of any text
	maxInputs = 10_000
	maxList   = 256             // features, systems, outputs
	maxTime   = 100 * 24 * 3600 // seconds of one build
	maxFleet  = 10_000
)

// Build is one build that one principal wanted.
type Build struct {
	// Asked is when the derivation was asked for, and Ended when the reply came; not
	// set if that is not known.
	Asked time.Time `json:"asked"`
	Ended time.Time `json:"ended,omitzero"`
	// Principal is who asked, and Domain whose builders could be used.
	Principal string `json:"principal"`
	Domain    string `json:"domain,omitempty"`
	// Drv tells derivations apart: the store path, or any text. Name is the
	// derivation's, with its version.
	Drv  string `json:"drv"`
	Name string `json:"name"`
	// System and Features are what it requires.
	System   string   `json:"system"`
	Features []string `json:"features,omitempty"`
	// Seconds is how long it took, as a builder of speed 1 would have taken.
	Seconds float64 `json:"seconds"`
	Inputs  []Input `json:"inputs,omitempty"`
	Outputs []Path  `json:"outputs,omitempty"`
}

// Path is a store path with the size of its NAR in bytes.
type Path struct {
	Path string `json:"path"`
	Size int64  `json:"size"`
}

// Input is what a build needs: a path, which may be the output of another build,
// or all outputs of the derivation Drv.
type Input struct {
	Path string `json:"path,omitempty"`
	Size int64  `json:"size,omitempty"`
	Drv  string `json:"drv,omitempty"`
}

// Fleet is a first line that says which builders there are.
type Fleet struct {
	Builders []Builder `json:"builders"`
}

// Builder is one of a fleet. What is 0 or not set is usual: all domains, speed 1,
// one job, and a link of 110 MB/s.
type Builder struct {
	Name string `json:"name"`
	// Systems has the speed of each system as a factor to SpeedFactor.
	Systems           map[string]float64 `json:"systems"`
	Features          []string           `json:"features,omitempty"`
	MandatoryFeatures []string           `json:"mandatory_features,omitempty"`
	MaxJobs           int                `json:"max_jobs,omitempty"`
	SpeedFactor       float64            `json:"speed_factor,omitempty"`
	Domains           []string           `json:"domains,omitempty"`
	// Link is in bytes per second, each way.
	Link float64 `json:"link,omitempty"`
}

func (b *Build) check() error {
	return errors.Join(
		text("principal", b.Principal), text("drv", b.Drv), text("name", b.Name), text("system", b.System),
		short("domain", b.Domain), texts("features", b.Features),
		number("seconds", b.Seconds, maxTime),
		when(!b.Asked.IsZero(), "asked is missing"),
		when(b.Ended.IsZero() || !b.Ended.Before(b.Asked), "ended is before asked"),
		b.checkInputs(), b.checkOutputs(),
	)
}

func (b *Build) checkInputs() error {
	if len(b.Inputs) > maxInputs {
		return fmt.Errorf("%d inputs, at most %d are read", len(b.Inputs), maxInputs)
	}
	for _, in := range b.Inputs {
		if (in.Path == "") == (in.Drv == "") {
			return errors.New("an input has either path or drv")
		}
		if err := errors.Join(text("path or drv of an input", in.Path+in.Drv), size(in.Size)); err != nil {
			return err
		}
	}
	return nil
}

func (b *Build) checkOutputs() error {
	if len(b.Outputs) > maxList {
		return fmt.Errorf("%d outputs, at most %d are read", len(b.Outputs), maxList)
	}
	for _, out := range b.Outputs {
		if err := errors.Join(text("path of an output", out.Path), size(out.Size)); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fleet) check() error {
	if len(f.Builders) == 0 || len(f.Builders) > maxFleet {
		return fmt.Errorf("%d builders, expected 1 to %d", len(f.Builders), maxFleet)
	}
	names := map[string]bool{}
	for i := range f.Builders {
		b := &f.Builders[i]
		if err := b.check(); err != nil {
			return fmt.Errorf("builder %q: %w", b.Name, err)
		}
		if names[b.Name] {
			return fmt.Errorf("there are two builders %q", b.Name)
		}
		names[b.Name] = true
	}
	return nil
}

func (b *Builder) check() error {
	problems := []error{
		text("name", b.Name), texts("features", b.Features), texts("mandatory_features", b.MandatoryFeatures),
		texts("domains", b.Domains), number("speed_factor", b.SpeedFactor, 1e6), number("link", b.Link, 1e12),
		number("max_jobs", float64(b.MaxJobs), 10_000),
		when(len(b.Systems) > 0 && len(b.Systems) <= maxList, "systems are missing or too many"),
	}
	for system, factor := range b.Systems {
		problems = append(problems, text("system", system), number("speed of a system", factor, 1e6))
	}
	return errors.Join(problems...)
}

func when(ok bool, problem string) error {
	if ok {
		return nil
	}
	return errors.New(problem)
}

func text(what, s string) error {
	if s == "" {
		return fmt.Errorf("%s is missing", what)
	}
	return short(what, s)
}

func short(what, s string) error {
	return when(len(s) <= maxName, fmt.Sprintf("%s has %d bytes, at most %d are read", what, len(s), maxName))
}

func texts(what string, all []string) error {
	if len(all) > maxList {
		return fmt.Errorf("%d %s, at most %d are read", len(all), what, maxList)
	}
	for _, s := range all {
		if err := text(what, s); err != nil {
			return err
		}
	}
	return nil
}

func number(what string, n, most float64) error {
	return when(n >= 0 && n <= most && !math.IsNaN(n), fmt.Sprintf("%s is %v, expected 0 to %v", what, n, most))
}

func size(n int64) error {
	return when(n >= 0 && n <= 1<<44, fmt.Sprintf("size is %d, expected 0 to %d", n, int64(1)<<44))
}
