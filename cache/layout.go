package cache

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"nixbastion/internal/nix"
)

// The names below the cache's directory.
const (
	indexName      = "index.db"
	narDir         = "nar"
	domainDir      = "domain"
	tmpDir         = "tmp"
	quarantineDir  = "quarantine"
	cacheInfoName  = "nix-cache-info"
	narinfoSuffix  = ".narinfo"
	narSuffix      = ".nar"
	cacheInfoText  = "StoreDir: " + nix.StoreDir + "\nWantMassQuery: 1\nPriority: 40\n"
	hashPartLen    = 32
	maxDomainName  = 64
	maxNarinfoSize = 4 << 20 // bytes of a narinfo file that is read: 10,000 references fit
)

// publicDomain is the domain that all see.
const publicDomain = ""

// checkDomain refuses names that are not one plain file name.
func checkDomain(name string) error {
	if name == publicDomain || len(name) > maxDomainName || name[0] == '.' {
		return fmt.Errorf("domain %q: expected 1 to %d letters, digits, '-', '_' or '.', not starting with '.'", name, maxDomainName)
	}
	for i := range len(name) {
		if strings.IndexByte(domainChars, name[i]) < 0 {
			return fmt.Errorf("domain %q: illegal character %q", name, name[i])
		}
	}
	return nil
}

const domainChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

// key names a record: a domain and the hash part of a path. Narinfo files are
// found by the hash part, so a domain holds one path of a hash part at most.
type key struct{ domain, hashPart string }

func keyOf(domain string, p nix.StorePath) key { return key{domain, p.HashPart()} }

// compare is the order of keys in the index.
func (k key) compare(other key) int {
	return cmp.Or(strings.Compare(k.domain, other.domain), strings.Compare(k.hashPart, other.hashPart))
}

// folder is the directory of the domain's narinfo files.
func folder(domain string) string {
	if domain == publicDomain {
		return "."
	}
	return path.Join(domainDir, domain)
}

func (k key) narinfoName() string { return path.Join(folder(k.domain), k.hashPart+narinfoSuffix) }

// narName is where the NAR of a hash is kept. It is also the URL in narinfo
// files, where it is relative to the narinfo's folder.
func narName(narHash nix.Hash) string {
	text := narHash.Nix32()
	return path.Join(narDir, text[:2], text+narSuffix)
}

// makeLayout makes the directories that every cache has.
func makeLayout(root *os.Root) error {
	for _, dir := range []string{narDir, domainDir, tmpDir, quarantineDir} {
		if err := root.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return makeCacheInfo(root, publicDomain)
}

// makeDomain makes the folder of a domain, a binary cache of its own.
func makeDomain(root *os.Root, domain string) error {
	dir := folder(domain)
	if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := linkNARs(root, domain); err != nil {
		return err
	}
	return makeCacheInfo(root, domain)
}

// linkNARs lets a domain have the NARs that all share. Nix makes a folder of that
// name in a binary cache that it merely opens; what is in the way is put aside.
func linkNARs(root *os.Root, domain string) error {
	link, shared := path.Join(folder(domain), narDir), path.Join("..", "..", narDir)
	if to, err := root.Readlink(link); err == nil && to == shared {
		return nil
	}
	if err := root.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		aside := fmt.Sprintf("%s-of-%s-%d", narDir, domain, time.Now().UnixNano())
		if err := root.Rename(link, path.Join(quarantineDir, aside)); err != nil {
			return err
		}
	}
	return root.Symlink(shared, link)
}

func makeCacheInfo(root *os.Root, domain string) error {
	name := path.Join(folder(domain), cacheInfoName)
	if text, err := root.ReadFile(name); err == nil && string(text) == cacheInfoText {
		return nil
	}
	return root.WriteFile(name, []byte(cacheInfoText), 0o600)
}

// renameInto renames a file to a name whose folder may not be there yet.
func renameInto(root *os.Root, from, to string) error {
	err := root.Rename(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		if err := root.MkdirAll(path.Dir(to), 0o700); err != nil {
			return err
		}
		err = root.Rename(from, to)
	}
	return err
}

// removeIfThere removes a file and does not mind if it is gone.
func removeIfThere(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// hasLength reports whether the file is there with that many bytes.
func hasLength(root *os.Root, name string, size uint64) bool {
	info, err := root.Lstat(name)
	return err == nil && info.Mode().IsRegular() && uint64(info.Size()) == size
}
