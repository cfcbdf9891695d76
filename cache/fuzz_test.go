package cache

import (
	"encoding/binary"
	"reflect"
	"testing"

	"nixbastion/internal/nix"
)

func someRecord() *record {
	o := sourceObj("hello", "hello", pathNamed("dep"))
	o.info.Deriver = pathNamed("hello.drv")
	o.info.Sigs = []nix.Signature{mustSig(signatureText)}
	o.info.RegistrationTime = 1_700_000_000
	return &record{info: o.info, provenance: Signed}
}

// Guards against a narinfo file that stops a rebuild, or that is taken for
// another than it is: what parses is written again with the same meaning.
func FuzzNarinfo(f *testing.F) {
	rec := someRecord()
	f.Add(rec.info.Path.HashPart(), string(formatNarinfo(rec)))
	f.Add("", "")
	f.Fuzz(func(t *testing.T, hashPart, text string) {
		rec, err := parseNarinfo(hashPart, text)
		if err != nil {
			return
		}
		if rec.info.Path.HashPart() != hashPart {
			t.Errorf("%s has the hash part %q", rec.info.Path, hashPart)
		}
		again, err := parseNarinfo(hashPart, string(formatNarinfo(rec)))
		if err != nil || !reflect.DeepEqual(again, rec) {
			t.Errorf("written again: %+v, %v", again, err)
		}
	})
}

// Guards against a row of a damaged index that panics, or that is believed.
func FuzzRow(f *testing.F) {
	r := &row{record: *someRecord(), lastUse: 7}
	f.Add(r.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= lastUseAt+8 { // lets the fuzzer behind the checksum
			b = binary.BigEndian.AppendUint32(b, rowSum(b))
		}
		r, err := decodeRow(b)
		if err != nil {
			return
		}
		if again, err := decodeRow(r.encode()); err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("written again: %+v, %v", again, err)
		}
	})
}

// Guards against an index row that loses something, or bytes that were changed.
func TestRowHoldsAllOfARecord(t *testing.T) {
	want := &row{record: *someRecord(), lastUse: 1_700_000_000_123_456_789}
	b := want.encode()
	if got, err := decodeRow(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if h, err := decodeRowHead(b); err != nil || h.lastUse != want.lastUse || h.narHash != want.info.NarHash || h.narSize != want.info.NarSize {
		t.Errorf("head %+v, %v", h, err)
	}
	for i := range b {
		if i >= lastUseAt && i < lastUseAt+8 {
			continue // changed in place, and checked against the order of use
		}
		b[i] ^= 1
		if _, err := decodeRow(b); err == nil {
			t.Errorf("a change of byte %d was not noticed", i)
		}
		if _, err := decodeRow(b[:i]); err == nil {
			t.Errorf("a row of %d bytes was accepted", i)
		}
		b[i] ^= 1
	}
}
