package main

import (
	"bytes"
	"maps"
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

func golden() fstest.MapFS {
	return fstest.MapFS{
		"libstore/store-path/simple.json":               {Data: []byte(`"g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo.drv"`)},
		"libstore/common-protocol/string.bin":           {Data: []byte("\x01\x00\x00\x00\x00\x00\x00\x00x\x00\x00\x00\x00\x00\x00\x00")},
		"libstore/common-protocol/string.json":          {Data: []byte(`["x"]`)},
		"libstore/worker-protocol/content-address.bin":  {Data: make([]byte, 8)},
		"libstore/worker-protocol/content-address.json": {Data: []byte(`[null]`)},
		"libstore/machines/valid":                       {Data: []byte("ssh://x\n")},
		"libutil/nar-listing/deep.json":                 {Data: []byte(`{"type":"directory","entries":{"a":{"type":"symlink","target":"b"}}}`)},
		"README.md":                                     {},
	}
}

func runOn(t *testing.T, tree fstest.MapFS) (code int, out, errs string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, tree); err != nil {
		t.Fatal(err)
	}
	var o, e bytes.Buffer
	code = run(dir, &o, &e)
	return code, o.String(), e.String()
}

// Guards against a check of nothing that passes, and against new data that lies
// there unseen.
func TestNothingToCheckAndUnknownFilesAreErrors(t *testing.T) {
	if code, out, errs := runOn(t, golden()); code != 0 || !strings.HasSuffix(out, "\n6 passed, 0 failed\n") || errs != "" {
		t.Fatalf("golden data: %d\n%s%s", code, out, errs)
	}
	unknown, halved := golden(), golden()
	unknown["libstore/new-noun/x.json"] = &fstest.MapFile{Data: []byte("{}")}
	maps.DeleteFunc(halved, func(name string, _ *fstest.MapFile) bool { return strings.HasPrefix(name, "libutil") })
	for name, c := range map[string]struct {
		tree fstest.MapFS
		want string
	}{
		"empty":   {fstest.MapFS{}, "no golden data in libstore"},
		"halved":  {halved, "no golden data in libutil"},
		"unknown": {unknown, `no rule says how to check ["libstore/new-noun/x.json"]`},
	} {
		if code, _, errs := runOn(t, c.tree); code != 2 || !strings.Contains(errs, c.want) {
			t.Errorf("%s: %d, %s", name, code, errs)
		}
	}
	var e bytes.Buffer
	if code := run("/nonexistent", &e, &e); code != 2 {
		t.Errorf("missing folder: %d", code)
	}
}

// Guards against a comparison that never fails: each file in turn says something
// else, has a byte too many, or lacks what it is compared with.
func TestEveryDifferenceIsAFailure(t *testing.T) {
	for name, other := range map[string]string{
		"libstore/store-path/simple.json":               `"g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q"`,
		"libstore/common-protocol/string.bin":           "\x01\x00\x00\x00\x00\x00\x00\x00y\x00\x00\x00\x00\x00\x00\x00",
		"libstore/common-protocol/string.json":          `["y"]`,
		"libstore/worker-protocol/content-address.bin":  string(make([]byte, 16)),
		"libstore/worker-protocol/content-address.json": `["text:sha256:x"]`,
		"libutil/nar-listing/deep.json":                 `{"type":"directory","entries":{"a":{"type":"symlink","target":"b","size":1}}}`,
	} {
		tree := golden()
		tree[name] = &fstest.MapFile{Data: []byte(other)}
		if code, out, errs := runOn(t, tree); code != 1 || !strings.HasSuffix(out, "\n5 passed, 1 failed\n") {
			t.Errorf("%s: %d\n%s%s", name, code, out, errs)
		}
	}
	alone := golden()
	delete(alone, "libstore/common-protocol/string.bin")
	if code, out, _ := runOn(t, alone); code != 1 || !strings.Contains(out, "nothing to compare it with") {
		t.Errorf("JSON without messages: %d\n%s", code, out)
	}
}

// Guards against a recording of the serve protocol that is read to any other end
// than it has.
func TestServeSessionIsReadToItsLastByte(t *testing.T) {
	const recording = "../nix/serve/testdata/sessions/nix-2.34.8/build-ssh-2"
	tree := golden()
	for _, ext := range []string{".c2s", ".s2c"} {
		data, err := os.ReadFile(recording + ext)
		if err != nil {
			t.Fatal(err)
		}
		tree["sessions/nix/build-ssh-2"+ext] = &fstest.MapFile{Data: data}
	}
	if code, out, errs := runOn(t, tree); code != 0 || !strings.HasSuffix(out, "\n8 passed, 0 failed\n") {
		t.Fatalf("%d\n%s%s", code, out, errs)
	}
	for _, ext := range []string{".c2s", ".s2c"} {
		f := tree["sessions/nix/build-ssh-2"+ext]
		whole := f.Data
		for what, data := range map[string][]byte{"cut": whole[:len(whole)-1], "longer": append(bytes.Clone(whole), 0)} {
			f.Data = data
			if code, out, _ := runOn(t, tree); code != 1 || !strings.Contains(out, "FAILED sessions/nix/build-ssh-2.c2s") {
				t.Errorf("%s %s: %d\n%s", ext, what, code, out)
			}
		}
		f.Data = whole
	}
}
