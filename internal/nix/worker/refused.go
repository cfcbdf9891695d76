package worker

import (
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// Operations that make no sense through a proxy. Each request is read completely
// before it is refused, so that the session stays usable. Those that a command of
// Nix sends say who does the work instead.
const (
	refusesGarbage = "nothing is deleted on request through this proxy: it makes space by itself, least recently used paths first, " +
		"within the size that its admin gave it (cache.size); builders collect their garbage by themselves"
	refusesRoots    = "there are no garbage collector roots behind this proxy: what is used stays, and space is made by itself"
	refusesOptimise = "there is nothing to optimise behind this proxy: it stores equal contents once by itself"
	refusesVerify   = "the proxy verifies every path when it arrives, and drops by itself what it finds broken; " +
		"to have its paths read and checked, run 'nix store verify --all --no-trust' on this store"
	refusesRepair = "nothing is repaired on request through this proxy: it drops by itself what it finds broken, " +
		"and such a path can be uploaded or built again"
	refusesLogs   = "the proxy keeps no build logs; each client keeps those of its own builds"
	refusesRoot   = "no permanent roots are kept through this proxy: what is used stays by itself"
	refusesExport = "exports are not made through this proxy; use 'nix copy' or 'nix-copy-closure'"
)

func (q *request) refuse(reason string) (func(), error) {
	if err := q.received(); err != nil {
		return nil, err
	}
	return nil, nix.Refuse("%s", reason)
}

func (q *request) findRoots() (func(), error)     { return q.refuse(refusesRoots) }
func (q *request) optimiseStore() (func(), error) { return q.refuse(refusesOptimise) }

// importPaths: the data would have to be asked for, so none is on its way.
func (q *request) importPaths() (func(), error) { return q.refuse(refusesExport) }

func (q *request) verifyStore() (func(), error) {
	q.r.Bool() // whether to check contents
	if repair := q.r.Bool(); repair {
		return q.refuse(refusesRepair)
	}
	return q.refuse(refusesVerify)
}

func (q *request) exportPath() (func(), error) {
	q.r.StorePath()
	q.r.Uint64() // whether to sign
	return q.refuse(refusesExport)
}

func (q *request) addPermRoot() (func(), error) {
	q.r.StorePath()
	q.r.String(wire.MaxString)
	return q.refuse(refusesRoot)
}

// collectGarbage has another form with the feature for it.
func (q *request) collectGarbage() (func(), error) {
	q.r.Uint64() // action
	if !q.has(FeatureDeleteReferrers) {
		q.r.StorePaths(q.limits.Paths)
	} else if wholeStore := q.r.Optional(); !wholeStore {
		q.r.StorePaths(q.limits.Paths)
		q.r.Bool() // whether to delete referrers
	}
	q.r.Bool()   // whether to ignore liveness
	q.r.Uint64() // most bytes to free
	q.r.Uint64() // three that have no meaning any more
	q.r.Uint64()
	q.r.Uint64()
	return q.refuse(refusesGarbage)
}

// addBuildLog: the base name of a derivation and its log in frames.
func (q *request) addBuildLog() (func(), error) {
	q.readBasePath()
	if q.r.Err() != nil {
		return nil, q.r.Err()
	}
	return nil, q.framed(func(io.Reader) error { return nix.Refuse("%s", refusesLogs) })
}
