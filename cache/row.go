package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"nixbastion/internal/nix"
)

// row is a record as the index holds it, with when it was last used in
// nanoseconds since 1970.
//
//	u8 version, u8 provenance, u64 last use, u64 registration, u64 NAR size, 32 bytes NAR hash,
//	path, deriver, content address, count of references, references, count of signatures, signatures,
//	u32 CRC-32C of all but the last use
//
// Numbers are big-endian, counts and lengths of strings uvarints.
type row struct {
	record
	lastUse int64
}

const rowVersion = 1

// rowHead is what stands at a fixed place in an encoded row, so that counting
// and eviction need not decode the rest.
type rowHead struct {
	lastUse int64
	narSize uint64
	narHash nix.Hash
}

// Where the parts of the head begin, and where it ends.
const (
	lastUseAt  = 2
	narSizeAt  = lastUseAt + 8 + 8
	narHashAt  = narSizeAt + 8
	rowHeadLen = narHashAt + 32
)

func decodeRowHead(b []byte) (h rowHead, err error) {
	if len(b) < rowHeadLen {
		return h, errors.New("index row: cut short")
	}
	h.lastUse = int64(binary.BigEndian.Uint64(b[lastUseAt:]))
	h.narSize = binary.BigEndian.Uint64(b[narSizeAt:])
	h.narHash, err = nix.NewHash(nix.SHA256, b[narHashAt:rowHeadLen])
	return h, err
}

func (r *row) encode() []byte {
	info := r.info
	b := []byte{rowVersion, byte(r.provenance)}
	b = binary.BigEndian.AppendUint64(b, uint64(r.lastUse))
	b = binary.BigEndian.AppendUint64(b, uint64(info.RegistrationTime))
	b = binary.BigEndian.AppendUint64(b, info.NarSize)
	b = append(b, info.NarHash.Bytes()...)
	b = appendText(b, info.Path.Base())
	b = appendText(b, info.Deriver.Base())
	b = appendText(b, info.CA.String())
	b = binary.AppendUvarint(b, uint64(len(info.References)))
	for _, ref := range info.References {
		b = appendText(b, ref.Base())
	}
	b = binary.AppendUvarint(b, uint64(len(info.Sigs)))
	for _, sig := range info.Sigs {
		b = appendText(b, sig.String())
	}
	return binary.BigEndian.AppendUint32(b, rowSum(b))
}

// rowSum leaves the last use out, which is changed in place.
func rowSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:lastUseAt], castagnoli), castagnoli, b[lastUseAt+8:])
}

// referred returns what the path refers to beside itself.
func (r *record) referred() []nix.StorePath {
	return slices.DeleteFunc(slices.Clone(r.info.References), func(p nix.StorePath) bool { return p == r.info.Path })
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decodeRow reads what encode wrote. It keeps nothing of b.
func decodeRow(b []byte) (*row, error) {
	if len(b) < rowHeadLen+4 {
		return nil, errors.New("index row: cut short")
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if rowSum(b) != sum {
		return nil, errors.New("index row: checksum mismatch")
	}
	d := rowDecoder{rest: b}
	if v := d.take(1); d.err == nil && v[0] != rowVersion {
		return nil, fmt.Errorf("index row of version %d, expected %d", v[0], rowVersion)
	}
	r := &row{}
	info := &nix.PathInfo{}
	r.info = info
	r.provenance = Provenance(d.take(1)[0])
	r.lastUse = int64(d.number())
	info.RegistrationTime = int64(d.number())
	info.NarSize = d.number()
	info.NarHash = d.hash()
	info.Path = d.path()
	info.Deriver = d.optionalPath()
	info.CA = d.contentAddress()
	for range d.count() {
		info.References = append(info.References, d.path())
	}
	for range d.count() {
		info.Sigs = append(info.Sigs, d.signature())
	}
	if d.err == nil && len(d.rest) > 0 {
		d.err = errors.New("trailing bytes")
	}
	if d.err != nil {
		return nil, fmt.Errorf("index row: %w", d.err)
	}
	return r, nil
}

// rowDecoder keeps the first error; after it, everything reads as zero.
type rowDecoder struct {
	rest []byte
	err  error
}

var zeroes [64]byte

// take returns the next n bytes, n being at most 64 or the length of a text.
func (d *rowDecoder) take(n int) []byte {
	if d.err == nil && n > len(d.rest) {
		d.err = errors.New("cut short")
	}
	if d.err != nil {
		return zeroes[:min(n, len(zeroes))]
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *rowDecoder) number() uint64 { return binary.BigEndian.Uint64(d.take(8)) }

// count returns a count or length, which is at most that of the bytes left.
func (d *rowDecoder) count() int {
	n, size := binary.Uvarint(d.rest)
	if d.err == nil && (size <= 0 || n > uint64(len(d.rest))) {
		d.err = errors.New("bad count")
	}
	if d.err != nil {
		return 0
	}
	d.rest = d.rest[size:]
	return int(n)
}

func (d *rowDecoder) text() string {
	n := d.count()
	b := d.take(n)
	if d.err != nil {
		return ""
	}
	return string(b)
}

func (d *rowDecoder) hash() nix.Hash {
	h, err := nix.NewHash(nix.SHA256, d.take(nix.SHA256.Size()))
	d.fail(err)
	return h
}

func (d *rowDecoder) path() nix.StorePath {
	p, err := nix.ParseStorePathBase(d.text())
	d.fail(err)
	return p
}

func (d *rowDecoder) optionalPath() nix.StorePath {
	text := d.text()
	if text == "" {
		return nix.StorePath{}
	}
	p, err := nix.ParseStorePathBase(text)
	d.fail(err)
	return p
}

func (d *rowDecoder) contentAddress() nix.ContentAddress {
	ca, err := nix.ParseContentAddress(d.text())
	d.fail(err)
	return ca
}

func (d *rowDecoder) signature() nix.Signature {
	sig, err := nix.ParseSignature(d.text())
	d.fail(err)
	return sig
}

func (d *rowDecoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}
