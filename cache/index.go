package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"nixbastion/internal/nix"
)

// indexWait is how long another process may hold the index before we say so.
const indexWait = time.Second

// The buckets of the index.
var (
	bucketRows    = []byte("rows")    // domain NUL hash part -> row
	bucketRecency = []byte("recency") // u64 last use, key of a row -> nothing
	bucketNars    = []byte("nars")    // NAR hash -> u32 rows that name it, u64 NAR size
	bucketMeta    = []byte("meta")    // names below -> u64
	// hash part of a path, key of a row that refers to it -> nothing
	bucketReferrers = []byte("referrers")
	// domain -> text that names the keys of which all its rows have signatures
	bucketSigned = []byte("signed")
)

var (
	metaVersion = []byte("version") // of the index; another one is built anew
	metaClean   = []byte("clean")   // 1 if the last process closed it
	metaBytes   = []byte("bytes")   // cost of all NARs
	metaPaths   = []byte("paths")   // count of rows
)

const indexVersion = 1

// index finds records, in one bbolt file. Anybody reads; only the keeper writes.
type index struct {
	db     atomic.Pointer[bbolt.DB] // closed while another process has the index
	closed atomic.Bool
	root   *os.Root // the directory it is in
	boot   string   // see bootID
	// incomplete says that there may be published paths that are not in it.
	incomplete bool
}

// openIndex opens the index of a directory, or starts a new one if there is
// none that can be read.
func openIndex(root *os.Root, log *slog.Logger) (*index, error) {
	x, err := tryIndex(root)
	if err == nil || !unreadable(err) {
		return x, err
	}
	aside := path.Join(quarantineDir, fmt.Sprintf("index-%d.db", time.Now().UnixNano()))
	log.Warn("put the index aside; a new one is made from the narinfo files", "as", aside, "err", err)
	if err := root.Rename(indexName, aside); err != nil {
		return nil, err
	}
	return tryIndex(root)
}

// unreadable tells what a new index cures from what it does not: a locked file
// or a disk that refuses.
func unreadable(err error) bool {
	if errors.Is(err, bolterrors.ErrTimeout) {
		return false
	}
	_, system := errors.AsType[syscall.Errno](err)
	return !system
}

var errOtherVersion = errors.New("index of another version")

func tryIndex(root *os.Root) (*index, error) {
	var x *index
	boot := bootID()
	sealed := isSealed(root, boot)
	var file *os.File // of bbolt, which leaves it open when it panics
	err := guarded(func() error {
		db, err := bbolt.Open(filepath.Join(root.Name(), indexName), 0o600, &bbolt.Options{
			Timeout:      indexWait,
			FreelistType: bbolt.FreelistMapType,
			NoStatistics: true,
			OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
				var err error
				file, err = os.OpenFile(name, flag, perm)
				return file, err
			},
		})
		x = &index{root: root, boot: boot}
		x.db.Store(db)
		return err
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("another process uses the store in %s: %w", root.Name(), err)
	case err != nil && file != nil:
		file.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	if err := x.start(file, sealed); err != nil {
		x.db.Load().Close()
		return nil, fmt.Errorf("open index: %w", err)
	}
	return x, nil
}

func (x *index) start(file *os.File, sealed bool) error {
	if err := guarded(func() error { return x.db.Load().Update(x.begin) }); err != nil {
		return err
	}
	if !sealed {
		if err := x.check(file); err != nil {
			return err
		}
	}
	x.sealForNow()
	return nil
}

// sealForNow seals the index while it is open. Without a seal it is checked at the
// next start, so nothing depends on success.
func (x *index) sealForNow() {
	if x.boot != "" {
		_ = seal(x.root, x.boot)
	}
}

// begin makes the buckets and notes that the index is in use.
func (x *index) begin(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketRows, bucketRecency, bucketNars, bucketReferrers, bucketSigned, bucketMeta} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta := tx.Bucket(bucketMeta)
	if v := metaNumber(meta, metaVersion); v != 0 && v != indexVersion {
		return errOtherVersion
	}
	x.incomplete = metaNumber(meta, metaClean) == 0
	return errors.Join(setMeta(meta, metaVersion, indexVersion), setMeta(meta, metaClean, 0))
}

// close closes the index. complete says that all that is published is in it.
// Otherwise it is as if the process had been killed.
func (x *index) close(complete bool) error {
	var err error
	if complete {
		err = x.db.Load().Update(func(tx *bbolt.Tx) error { return setMeta(tx.Bucket(bucketMeta), metaClean, 1) })
		if err == nil {
			err = seal(x.root, forever) // while nobody else can open it
		}
	}
	x.closed.Store(true)
	return errors.Join(err, x.db.Load().Close())
}

func (x *index) isOpen() bool { return !x.closed.Load() }

// reopen opens again what close closed, and reports whether published paths may be
// missing in it. Nobody uses the index meanwhile.
func (x *index) reopen(log *slog.Logger) (incomplete bool, err error) {
	again, err := openIndex(x.root, log)
	if err != nil {
		return false, err
	}
	x.db.Store(again.db.Load())
	x.closed.Store(false)
	return again.incomplete, nil
}

func metaNumber(meta *bbolt.Bucket, name []byte) int64 {
	if v := meta.Get(name); len(v) == 8 {
		return int64(binary.BigEndian.Uint64(v))
	}
	return 0
}

func setMeta(meta *bbolt.Bucket, name []byte, n int64) error {
	return meta.Put(name, binary.BigEndian.AppendUint64(nil, uint64(n)))
}

// totals returns what all NARs cost and how many rows there are.
func (x *index) totals() (bytes, paths int64, err error) {
	err = x.db.Load().View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		bytes, paths = metaNumber(meta, metaBytes), metaNumber(meta, metaPaths)
		return nil
	})
	return bytes, paths, err
}

func (k key) bytes() []byte {
	b := make([]byte, 0, len(k.domain)+1+len(k.hashPart))
	return append(append(append(b, k.domain...), 0), k.hashPart...)
}

// keyFrom reads what bytes wrote: the hash part has a fixed length.
func keyFrom(b []byte) (key, error) {
	at := len(b) - hashPartLen - 1
	if at < 0 || b[at] != 0 {
		return key{}, errors.New("index key is malformed")
	}
	return key{domain: string(b[:at]), hashPart: string(b[at+1:])}, nil
}

// find looks keys up in one transaction; nil where there is no row. Rows that
// cannot be read are as good as missing: their narinfo still holds the truth.
func (x *index) find(keys []key) ([]*record, error) {
	found := make([]*record, len(keys))
	err := x.db.Load().View(func(tx *bbolt.Tx) error {
		rows := tx.Bucket(bucketRows)
		for i, k := range keys {
			v := rows.Get(k.bytes())
			if v == nil {
				continue
			}
			if r, err := decodeRow(v); err == nil {
				found[i] = &r.record
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	return found, nil
}

// keysBehind returns up to n keys of rows in order, from the first one behind
// last on.
func (x *index) keysBehind(last key, n int) (keys []key, err error) {
	err = x.db.Load().View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(bucketRows).Cursor()
		for name, _ := cursor.Seek(append(last.bytes(), 0)); name != nil && len(keys) < n; name, _ = cursor.Next() {
			k, err := keyFrom(name)
			if err != nil {
				return err
			}
			keys = append(keys, k)
		}
		return nil
	})
	return keys, err
}

// domainBehind is keysBehind for the rows of one domain.
func (x *index) domainBehind(domain string, last key, n int) ([]key, error) {
	if last.domain != domain {
		last = key{}
	}
	last.domain = domain
	keys, err := x.keysBehind(last, n)
	if end := slices.IndexFunc(keys, func(k key) bool { return k.domain != domain }); end >= 0 {
		keys = keys[:end]
	}
	return keys, err
}

// referrersBehind returns up to n keys of rows that refer to a path with this
// hash part beside themselves, in order, from the first one behind last on.
func (x *index) referrersBehind(hashPart string, last key, n int) (keys []key, err error) {
	err = x.db.Load().View(func(tx *bbolt.Tx) error {
		cursor, prefix := tx.Bucket(bucketReferrers).Cursor(), []byte(hashPart)
		from := append([]byte(hashPart), last.bytes()...)
		for name, _ := cursor.Seek(append(from, 0)); bytes.HasPrefix(name, prefix) && len(keys) < n; name, _ = cursor.Next() {
			k, err := keyFrom(name[len(prefix):])
			if err != nil {
				return err
			}
			keys = append(keys, k)
		}
		return nil
	})
	return keys, err
}

// signedWith returns what was noted of the signatures of a domain's rows, "" for
// nothing.
func (x *index) signedWith(domain string) (keys string, err error) {
	err = x.db.Load().View(func(tx *bbolt.Tx) error {
		keys = string(tx.Bucket(bucketSigned).Get([]byte(domain)))
		return nil
	})
	return keys, err
}

// hasNAR reports whether a row names the NAR.
func (x *index) hasNAR(narHash nix.Hash) (has bool, err error) {
	err = x.db.Load().View(func(tx *bbolt.Tx) error {
		has = tx.Bucket(bucketNars).Get(narHash.Bytes()) != nil
		return nil
	})
	return has, err
}

// update runs one durable transaction and tells what it changed.
func (x *index) update(change func(*indexTx) error) (done changes, err error) {
	err = x.db.Load().Update(func(tx *bbolt.Tx) error {
		t := &indexTx{
			rows: tx.Bucket(bucketRows), recency: tx.Bucket(bucketRecency),
			nars: tx.Bucket(bucketNars), referrers: tx.Bucket(bucketReferrers), signed: tx.Bucket(bucketSigned), meta: tx.Bucket(bucketMeta),
		}
		if err := change(t); err != nil {
			return err
		}
		done = t.changes
		return t.finish()
	})
	if err != nil {
		return changes{}, fmt.Errorf("write index: %w", err)
	}
	x.sealForNow()
	return done, nil
}

// changes is what a transaction did to the sums.
type changes struct {
	bytes, paths int64
	dropped      []nix.Hash // NARs that lost a row, perhaps their last
}

// indexTx is a transaction that writes.
type indexTx struct {
	rows, recency, nars, referrers, signed, meta *bbolt.Bucket
	changes
}

func (t *indexTx) finish() error {
	return errors.Join(
		setMeta(t.meta, metaBytes, metaNumber(t.meta, metaBytes)+t.bytes),
		setMeta(t.meta, metaPaths, metaNumber(t.meta, metaPaths)+t.paths))
}

// put writes a row in place of the one of that key.
func (t *indexTx) put(k key, r *row) error {
	name := k.bytes()
	if err := t.delete(k); err != nil {
		return err
	}
	t.paths++
	for _, ref := range r.referred() {
		if err := t.referrers.Put(referrerKey(ref, name), nil); err != nil {
			return err
		}
	}
	return errors.Join(
		t.rows.Put(name, r.encode()),
		t.recency.Put(recencyKey(r.lastUse, name), nil),
		t.refer(r.info.NarHash, r.info.NarSize, 1))
}

// delete removes a row, if it is there.
func (t *indexTx) delete(k key) error {
	name := k.bytes()
	v := t.rows.Get(name)
	if v == nil {
		return nil
	}
	r, err := decodeRow(v)
	if err != nil {
		return err
	}
	t.paths--
	for _, ref := range r.referred() {
		if err := t.referrers.Delete(referrerKey(ref, name)); err != nil {
			return err
		}
	}
	return errors.Join(
		t.recency.Delete(recencyKey(r.lastUse, name)),
		t.rows.Delete(name),
		t.refer(r.info.NarHash, r.info.NarSize, -1))
}

// sign writes a row's record anew, which differs in its signatures alone.
func (t *indexTx) sign(k key, rec *record) error {
	v := t.rows.Get(k.bytes())
	if v == nil {
		return nil
	}
	r, err := decodeRow(v)
	if err != nil {
		return err
	}
	r.record = *rec
	return t.rows.Put(k.bytes(), r.encode())
}

// noteSigned notes with which keys the rows of a domain are signed, "" for none.
func (t *indexTx) noteSigned(domain, keys string) error {
	if keys == "" {
		return t.signed.Delete([]byte(domain))
	}
	return t.signed.Put([]byte(domain), []byte(keys))
}

// refer counts the rows that name a NAR.
func (t *indexTx) refer(narHash nix.Hash, narSize uint64, by int) error {
	name := narHash.Bytes()
	refs := 0
	if v := t.nars.Get(name); len(v) == 12 {
		refs = int(binary.BigEndian.Uint32(v))
	}
	if refs == 0 {
		t.bytes += cost(narSize)
	}
	if refs += by; refs <= 0 {
		t.bytes -= cost(narSize)
		t.dropped = append(t.dropped, narHash)
		return t.nars.Delete(name)
	}
	v := binary.BigEndian.AppendUint32(nil, uint32(refs))
	return t.nars.Put(name, binary.BigEndian.AppendUint64(v, narSize))
}

// touch moves a row to another place in the order of use.
func (t *indexTx) touch(k key, when int64) error {
	name := k.bytes()
	v := t.rows.Get(name)
	if len(v) < lastUseAt+8 {
		return nil
	}
	v = append([]byte(nil), v...)
	old := int64(binary.BigEndian.Uint64(v[lastUseAt:]))
	binary.BigEndian.PutUint64(v[lastUseAt:], uint64(when))
	return errors.Join(
		t.recency.Delete(recencyKey(old, name)),
		t.rows.Put(name, v),
		t.recency.Put(recencyKey(when, name), nil))
}

func recencyKey(lastUse int64, name []byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(lastUse)), name...)
}

// referrerKey says that the row of that name refers to a path.
func referrerKey(ref nix.StorePath, name []byte) []byte {
	return append([]byte(ref.HashPart()), name...)
}

// candidate is a row that may be evicted. It is valid while it is looked at.
type candidate struct {
	key     key
	lastUse int64
	cost    int64 // bytes that go if no other row names the NAR
	tx      *bbolt.Tx
}

// oldest calls yield with rows, least recently used first, until it returns false.
func (x *index) oldest(yield func(candidate) bool) error {
	return x.db.Load().View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(bucketRecency).Cursor()
		for name, _ := cursor.First(); name != nil; name, _ = cursor.Next() {
			c, err := readCandidate(tx, name[8:])
			if err != nil {
				return err
			}
			if !yield(c) {
				return nil
			}
		}
		return nil
	})
}

func readCandidate(tx *bbolt.Tx, name []byte) (candidate, error) {
	k, err := keyFrom(name)
	if err != nil {
		return candidate{}, err
	}
	h, err := decodeRowHead(tx.Bucket(bucketRows).Get(name))
	if err != nil {
		return candidate{}, fmt.Errorf("%s: %w", k.narinfoName(), err)
	}
	return candidate{key: k, lastUse: h.lastUse, cost: cost(h.narSize), tx: tx}, nil
}

// maxHolders is how many referrers of a row are looked at. A library may have
// 100,000 of them.
const maxHolders = 64

// heldUntil returns when referrers of the row that are not among gone were last
// used, or false if there are none. A path of the public domain is referred to
// by paths of all domains.
func (c candidate) heldUntil(gone map[key]bool) (latest int64, held bool) {
	rows, cursor := c.tx.Bucket(bucketRows), c.tx.Bucket(bucketReferrers).Cursor()
	prefix := []byte(c.key.hashPart)
	looked := 0
	for name, _ := cursor.Seek(prefix); bytes.HasPrefix(name, prefix) && looked < maxHolders; name, _ = cursor.Next() {
		name = name[len(prefix):]
		k, err := keyFrom(name)
		if err != nil || gone[k] || c.key.domain != publicDomain && k.domain != publicDomain && k.domain != c.key.domain {
			continue
		}
		looked++
		held = true
		if h, err := decodeRowHead(rows.Get(name)); err == nil {
			latest = max(latest, h.lastUse)
		}
	}
	return latest, held
}
