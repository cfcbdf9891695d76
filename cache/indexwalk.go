package cache

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/bbolt"

	"nixbastion/internal/nix"
)

// Whoever goes through the whole index does it in steps, each a transaction of its
// own, so that none keeps the index from reusing its pages for long.

// walkStep is how many rows one step looks at.
const walkStep = 1024

// knownNAR is a NAR that rows name.
type knownNAR struct {
	hash nix.Hash
	size uint64
}

// narsBehind returns up to n NARs in the order of their hashes, from the first one
// behind last on; a zero last is before all.
func (x *index) narsBehind(last nix.Hash, n int) (nars []knownNAR, err error) {
	err = x.db.Load().View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(bucketNars).Cursor()
		var from []byte
		if !last.IsZero() {
			from = append(append(from, last.Bytes()...), 0)
		}
		for name, v := cursor.Seek(from); name != nil && len(nars) < n; name, v = cursor.Next() {
			h, err := nix.NewHash(nix.SHA256, name)
			if err != nil || len(v) != 12 {
				return fmt.Errorf("entry of NAR %x is malformed", name)
			}
			nars = append(nars, knownNAR{hash: h, size: binary.BigEndian.Uint64(v[4:])})
		}
		return nil
	})
	return nars, err
}

// narSize returns the size of a NAR that a row names, or false.
func (x *index) narSize(narHash nix.Hash) (size uint64, named bool, err error) {
	err = x.db.Load().View(func(tx *bbolt.Tx) error {
		if v := tx.Bucket(bucketNars).Get(narHash.Bytes()); len(v) == 12 {
			size, named = binary.BigEndian.Uint64(v[4:]), true
		}
		return nil
	})
	return size, named, err
}

// entry is a row with its key.
type entry struct {
	key key
	row *row
}

// entriesBehind looks at n rows from the first one behind last on and returns
// those that match, with the key of the last row that it looked at: that of last
// if there are no more.
func (x *index) entriesBehind(last key, n int, match func(key, rowHead) bool) (found []entry, at key, err error) {
	at = last
	err = x.db.Load().View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(bucketRows).Cursor()
		for name, v := cursor.Seek(append(last.bytes(), 0)); name != nil && n > 0; name, v = cursor.Next() {
			n--
			k, err := keyFrom(name)
			if err != nil {
				return err
			}
			at = k
			h, err := decodeRowHead(v)
			if err != nil {
				return fmt.Errorf("%s: %w", k.narinfoName(), err)
			}
			if !match(k, h) {
				continue
			}
			r, err := decodeRow(v)
			if err != nil {
				return fmt.Errorf("%s: %w", k.narinfoName(), err)
			}
			found = append(found, entry{k, r})
		}
		return nil
	})
	return found, at, err
}

// everyEntry calls do with the rows that match, some at a time.
func (x *index) everyEntry(match func(key, rowHead) bool, do func([]entry) error) error {
	var last key
	for {
		found, at, err := x.entriesBehind(last, walkStep, match)
		if err != nil {
			return fmt.Errorf("read index: %w", err)
		}
		if len(found) > 0 {
			if err := do(found); err != nil {
				return err
			}
		}
		if at == last {
			return nil
		}
		last = at
	}
}

// row reads one row, or returns nix.ErrNotFound.
func (x *index) row(k key) (r *row, err error) {
	err = x.db.Load().View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucketRows).Get(k.bytes())
		if v == nil {
			return nix.ErrNotFound
		}
		r, err = decodeRow(v)
		return err
	})
	return r, err
}

// countNARs returns how many NARs rows name. It looks at all of them.
func (x *index) countNARs() (n int64, err error) {
	err = x.db.Load().View(func(tx *bbolt.Tx) error {
		n = int64(tx.Bucket(bucketNars).Stats().KeyN)
		return nil
	})
	return n, err
}
