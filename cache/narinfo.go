package cache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"nixbastion/internal/nix"
)

// Our own lines in a narinfo file. Nix ignores keys that it does not know. With
// them the index can be rebuilt from the files.
const (
	lineProvenance = "X-Nixbastion-Provenance: "
	lineRegistered = "X-Nixbastion-Registered: " // seconds since 1970
)

func formatNarinfo(rec *record) []byte {
	info := nix.NarInfo{
		PathInfo: *rec.info, URL: narName(rec.info.NarHash), Compression: "none",
		FileHash: rec.info.NarHash, FileSize: rec.info.NarSize,
	}
	text := info.String() +
		lineProvenance + rec.provenance.String() + "\n" +
		lineRegistered + strconv.FormatInt(rec.info.RegistrationTime, 10) + "\n"
	return []byte(text)
}

// parseNarinfo reads what formatNarinfo wrote. A file that points elsewhere than
// to the NAR of its own hash, or is not of this hash part, is not ours.
func parseNarinfo(hashPart, text string) (*record, error) {
	parsed, err := nix.ParseNarInfo(text)
	if err != nil {
		return nil, err
	}
	info := parsed.PathInfo
	switch {
	case info.Path.HashPart() != hashPart:
		return nil, fmt.Errorf("narinfo of %s has the name of %s", info.Path, hashPart)
	case parsed.URL != narName(info.NarHash) || parsed.Compression != "none":
		return nil, fmt.Errorf("narinfo of %s points to %q (%s)", info.Path, parsed.URL, parsed.Compression)
	}
	rec := &record{info: &info}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if word, ok := strings.CutPrefix(line, lineProvenance); ok {
			rec.provenance = parseProvenance(word)
		}
		if word, ok := strings.CutPrefix(line, lineRegistered); ok {
			info.RegistrationTime, _ = strconv.ParseInt(word, 10, 64) // 0 is unknown
		}
	}
	return rec, nil
}

// readNarinfo reads a published narinfo and checks that its NAR is there.
func readNarinfo(root *os.Root, k key) (*record, error) {
	text, err := readText(root, k.narinfoName())
	if err != nil {
		return nil, err
	}
	rec, err := parseNarinfo(k.hashPart, text)
	if err != nil {
		return nil, err
	}
	if !hasLength(root, narName(rec.info.NarHash), rec.info.NarSize) {
		return nil, fmt.Errorf("NAR of %s: %w", rec.info.Path, errLength)
	}
	return rec, nil
}

func readText(root *os.Root, name string) (string, error) {
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxNarinfoSize+1))
	if err == nil && len(text) > maxNarinfoSize {
		err = errors.New("narinfo is too long")
	}
	return string(text), err
}
