package nix

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// HashAlgo names a hash function that Nix uses. The zero value is none.
type HashAlgo uint8

// The algorithms of content addresses. NAR hashes are always SHA256. BLAKE3 is
// experimental in Nix and not known here: what needs it is refused.
const (
	MD5 HashAlgo = iota + 1
	SHA1
	SHA256
	SHA512
)

var hashAlgos = [...]struct {
	name string
	size int
	new  func() hash.Hash
}{
	MD5:    {"md5", md5.Size, md5.New},
	SHA1:   {"sha1", sha1.Size, sha1.New},
	SHA256: {"sha256", sha256.Size, sha256.New},
	SHA512: {"sha512", sha512.Size, sha512.New},
}

// ParseHashAlgo parses "md5", "sha1", "sha256" or "sha512".
func ParseHashAlgo(s string) (HashAlgo, error) {
	for a := MD5; a <= SHA512; a++ {
		if hashAlgos[a].name == s {
			return a, nil
		}
	}
	return 0, fmt.Errorf("unknown hash algorithm %q", clip(s))
}

// String returns the name as Nix writes it.
func (a HashAlgo) String() string {
	if a < MD5 || a > SHA512 {
		return fmt.Sprintf("HashAlgo(%d)", uint8(a))
	}
	return hashAlgos[a].name
}

// Size returns the length of a digest in bytes.
func (a HashAlgo) Size() int { return hashAlgos[a].size }

// New returns a fresh hasher.
func (a HashAlgo) New() hash.Hash { return hashAlgos[a].new() }

// Hash is a digest with its algorithm. The zero value is "no hash". Values are
// comparable.
type Hash struct {
	algo   HashAlgo
	digest [sha512.Size]byte
}

// NewHash makes a Hash of a digest whose length must fit the algorithm.
func NewHash(algo HashAlgo, digest []byte) (Hash, error) {
	if algo < MD5 || algo > SHA512 || len(digest) != algo.Size() {
		return Hash{}, fmt.Errorf("%s digest of %d bytes", algo, len(digest))
	}
	h := Hash{algo: algo}
	copy(h.digest[:], digest)
	return h, nil
}

// SumHash returns the digest that h has come to. It panics if the hasher is of
// another algorithm, which is a mistake of the caller.
func SumHash(algo HashAlgo, h hash.Hash) Hash {
	sum, err := NewHash(algo, h.Sum(nil))
	if err != nil {
		panic(err)
	}
	return sum
}

// HashBytes returns the digest of b.
func HashBytes(algo HashAlgo, b []byte) Hash {
	h := algo.New()
	h.Write(b)
	return SumHash(algo, h)
}

// ParseHash reads "algo:digest" in base16, nix32 or base64 (told apart by
// length), the SRI form "algo-base64", or a bare digest of the algorithm def.
// With def zero a bare digest is refused; with def set another algorithm is.
func ParseHash(s string, def HashAlgo) (Hash, error) {
	h, err := parseHash(s, def)
	if err != nil {
		return Hash{}, fmt.Errorf("hash %q: %w", clip(s), err)
	}
	if def != 0 && h.algo != def {
		return Hash{}, fmt.Errorf("hash %q: expected %s, got %s", clip(s), def, h.algo)
	}
	return h, nil
}

func parseHash(s string, def HashAlgo) (Hash, error) {
	if name, text, ok := strings.Cut(s, ":"); ok {
		algo, err := ParseHashAlgo(name)
		if err != nil {
			return Hash{}, err
		}
		return decodeDigest(algo, text)
	}
	if name, text, ok := strings.Cut(s, "-"); ok {
		algo, err := ParseHashAlgo(name)
		if err != nil {
			return Hash{}, err
		}
		digest, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil {
			return Hash{}, err
		}
		return NewHash(algo, digest)
	}
	if def == 0 {
		return Hash{}, fmt.Errorf("no algorithm")
	}
	return decodeDigest(def, s)
}

func decodeDigest(algo HashAlgo, text string) (Hash, error) {
	size := algo.Size()
	var digest []byte
	var err error
	switch len(text) {
	case hex.EncodedLen(size):
		digest, err = hex.DecodeString(text)
	case nix32Len(size):
		digest, err = DecodeNix32(text, size)
	case base64.StdEncoding.EncodedLen(size):
		digest, err = base64.StdEncoding.Strict().DecodeString(text)
	default:
		return Hash{}, fmt.Errorf("%d characters fit no encoding of %s", len(text), algo)
	}
	if err != nil {
		return Hash{}, err
	}
	return NewHash(algo, digest)
}

// Algo returns the algorithm, zero for "no hash".
func (h Hash) Algo() HashAlgo { return h.algo }

// IsZero reports whether h is "no hash".
func (h Hash) IsZero() bool { return h.algo == 0 }

// Bytes returns a copy of the digest.
func (h Hash) Bytes() []byte {
	if h.IsZero() {
		return nil
	}
	return append([]byte(nil), h.digest[:h.algo.Size()]...)
}

// Base16 returns the digest as lower-case hex, without the algorithm.
func (h Hash) Base16() string { return hex.EncodeToString(h.Bytes()) }

// Nix32 returns the digest in Nix's base 32, without the algorithm.
func (h Hash) Nix32() string { return EncodeNix32(h.Bytes()) }

// SRI returns the "algo-base64" form.
func (h Hash) SRI() string {
	return h.algo.String() + "-" + base64.StdEncoding.EncodeToString(h.Bytes())
}

// String returns "algo:nix32", the form of narinfo files and fingerprints, and
// "" for the zero value.
func (h Hash) String() string {
	if h.IsZero() {
		return ""
	}
	return h.algo.String() + ":" + h.Nix32()
}
