package nix

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// NarInfo is the .narinfo file of a binary cache: a path info and where the NAR
// lies.
type NarInfo struct {
	PathInfo
	// URL is relative to the cache, or absolute.
	URL string
	// Compression is "none", "xz", "zstd" and so on. Files that name none mean
	// "bzip2".
	Compression string
	// FileHash and FileSize (in bytes) are of the file behind URL; zero if
	// unknown.
	FileHash Hash
	FileSize uint64
}

// ParseNarInfo parses a .narinfo file. Unknown keys are ignored, as are
// signatures that are malformed: some Nix versions refuse a whole path for one.
func ParseNarInfo(text string) (*NarInfo, error) {
	p := narInfoParser{info: new(NarInfo)}
	for line := 1; text != ""; line++ {
		row, rest, ok := strings.Cut(text, "\n")
		if !ok {
			return nil, fmt.Errorf("narinfo line %d: no newline", line)
		}
		if err := p.row(row); err != nil {
			return nil, fmt.Errorf("narinfo line %d: %w", line, err)
		}
		text = rest
	}
	if err := p.end(); err != nil {
		return nil, fmt.Errorf("narinfo: %w", err)
	}
	return p.info, nil
}

type narInfoParser struct{ info *NarInfo }

func (p *narInfoParser) row(row string) (err error) {
	key, value, ok := strings.Cut(row, ":")
	if !ok {
		return errors.New("expected ':'")
	}
	value = strings.TrimPrefix(value, " ")
	info := p.info
	switch key {
	case "StorePath":
		info.Path, err = ParseStorePath(value)
	case "URL":
		info.URL = value
	case "Compression":
		info.Compression = value
	case "FileHash":
		info.FileHash, err = ParseHash(value, SHA256)
	case "FileSize":
		info.FileSize, err = parseSize(value)
	case "NarHash":
		info.NarHash, err = ParseHash(value, SHA256)
	case "NarSize":
		info.NarSize, err = parseSize(value)
	case "References":
		err = p.references(value)
	case "Deriver":
		if value != "unknown-deriver" {
			info.Deriver, err = ParseStorePathBase(value)
		}
	case "Sig":
		if sig, err := ParseSignature(value); err == nil {
			info.Sigs = append(info.Sigs, sig)
		}
	case "CA":
		if !info.CA.IsZero() {
			return errors.New("a second CA")
		}
		info.CA, err = ParseContentAddress(value)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

func parseSize(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size", clip(s))
	}
	return n, nil
}

func (p *narInfoParser) references(value string) error {
	if len(p.info.References) > 0 {
		return errors.New("a second list")
	}
	for base := range strings.FieldsSeq(value) {
		path, err := ParseStorePathBase(base)
		if err != nil {
			return err
		}
		p.info.References = append(p.info.References, path)
	}
	p.info.References = SortPaths(p.info.References)
	return nil
}

func (p *narInfoParser) end() error {
	info := p.info
	switch {
	case info.Path.IsZero():
		return errors.New("StorePath is missing")
	case info.NarHash.IsZero():
		return errors.New("NarHash is missing")
	case info.URL == "":
		return errors.New("URL is missing")
	case info.NarSize == 0:
		return errors.New("NarSize is missing or 0")
	}
	if info.Compression == "" {
		info.Compression = "bzip2"
	}
	return nil
}

// String returns the text of the file. Registration time and Ultimate are not in
// it.
func (n *NarInfo) String() string {
	var b strings.Builder
	row := func(key, value string) { b.WriteString(key + ": " + value + "\n") }
	row("StorePath", n.Path.String())
	row("URL", n.URL)
	row("Compression", n.Compression)
	if !n.FileHash.IsZero() {
		row("FileHash", n.FileHash.String())
	}
	if n.FileSize != 0 {
		row("FileSize", strconv.FormatUint(n.FileSize, 10))
	}
	row("NarHash", n.NarHash.String())
	row("NarSize", strconv.FormatUint(n.NarSize, 10))
	row("References", baseNames(n.References))
	if !n.Deriver.IsZero() {
		row("Deriver", n.Deriver.Base())
	}
	for _, sig := range n.Sigs {
		row("Sig", sig.String())
	}
	if !n.CA.IsZero() {
		row("CA", n.CA.String())
	}
	return b.String()
}

func baseNames(paths []StorePath) string {
	names := make([]string, len(paths))
	for i, p := range paths {
		names[i] = p.Base()
	}
	return strings.Join(names, " ")
}
