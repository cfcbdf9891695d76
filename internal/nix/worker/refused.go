package worker

import (
	"io"

	"nixbastion/internal/nix/wire"
)

// Operations that make no sense through a proxy. Each request is read completely
// before it is refused, so that the session stays usable.

func (q *request) refuse() (func(), error) {
	if err := q.received(); err != nil {
		return nil, err
	}
	return nil, q.unsupported()
}

func (q *request) findRoots() (func(), error)     { return q.refuse() }
func (q *request) optimiseStore() (func(), error) { return q.refuse() }

// importPaths: the data would have to be asked for, so none is on its way.
func (q *request) importPaths() (func(), error) { return q.refuse() }

func (q *request) verifyStore() (func(), error) {
	q.r.Bool() // whether to check contents
	q.r.Bool() // whether to repair
	return q.refuse()
}

func (q *request) exportPath() (func(), error) {
	q.r.StorePath()
	q.r.Uint64() // whether to sign
	return q.refuse()
}

func (q *request) addPermRoot() (func(), error) {
	q.r.StorePath()
	q.r.String(wire.MaxString)
	return q.refuse()
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
	return q.refuse()
}

// addBuildLog: the base name of a derivation and its log in frames.
func (q *request) addBuildLog() (func(), error) {
	q.readBasePath()
	if q.r.Err() != nil {
		return nil, q.r.Err()
	}
	return nil, q.framed(func(io.Reader) error { return q.unsupported() })
}
