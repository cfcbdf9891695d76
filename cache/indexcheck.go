package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"runtime/debug"
	"strings"

	"go.etcd.io/bbolt"

	"nixbastion/internal/nix"
)

// errDamaged says that the index makes no sense and is to be built anew.
var errDamaged = errors.New("the index is damaged")

// guarded runs what reads an index that may be damaged: bbolt panics over pages
// that make no sense, and a page behind the end of a file that was cut is a fault.
func guarded(read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	return read()
}

// sealName is the file that says which index is as its last transaction left it:
// its inode, length and time. It need not be read at the start, which takes several
// seconds per million rows. A seal that was made while the index was open holds
// until the machine starts again: a process that is killed leaves what it wrote, a
// machine that loses its power perhaps not. An index that something else wrote to,
// or put back, is checked.
const sealName = "index.sealed"

// forever is in a seal in place of the boot in which it holds.
const forever = "-"

// seal is called when nobody writes to the index.
func seal(root *os.Root, boot string) error {
	info, err := root.Stat(indexName)
	if err != nil {
		return err
	}
	return root.WriteFile(sealName, []byte(sealText(info, boot)), 0o600)
}

func sealText(info os.FileInfo, boot string) string {
	id := idOf(info)
	return fmt.Sprintf("%d %d %d %d %s\n", id.dev, id.ino, id.size, id.mtime, boot)
}

// isSealed reports whether the index is as it was sealed. It is asked before the
// index is opened, which changes it.
func isSealed(root *os.Root, boot string) bool {
	text, err := root.ReadFile(sealName)
	info, statErr := root.Stat(indexName)
	if err != nil || statErr != nil {
		return false
	}
	return string(text) == sealText(info, forever) || boot != "" && string(text) == sealText(info, boot)
}

// bootID names the time since the machine was started, "" if that is not known.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// check reads the index once, rows and what is derived from them, and compares
// the two: bbolt has no checksums over its pages, and a wrong count of names
// would remove a NAR that is needed.
func (x *index) check(file *os.File) error {
	return guarded(func() error {
		return x.db.Load().View(func(tx *bbolt.Tx) error {
			if info, err := file.Stat(); err != nil || info.Size() < tx.Size() {
				return fmt.Errorf("%w: the file is shorter than it says", errDamaged)
			}
			if err := checkTx(tx); err != nil {
				return fmt.Errorf("%w: %w", errDamaged, err)
			}
			return nil
		})
	})
}

func checkTx(tx *bbolt.Tx) error {
	var rows, derived indexSums
	err := errors.Join(
		inOrder(tx.Bucket(bucketRows), rows.addRow),
		inOrder(tx.Bucket(bucketRecency), derived.addRecency),
		inOrder(tx.Bucket(bucketNars), derived.addNAR),
		inOrder(tx.Bucket(bucketReferrers), derived.addReferrer))
	meta := tx.Bucket(bucketMeta)
	rows.bytes, derived.paths = metaNumber(meta, metaBytes), metaNumber(meta, metaPaths)
	if err == nil && rows != derived {
		err = fmt.Errorf("rows come to %+v, what is derived from them to %+v", rows, derived)
	}
	return err
}

// inOrder is ForEach that does not run in circles.
func inOrder(b *bbolt.Bucket, do func(name, v []byte) error) error {
	var last []byte
	return b.ForEach(func(name, v []byte) error {
		if last != nil && bytes.Compare(last, name) >= 0 {
			return errors.New("keys are out of order")
		}
		last = name
		return do(name, v)
	})
}

// indexSums are sums over the rows, or over what is derived from them.
type indexSums struct {
	paths, bytes  int64
	nars, recency uint64 // of hashes
	references    uint64 // of hashes
}

func (s *indexSums) addRow(name, v []byte) error {
	if _, err := keyFrom(name); err != nil {
		return err
	}
	r, err := decodeRow(v)
	if err != nil {
		return err
	}
	s.paths++
	s.nars += narSum(r.info.NarHash.Bytes())
	s.recency += keySum(recencyKey(r.lastUse, name))
	for _, ref := range r.referred() {
		s.references += keySum(referrerKey(ref, name))
	}
	return nil
}

func (s *indexSums) addRecency(name, _ []byte) error {
	s.recency += keySum(name)
	return nil
}

func (s *indexSums) addReferrer(name, _ []byte) error {
	s.references += keySum(name)
	return nil
}

func (s *indexSums) addNAR(name, v []byte) error {
	if len(name) != nix.SHA256.Size() || len(v) != 12 {
		return errors.New("entry of a NAR is malformed")
	}
	s.nars += narSum(name) * uint64(binary.BigEndian.Uint32(v))
	s.bytes += cost(binary.BigEndian.Uint64(v[4:]))
	return nil
}

func narSum(narHash []byte) uint64 { return binary.BigEndian.Uint64(narHash) }

func keySum(name []byte) uint64 {
	sum := crc32.Checksum(name, castagnoli)
	return uint64(sum) * 0x9e3779b97f4a7c15 // spread, so that sums do not cancel out
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
