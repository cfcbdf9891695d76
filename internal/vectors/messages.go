package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/serve"
	"nixbastion/internal/nix/wire"
	"nixbastion/internal/nix/worker"
)

// Each .bin holds several values of one type, one behind the other, and the
// .json beside it an array of the same values, or the only value.

// messages checks a .bin of the worker protocol: what is read must be what the
// JSON says, nothing may be left over, and what is written again must be the same
// bytes.
func messages[T any](read func(*worker.Codec) T, write func(*worker.Codec, T), show func(T) any) func(*file) error {
	return checkMessages(codec, read, write, show)
}

// speaker is a codec of either protocol.
type speaker interface {
	*worker.Codec | *serve.Codec
}

// opener makes a codec that speaks what a file's name says.
type opener[C speaker] func(f *file, in []byte, out *bytes.Buffer) C

func checkMessages[C speaker, T any](open opener[C], read func(C) T, write func(C, T), show func(T) any) func(*file) error {
	return func(f *file) error {
		values, err := decode(open, f, read)
		if err != nil {
			return fmt.Errorf("decode: %w", err)
		}
		if err := compareJSON(f, values, show); err != nil {
			return err
		}
		return sameBytes(encode(open, f, values, write), f.data)
	}
}

func decode[C speaker, T any](open opener[C], f *file, read func(C) T) ([]T, error) {
	c := open(f, f.data, nil)
	r, _ := ends(c)
	var values []T
	for r.More() {
		values = append(values, read(c))
		if r.Err() != nil {
			break
		}
	}
	return values, r.Err()
}

func encode[C speaker, T any](open opener[C], f *file, values []T, write func(C, T)) []byte {
	var b bytes.Buffer
	c := open(f, nil, &b)
	for _, v := range values {
		write(c, v)
	}
	_, w := ends(c)
	w.Flush()
	return b.Bytes()
}

// ends returns the two ends of a codec: fields are not what a constraint knows.
func ends[C speaker](c C) (*wire.Reader, *wire.Writer) {
	switch c := any(c).(type) {
	case *worker.Codec:
		return c.R, c.W
	case *serve.Codec:
		return c.R, c.W
	}
	panic("no codec")
}

var workerVersion = regexp.MustCompile(`-1\.(\d+)$`)

// codec speaks what a file's name says: a version, the feature, or the version
// of the serve protocol with a message that both protocols have in the same form.
func codec(f *file, in []byte, out *bytes.Buffer) *worker.Codec {
	version, features := worker.Latest, []string(nil)
	ofServe := strings.Contains(f.name, "/serve-protocol/")
	switch minor := workerVersion.FindStringSubmatch(f.stem()); {
	case minor != nil:
		n, _ := strconv.Atoi(minor[1]) // of digits
		version = worker.Version(1<<8 | n)
	case strings.HasSuffix(f.stem(), "-"+worker.FeatureRealisationPaths), ofServe && strings.HasSuffix(f.stem(), "-2.8"):
		features = []string{worker.FeatureRealisationPaths}
	}
	return worker.NewCodec(bytes.NewReader(in), out, version, features...)
}

func compareJSON[T any](f *file, values []T, show func(T) any) error {
	text, err := f.other(".json")
	if err != nil {
		return err
	}
	want, err := elements(text)
	if err != nil {
		return err
	}
	if len(want) != len(values) {
		return fmt.Errorf("%d values, JSON has %d", len(values), len(want))
	}
	for i, v := range values {
		if err := sameJSON(show(v), want[i]); err != nil {
			return fmt.Errorf("value %d: %w", i, err)
		}
	}
	return nil
}

// elements returns those of an array, or the only value.
func elements(text []byte) ([]json.RawMessage, error) {
	var list []json.RawMessage
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("[")) {
		return list, json.Unmarshal(text, &list)
	}
	return []json.RawMessage{text}, nil
}

func sameBytes(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	n := 0
	for n < min(len(got), len(want)) && got[n] == want[n] {
		n++
	}
	return fmt.Errorf("encoded again it is %d bytes, not %d, and differs from byte %d on", len(got), len(want), n)
}

// The primitives.

func readPath(c *worker.Codec) nix.StorePath         { return c.R.StorePath() }
func readOptionalPath(c *worker.Codec) nix.StorePath { return c.R.OptionalStorePath() }
func writePath(c *worker.Codec, p nix.StorePath)     { c.W.StorePath(p) }

// Method expressions, so that rules read as a table.
var (
	readCA, writeCA                   = (*worker.Codec).ReadContentAddress, (*worker.Codec).WriteContentAddress
	readTarget, writeTarget           = (*worker.Codec).ReadDerivedPath, (*worker.Codec).WriteDerivedPath
	readMode, writeMode               = (*worker.Codec).ReadBuildMode, (*worker.Codec).WriteBuildMode
	readTrust, writeTrust             = (*worker.Codec).ReadTrust, (*worker.Codec).WriteTrust
	readResult, writeResult           = (*worker.Codec).ReadBuildResult, (*worker.Codec).WriteBuildResult
	readKeyedResult, writeKeyedResult = (*worker.Codec).ReadKeyedBuildResult, (*worker.Codec).WriteKeyedBuildResult
	readInfo, writeInfo               = (*worker.Codec).ReadPathInfo, (*worker.Codec).WritePathInfo
	readValidInfo, writeValidInfo     = (*worker.Codec).ReadValidPathInfo, (*worker.Codec).WriteValidPathInfo
	readOutputID, writeOutputID       = (*worker.Codec).ReadDrvOutput, (*worker.Codec).WriteDrvOutput
	readRealisation, writeRealisation = (*worker.Codec).ReadRealisation, (*worker.Codec).WriteRealisation
)

// readFound and writeFound leave out the tag before the value.
func readFound(c *worker.Codec) nix.Realisation {
	return nix.Realisation{OutPath: c.R.StorePath(), Sigs: c.R.StringSet(100, 1<<10)}
}

func writeFound(c *worker.Codec, r nix.Realisation) {
	c.W.StorePath(r.OutPath)
	c.W.StringSet(r.Sigs)
}

// objectSignature is how Nix 2.34 and newer write a signature into JSON.
var objectSignature = regexp.MustCompile(`\{"keyName":"([^"]*)","sig":"([^"]*)"\}`)

// checkRealisations is messages with one difference by intent: signatures inside
// the JSON are written as strings, since every version of Nix reads those and
// only the newest reads objects.
func checkRealisations(f *file) error {
	values, err := decode(codec, f, readRealisation)
	if err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	if err := compareJSON(f, values, realisationJSON); err != nil {
		return err
	}
	texts, err := decode(codec, f, func(c *worker.Codec) string { return c.R.String(1 << 20) })
	if err != nil {
		return err
	}
	want := encode(codec, f, texts, func(c *worker.Codec, text string) {
		c.W.String(objectSignature.ReplaceAllString(text, `"$1:$2"`))
	})
	return sameBytes(encode(codec, f, values, writeRealisation), want)
}

// checkCollections reads what the JSON has: strings, sets of strings, or sets of
// sets of strings.
func checkCollections(f *file) error {
	text, err := f.other(".json")
	if err != nil {
		return err
	}
	want, err := elements(text)
	if err != nil {
		return err
	}
	var again bytes.Buffer
	c := codec(f, f.data, &again)
	for i, element := range want {
		if err := checkCollection(c, element); err != nil {
			return fmt.Errorf("value %d: %w", i, err)
		}
	}
	if c.R.More() {
		return fmt.Errorf("%d bytes are left over", len(f.data)-int(c.R.Offset()))
	}
	c.W.Flush()
	return sameBytes(again.Bytes(), f.data)
}

const someElements, someLength = 1000, 1 << 20

func checkCollection(c *worker.Codec, want json.RawMessage) error {
	var got any
	switch {
	case json.Unmarshal(want, new(string)) == nil:
		s := c.R.String(someLength)
		c.W.String(s)
		got = s
	case json.Unmarshal(want, new([]string)) == nil:
		list := c.R.Strings(someElements, someLength)
		c.W.StringSet(list)
		got = orEmpty(list)
	default:
		lists := wire.List(c.R, someElements, func() []string { return orEmpty(c.R.Strings(someElements, someLength)) })
		c.W.Uint64(uint64(len(lists)))
		for _, list := range lists {
			c.W.StringSet(list)
		}
		got = lists
	}
	if c.R.Err() != nil {
		return c.R.Err()
	}
	return sameJSON(got, want)
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
