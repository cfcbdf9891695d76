package nix

import (
	"errors"
	"fmt"
)

// nix32Alphabet leaves out e, o, u and t.
const nix32Alphabet = "0123456789abcdfghijklmnpqrsvwxyz"

// nix32Value maps a character to its digit, -1 for one outside the alphabet.
var nix32Value = func() (v [256]int8) {
	for i := range v {
		v[i] = -1
	}
	for i := range len(nix32Alphabet) {
		v[nix32Alphabet[i]] = int8(i)
	}
	return v
}()

func nix32Len(size int) int { return (size*8 + 4) / 5 }

// EncodeNix32 writes b in Nix's base 32: the bytes as one little-endian number,
// most significant digit first.
func EncodeNix32(b []byte) string {
	out := make([]byte, 0, nix32Len(len(b)))
	for n := nix32Len(len(b)) - 1; n >= 0; n-- {
		i, shift := n*5/8, n*5%8
		c := b[i] >> shift
		if i+1 < len(b) {
			c |= b[i+1] << (8 - shift)
		}
		out = append(out, nix32Alphabet[c&31])
	}
	return string(out)
}

// DecodeNix32 reads exactly size bytes from s. It refuses another length,
// characters outside the alphabet and set bits beyond the last byte.
func DecodeNix32(s string, size int) ([]byte, error) {
	if len(s) != nix32Len(size) {
		return nil, fmt.Errorf("nix32 text of %d bytes has %d characters, got %d", size, nix32Len(size), len(s))
	}
	out := make([]byte, size)
	for n := range len(s) {
		v := nix32Value[s[len(s)-1-n]]
		if v < 0 {
			return nil, fmt.Errorf("illegal nix32 character %q", s[len(s)-1-n])
		}
		i, shift := n*5/8, n*5%8
		out[i] |= byte(v) << shift
		carry := byte(v) >> (8 - shift)
		if i+1 < size {
			out[i+1] |= carry
		} else if carry != 0 {
			return nil, errors.New("nix32 text has bits beyond its last byte")
		}
	}
	return out, nil
}
