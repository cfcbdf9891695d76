package route

import (
	"maps"
	"slices"
	"strconv"
	"time"
)

// Request asks for a place to build one derivation. Acquire reads it until it
// returns: do not change what it points to before.
type Request struct {
	Asker
	// Others wait for the same build: it goes when the first of them has its turn.
	Others []Asker
	// Joined tells of more of them while the request waits; nil if there will be none.
	Joined <-chan Asker
	// Domain is whose builders may be used and named.
	Domain string
	// Name is what is built, for messages; usually the path of the derivation.
	Name string
	// System and Features are what the derivation requires. Features has
	// "ca-derivations" where output paths are not known before the build.
	System   string
	Features []string
	// Soft are features of Features that are wishes: builders that lack them match,
	// and those that have them are preferred.
	Soft []string
	// Needs are amounts of the builder's resources, taken while the lease is held.
	Needs map[string]int64
	// Alone asks for a builder on which nothing else is built meanwhile.
	Alone bool
	// Job is the name under which the duration is learned, see [JobName]; empty
	// if nothing is known of it.
	Job string
	// InputJobs are the jobs whose outputs are among the inputs, as far as names
	// tell. They are learned to be waited for by this one.
	InputJobs []string
	// Inputs are what the builder needs to have, with the sizes of their NARs in
	// bytes.
	Inputs []Input
	// Exclude are builders that must not be chosen, each at most once.
	Exclude []Exclusion
	// Avoid are builders that are chosen only where no other is left.
	Avoid []Exclusion
	// Patience is how long the request may wait while every builder that matches
	// is down. 0 means that it fails at once.
	Patience time.Duration
}

// Asker is one who asks for builds.
type Asker struct {
	// Principal is its name, and PrincipalMaxJobs how many places all its requests
	// together may hold; 0 means as many as there are. What SetAskers says holds before
	// it, and the newest request's limit for those that wait, too.
	Principal        string
	PrincipalMaxJobs int
	// Class and Weight say how the principal stands to others that wait: a class goes
	// before the next, and inside one who was served least for its weight is first.
	// A weight of 0 or less means 1.
	Class  Class
	Weight float64
}

// Class is how urgent requests are. The zero value is the usual one.
type Class int8

const (
	// Normal requests are the usual ones.
	Normal Class = 0
	// Interactive ones go before all others.
	Interactive Class = -1
	// Bulk ones go behind all others.
	Bulk Class = 1
)

// Input is a path that a build needs.
type Input struct {
	ID   PathID
	Size int64
}

// Exclusion is a builder that this request has failed on, and why.
type Exclusion struct {
	Builder string
	Reason  string
}

// shape is the part of a request that decides which builders match.
type shape struct {
	domain   string
	system   string
	features []string // sorted, each once
	// hard are those of features that are no wishes, and soft the others.
	hard, soft []string
	needs      map[string]int64
	alone      bool
	exclude    []Exclusion
	avoid      []Exclusion
}

func (req *Request) shape() shape {
	s := shape{
		domain: req.Domain, system: req.System, features: slices.Clone(req.Features),
		needs: req.Needs, alone: req.Alone, exclude: req.Exclude, avoid: req.Avoid,
	}
	slices.Sort(s.features)
	s.features = slices.Compact(s.features)
	for _, f := range s.features {
		if slices.Contains(req.Soft, f) {
			s.soft = append(s.soft, f)
		} else {
			s.hard = append(s.hard, f)
		}
	}
	return s
}

// key names the shape among those of one principal. Names come from peers, so
// each is quoted: no name can look like the border between two.
func (s *shape) key(principal string) string {
	key := strconv.AppendQuote(nil, principal)
	key = strconv.AppendQuote(key, s.domain)
	key = strconv.AppendQuote(key, s.system)
	for _, feature := range s.hard {
		key = strconv.AppendQuote(key, feature)
	}
	for _, feature := range s.soft {
		key = strconv.AppendQuote(append(key, '~'), feature)
	}
	for _, name := range slices.Sorted(maps.Keys(s.needs)) {
		key = strconv.AppendQuote(append(key, '#'), name)
		key = strconv.AppendInt(key, s.needs[name], 10)
	}
	if s.alone {
		key = append(key, '!')
	}
	key = appendExclusions(key, '-', s.exclude)
	return string(appendExclusions(key, '?', s.avoid))
}

func appendExclusions(key []byte, mark byte, exclusions []Exclusion) []byte {
	for _, ex := range exclusions {
		key = strconv.AppendQuote(append(key, mark), ex.Builder)
		key = strconv.AppendQuote(key, ex.Reason)
	}
	return key
}

// special reports whether a slot alone is not enough.
func (s *shape) special() bool { return s.alone || len(s.needs) > 0 }

func exclusionOf(builder string, of []Exclusion) (Exclusion, bool) {
	i := slices.IndexFunc(of, func(ex Exclusion) bool { return ex.Builder == builder })
	if i < 0 {
		return Exclusion{}, false
	}
	return of[i], true
}
