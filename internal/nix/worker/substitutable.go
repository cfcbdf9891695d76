package worker

import "nixbastion/internal/nix/wire"

// Questions about what substituters have. What a store can fetch it fetches when
// asked for valid paths with the substitute flag, so the answer here is that
// nothing is known, which is always legal.

func (q *request) hasSubstitutes() (func(), error) {
	_, err := q.onePath()
	return func() { q.w.Bool(false) }, err
}

func (q *request) querySubstitutablePaths() (func(), error) {
	q.r.StorePaths(q.limits.Paths)
	return q.none(), q.received()
}

func (q *request) querySubstitutablePathInfo() (func(), error) {
	_, err := q.onePath()
	return q.none(), err
}

// querySubstitutablePathInfos: a map from path to content address, before 1.22
// a set of paths.
func (q *request) querySubstitutablePathInfos() (func(), error) {
	if q.version < sinceOutputMap {
		q.r.StorePaths(q.limits.Paths)
		return q.none(), q.received()
	}
	for range q.r.Count(q.limits.Paths) {
		q.r.StorePath()
		q.r.String(wire.MaxString)
		if q.r.Err() != nil {
			break
		}
	}
	return q.none(), q.received()
}

// none writes an empty collection, or the tag of a value that is not there.
func (q *request) none() func() { return func() { q.w.Uint64(0) } }
