package cache

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		writeUntilKilled(dir)
		return
	}
	if dir := os.Getenv(retiringDir); dir != "" {
		writeAndRetire(dir)
		return
	}
	if dir := os.Getenv(readerDir); dir != "" {
		readMany(dir)
		return
	}
	if os.Getenv("NIXBASTION_SOAK") != "1" { // a flag given on the command line wins
		if err := flag.Set("rapid.checks", "30"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// object is a path with its NAR.
type object struct {
	info *nix.PathInfo
	nar  []byte
}

// pathNamed makes a path of which only the name matters.
func pathNamed(name string) nix.StorePath { return storetest.Path(name) }

func mustPath(base string) nix.StorePath {
	p, err := nix.ParseStorePathBase(base)
	if err != nil {
		panic(err)
	}
	return p
}

func narOf(content string) []byte { return storetest.File(content) }

// obj is an input-addressed path: its name says nothing about its content.
func obj(name, content string, refs ...nix.StorePath) object {
	archive := narOf(content)
	return object{nar: archive, info: &nix.PathInfo{
		Path: pathNamed(name), NarHash: nix.HashBytes(nix.SHA256, archive), NarSize: uint64(len(archive)),
		References: nix.SortPaths(slices.Clone(refs)),
	}}
}

// sourceObj is a content-addressed path.
func sourceObj(name, content string, refs ...nix.StorePath) object {
	o := obj(name, content, refs...)
	o.info.CA = nix.ContentAddress{Method: nix.NAR, Hash: o.info.NarHash}
	var err error
	if o.info.Path, err = nix.ContentAddressedPath(name, o.info.CA, refs, false); err != nil {
		panic(err)
	}
	return o
}

// in is the grant of an unproven upload into a domain.
func in(domain string) Grant { return Grant{Domain: domain} }

// newDir makes a directory in memory where that is possible: most tests sync often
// and none needs to survive a power cut.
func newDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "nixbastion-cache-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func openCache(t testing.TB, o Options) *Cache {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	c, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func closeCache(t testing.TB, c *Cache) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func (o object) receive(t testing.TB, c *Cache, g Grant) Outcome {
	t.Helper()
	outcome, err := c.Receive(t.Context(), o.info, bytes.NewReader(o.nar), g)
	if err != nil {
		t.Fatalf("receive %s: %v", o.info.Path.Name(), err)
	}
	return outcome
}

func (o object) mustBe(t testing.TB, want, got Outcome) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: outcome %q, want %q", o.info.Path.Name(), got, want)
	}
}

func flushed(t testing.TB, c *Cache) {
	t.Helper()
	if err := c.Flush(t.Context()); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

// readNar reads a path's NAR to its end.
func readNar(ctx context.Context, c *Cache, domain string, p nix.StorePath) ([]byte, error) {
	r, err := c.OpenNar(ctx, domain, p)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// holds checks that a domain sees the path with these bytes, by every operation.
func (o object) holds(t testing.TB, c *Cache, domain string) {
	t.Helper()
	p := o.info.Path
	if valid := c.QueryValidPaths(domain, []nix.StorePath{p}); len(valid) != 1 {
		t.Errorf("%s is not valid in %q", p.Name(), domain)
	}
	info, err := c.QueryPathInfo(domain, p)
	if err != nil {
		t.Fatalf("path info of %s in %q: %v", p.Name(), domain, err)
	}
	if info.Path != p || info.NarHash != o.info.NarHash || info.NarSize != o.info.NarSize || !slices.Equal(info.References, o.info.References) {
		t.Errorf("path info of %s in %q: got %+v", p.Name(), domain, info)
	}
	got, err := readNar(t.Context(), c, domain, p)
	if err != nil {
		t.Fatalf("NAR of %s in %q: %v", p.Name(), domain, err)
	}
	if !bytes.Equal(got, o.nar) {
		t.Errorf("NAR of %s in %q: got %d other bytes", p.Name(), domain, len(got))
	}
}

// absent checks that a domain learns nothing of the path, by any operation.
func absent(t testing.TB, c *Cache, domain string, p nix.StorePath) {
	t.Helper()
	if valid := c.QueryValidPaths(domain, []nix.StorePath{p}); len(valid) != 0 {
		t.Errorf("%s is valid in %q", p.Name(), domain)
	}
	pins := c.NewPins("somebody")
	defer pins.Release()
	if valid := pins.Pin(domain, []nix.StorePath{p}); len(valid) != 0 {
		t.Errorf("%s can be pinned in %q", p.Name(), domain)
	}
	_, infoErr := c.QueryPathInfo(domain, p)
	_, provenanceErr := c.QueryProvenance(domain, p)
	_, narErr := readNar(t.Context(), c, domain, p)
	for what, err := range map[string]error{"path info": infoErr, "provenance": provenanceErr, "NAR": narErr} {
		if !errors.Is(err, nix.ErrNotFound) {
			t.Errorf("%s of %s in %q: %v, want not found", what, p.Name(), domain, err)
		}
	}
}

func wantProvenance(t testing.TB, c *Cache, domain string, p nix.StorePath, want Provenance) {
	t.Helper()
	if got, err := c.QueryProvenance(domain, p); err != nil || got != want {
		t.Errorf("provenance of %s in %q: %v (%v), want %v", p.Name(), domain, got, err, want)
	}
}

// refusedWith checks that an error is a sentence for the user with this text.
func refusedWith(t testing.TB, err error, text string) {
	t.Helper()
	if _, ok := errors.AsType[*nix.UserError](err); !ok || !strings.Contains(err.Error(), text) {
		t.Errorf("got error %v (%T), want a UserError with %q", err, err, text)
	}
}

// filesIn lists regular files below dir with this suffix, relative to it.
func filesIn(t testing.TB, dir, suffix string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil && d.Type().IsRegular() && strings.HasSuffix(name, suffix) {
			rel, _ := filepath.Rel(dir, name)
			files = append(files, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// wantFiles checks how many files with a suffix there are.
func wantFiles(t testing.TB, dir, suffix string, want int) {
	t.Helper()
	if got := filesIn(t, dir, suffix); len(got) != want {
		t.Errorf("files *%s in %s: got %q, want %d", suffix, filepath.Base(dir), got, want)
	}
}

func narFile(dir string, o object) string { return filepath.Join(dir, narName(o.info.NarHash)) }

// scanned waits until the background scan has ended.
func scanned(t testing.TB, c *Cache) {
	t.Helper()
	<-c.scanEnd()
	if c.scanning.Load() {
		t.Fatal("the scan did not complete")
	}
}

func names(prefix string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%s%d", prefix, i)
	}
	return list
}
