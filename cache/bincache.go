package cache

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"nixbastion/internal/nix"
)

// A binary cache as a folder, or as a tar stream between two processes: the
// admin's, who may read and write the folder, and the proxy's, who has the store.

// exportNames are those of the files that Export writes.
var exportNames = regexp.MustCompile(`^(nix-cache-info|[0-9a-z]{32}\.narinfo|nar/[0-9a-z]{2}/[0-9a-z]{52}\.nar)$`)

// FolderSink writes a binary cache into a folder.
type FolderSink struct{ root *os.Root }

// NewFolderSink makes the folder if it is missing. Close it.
func NewFolderSink(dir string) (*FolderSink, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	return &FolderSink{root}, err
}

// Put writes a file of a binary cache, and refuses other names.
func (s *FolderSink) Put(name string, size int64, content io.Reader) error {
	if !exportNames.MatchString(name) {
		return fmt.Errorf("%q is no file of a binary cache", clip(name))
	}
	if name == cacheInfoName && hasLength(s.root, name, uint64(size)) {
		return nil
	}
	if err := s.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	part := name + ".part"
	if err := s.write(part, size, content); err != nil {
		return errors.Join(err, removeIfThere(s.root, part))
	}
	return s.root.Rename(part, name)
}

func (s *FolderSink) write(name string, size int64, content io.Reader) error {
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, content)
	if err == nil && n != size {
		err = fmt.Errorf("%s has %d bytes instead of %d", name, n, size)
	}
	return errors.Join(err, f.Close())
}

// Close makes what was written durable.
func (s *FolderSink) Close() error {
	dir, err := s.root.Open(".")
	if err == nil {
		err = errors.Join(syncFileSystem(dir), dir.Close())
	}
	return errors.Join(err, s.root.Close())
}

// TarSink writes the files into a tar stream.
type TarSink struct{ *tar.Writer }

// Put writes a file. A content that fails ends the stream: its reader sees it cut.
func (s TarSink) Put(name string, size int64, content io.Reader) error {
	if err := s.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644}); err != nil {
		return err
	}
	n, err := io.Copy(s.Writer, content)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil { // not a refusal of one path: what follows could not be read
		return fmt.Errorf("send %s: %v", name, err)
	}
	return nil
}

// Unpack puts the files of a tar stream into a sink.
func Unpack(stream io.Reader, to Sink) error {
	files := tar.NewReader(stream)
	for {
		h, err := files.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := to.Put(h.Name, h.Size, files); err != nil {
			return err
		}
	}
}

// FolderSource reads a binary cache from a folder.
type FolderSource struct {
	dir   string
	order []string // names of narinfos that are left
	total int
	nar   *os.File // that was given out last
	// Refused are those that cannot be read.
	Refused []Refusal
}

// NewFolderSource reads which paths a binary cache has. Close it.
func NewFolderSource(dir string) (*FolderSource, error) {
	if err := checkCacheInfo(dir); err != nil {
		return nil, err
	}
	s := &FolderSource{dir: dir}
	names, err := narinfoNames(dir)
	if err != nil {
		return nil, err
	}
	references := map[string][]string{}
	for _, name := range names {
		info, err := s.read(name)
		if err != nil {
			s.Refused = refused(s.Refused, filepath.Join(dir, name), err.Error())
			continue
		}
		for _, ref := range info.References {
			references[name] = append(references[name], ref.HashPart()+narinfoSuffix)
		}
		references[name] = append(references[name], name) // known, with none too
	}
	s.order = referencesFirst(references)
	s.total = len(s.order)
	return s, nil
}

// Total is how many paths there are.
func (s *FolderSource) Total() int { return s.total }

func checkCacheInfo(dir string) error {
	text, err := readLimited(filepath.Join(dir, cacheInfoName))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not a Nix binary cache: it has no %s", dir, cacheInfoName)
	}
	for line := range strings.Lines(text) {
		if store, ok := strings.CutPrefix(strings.TrimSpace(line), "StoreDir:"); ok && strings.TrimSpace(store) != nix.StoreDir {
			return fmt.Errorf("%s is for the store %s, not %s", dir, strings.TrimSpace(store), nix.StoreDir)
		}
	}
	return err
}

func narinfoNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, narinfoSuffix) })
	slices.Sort(names)
	return names, err
}

// referencesFirst orders names so that each comes after those that it names. In a
// circle some come first all the same.
func referencesFirst(references map[string][]string) []string {
	names := make([]string, 0, len(references))
	for name := range references {
		names = append(names, name)
	}
	slices.Sort(names)
	var order []string
	entered, placed := map[string]bool{}, map[string]bool{}
	for _, name := range names {
		for stack := []string{name}; len(stack) > 0; {
			top := stack[len(stack)-1]
			before := len(stack)
			if !entered[top] {
				entered[top] = true
				for _, ref := range references[top] {
					if references[ref] != nil && !entered[ref] {
						stack = append(stack, ref)
					}
				}
			}
			if len(stack) > before {
				continue
			}
			stack = stack[:len(stack)-1]
			if !placed[top] {
				placed[top] = true
				order = append(order, top)
			}
		}
	}
	return order
}

func readLimited(name string) (string, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular() || info.Size() > maxNarinfoSize:
		return "", errors.New("it is no file of usual size")
	}
	text, err := os.ReadFile(name)
	return string(text), err
}

func (s *FolderSource) read(name string) (*nix.NarInfo, error) {
	text, err := readLimited(filepath.Join(s.dir, name))
	if err != nil {
		return nil, err
	}
	return importable(name, text)
}

// importable reads a narinfo whose NAR can be taken as it is.
func importable(name, text string) (*nix.NarInfo, error) {
	info, err := nix.ParseNarInfo(text)
	switch {
	case err != nil:
		return nil, err
	case info.Path.HashPart()+narinfoSuffix != name:
		return nil, fmt.Errorf("it is of %s, which is not its name", info.Path)
	case info.Compression != "none":
		return nil, fmt.Errorf("its NAR is compressed with %s, which is not taken; make a cache without: nix copy --to 'file://DIR?compression=none'", clip(info.Compression))
	case !filepath.IsLocal(info.URL):
		return nil, fmt.Errorf("its NAR is elsewhere, at %q", clip(info.URL))
	case info.FileSize != 0 && info.FileSize != info.NarSize:
		return nil, fmt.Errorf("its file has %d bytes and its NAR %d", info.FileSize, info.NarSize)
	}
	return info, nil
}

// Next opens the next path.
func (s *FolderSource) Next() (*nix.NarInfo, io.Reader, error) {
	for len(s.order) > 0 {
		name := s.order[0]
		s.order = s.order[1:]
		info, err := s.open(name)
		if err == nil {
			return info, s.nar, nil
		}
		s.Refused = refused(s.Refused, filepath.Join(s.dir, name), err.Error())
	}
	return nil, nil, io.EOF
}

func (s *FolderSource) open(name string) (*nix.NarInfo, error) {
	if err := s.Close(); err != nil {
		return nil, err
	}
	info, err := s.read(name)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, info.URL)
	stat, err := os.Stat(file) // before it is opened: a pipe would wait
	switch {
	case err != nil:
		return nil, err
	case !stat.Mode().IsRegular() || uint64(stat.Size()) != info.NarSize:
		return nil, fmt.Errorf("%s is no file of %d bytes", file, info.NarSize)
	}
	s.nar, err = os.Open(file)
	return info, err
}

// Close closes what Next opened last.
func (s *FolderSource) Close() error {
	f := s.nar
	if s.nar = nil; f == nil {
		return nil
	}
	return f.Close()
}

// Pack writes what a source has into a tar stream that TarSource reads.
func Pack(from Source, to TarSink, tell func(*nix.NarInfo)) error {
	for {
		info, nar, err := from.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		text := info.String()
		if err := to.Put(info.Path.HashPart()+narinfoSuffix, int64(len(text)), strings.NewReader(text)); err != nil {
			return err
		}
		if err := to.Put(narName(info.NarHash), int64(info.NarSize), io.LimitReader(nar, int64(info.NarSize))); err != nil {
			return err
		}
		tell(info)
	}
}

// TarSource reads paths from a tar stream: a narinfo, then its NAR, and so on.
type TarSource struct{ files *tar.Reader }

// NewTarSource reads from a stream.
func NewTarSource(stream io.Reader) *TarSource { return &TarSource{tar.NewReader(stream)} }

// Next reads the next path.
func (s *TarSource) Next() (*nix.NarInfo, io.Reader, error) {
	h, err := s.files.Next()
	if err != nil {
		return nil, nil, err // io.EOF too
	}
	if h.Size > maxNarinfoSize || !strings.HasSuffix(h.Name, narinfoSuffix) {
		return nil, nil, fmt.Errorf("%q of %d bytes where a narinfo was expected", clip(h.Name), h.Size)
	}
	text, err := io.ReadAll(s.files)
	if err != nil {
		return nil, nil, err
	}
	info, err := importable(h.Name, string(text))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	if h, err = s.files.Next(); err != nil {
		return nil, nil, fmt.Errorf("NAR of %s: %w", info.Path, noEOF(err))
	}
	if h.Name != narName(info.NarHash) || uint64(h.Size) != info.NarSize {
		return nil, nil, fmt.Errorf("%q of %d bytes where the NAR of %s was expected", clip(h.Name), h.Size, info.Path)
	}
	return info, s.files, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
