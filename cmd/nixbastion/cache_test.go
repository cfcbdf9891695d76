package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
	"nixbastion/policy"
	"nixbastion/proxy"
)

// writeBinaryCache makes a folder as nix copy --to file:// does, without
// compression: lib, tool which refers to it, and a content-addressed source.
func writeBinaryCache(dir string) (lib, tool nix.StorePath, err error) {
	lib, tool = storetest.Path("lib"), storetest.Path("tool")
	sink, err := cache.NewFolderSink(dir)
	if err != nil {
		return lib, tool, err
	}
	put := func(info *nix.PathInfo, content string) {
		archive := storetest.File(content)
		info.NarHash, info.NarSize = nix.HashBytes(nix.SHA256, archive), uint64(len(archive))
		if info.Path.IsZero() {
			info.CA = nix.ContentAddress{Method: nix.NAR, Hash: info.NarHash}
			info.Path, _ = nix.ContentAddressedPath("source", info.CA, nil, false)
		}
		text := info.NarHash.Nix32()
		url := "nar/" + text[:2] + "/" + text + ".nar"
		narinfo := (&nix.NarInfo{PathInfo: *info, URL: url, Compression: "none"}).String()
		err = errors.Join(err, sink.Put(url, int64(len(archive)), bytes.NewReader(archive)),
			sink.Put(info.Path.HashPart()+".narinfo", int64(len(narinfo)), strings.NewReader(narinfo)))
	}
	put(&nix.PathInfo{Path: lib}, "lib")
	put(&nix.PathInfo{Path: tool, References: []nix.StorePath{lib}}, "tool")
	put(&nix.PathInfo{}, "source")
	const info = "StoreDir: /nix/store\n"
	return lib, tool, errors.Join(err, sink.Put("nix-cache-info", int64(len(info)), strings.NewReader(info)), sink.Close())
}

// bincache writes a binary cache and sets $LIB and $TOOL: bincache DIR.
func bincache(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: bincache DIR")
	}
	lib, tool, err := writeBinaryCache(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Setenv("LIB", lib.String())
	ts.Setenv("TOOL", tool.String())
}

// damage changes a byte in the middle of one file below a folder: damage DIR.
func damage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: damage DIR")
	}
	done := false
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(name string, d fs.DirEntry, err error) error {
		if err != nil || done || !d.Type().IsRegular() {
			return err
		}
		done = true
		text, err := os.ReadFile(name)
		if err == nil {
			text[len(text)/2] ^= 1
			err = os.WriteFile(name, text, 0o600)
		}
		return err
	}))
	if !done {
		ts.Fatalf("there is no file in %s", args[0])
	}
}

// openStoreOffice is an office with a store in its policy's place.
func openStoreOffice(t *testing.T) (*office, *cache.Cache) {
	t.Helper()
	o := openOffice(t, "", repeat)
	store, err := cache.Open(t.Context(), cache.Options{Dir: filepath.Join(t.TempDir(), "cache"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	o.admin.cache = store
	t.Cleanup(func() {
		o.close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return o, store
}

// Guards against accounts that may ask and could also throw away, take in or read
// out what is in the store.
func TestOnlyTheProxysOwnAccountChangesTheStore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root to come as somebody else")
	}
	dir, err := os.MkdirTemp("", "admin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	o := openOffice(t, "admin: {socket: "+dir+"/s, users: [nobody]}\n", repeat)
	store, err := cache.Open(t.Context(), cache.Options{Dir: filepath.Join(t.TempDir(), "cache"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	defer o.close()
	o.admin.cache = store
	if err := os.Chmod(o.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	for do, work := range cacheWork {
		want := http.StatusOK
		if work.changes {
			want = http.StatusForbidden
		}
		answer, err := postAs(65534, o.socket, `{"do":"`+do+`","domain":"default"}`+"\n")
		if err != nil || answer.status != want {
			t.Errorf("%s as nobody: %+v, %v, want %d", do, answer, err, want)
		}
		if answer, err := postAs(1, o.socket, `{"do":"`+do+`","domain":"default"}`+"\n"); err != nil || answer.status != http.StatusForbidden {
			t.Errorf("%s as somebody: %+v, %v", do, answer, err)
		}
	}
	for _, do := range []string{"import", "export", "verify", "gc", "pin", "unpin", "rm"} {
		if !cacheWork[do].changes {
			t.Errorf("%s changes nothing?", do)
		}
	}
}

func postAs(uid int, socket, body string) (httpAnswer, error) {
	conn, err := dialAs(uid, socket)
	if err != nil {
		return httpAnswer{}, err
	}
	defer conn.Close()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	answer, err := client.Post("http://admin/cache", "", strings.NewReader(body))
	if err != nil {
		return httpAnswer{}, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return httpAnswer{answer.StatusCode, string(text)}, err
}

// Guards against work that goes on when nobody waits for it any more, and against
// a socket that closes over it: the store is closed right afterwards.
func TestWorkOnTheStoreEndsWithItsClient(t *testing.T) {
	o, store := openStoreOffice(t)
	dir := filepath.Join(t.TempDir(), "there")
	if _, _, err := writeBinaryCache(dir); err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan struct{}), make(chan error, 1)
	before := cacheWork["gc"]
	t.Cleanup(func() { cacheWork["gc"] = before })
	slow := before
	slow.run = func(_ *cacheRequest, ctx context.Context, _ *cache.Cache, _ *policy.Policy, _ *desk) error {
		close(started)
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	cacheWork["gc"] = slow
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	q := &cacheRequest{Do: "gc", Domain: "default"}
	go func() { done <- q.remotely(ctx, o.socket, &desk{out: io.Discard, progress: func(string) {}}) }()
	<-started
	cancel()
	if err := <-done; err == nil {
		t.Error("an interrupted command ends well")
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the work goes on")
	}
	started = make(chan struct{})
	go func() { done <- q.remotely(t.Context(), o.socket, &desk{out: io.Discard, progress: func(string) {}}) }()
	<-started
	stopped, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	_ = o.admin.stop(stopped)
	select {
	case <-ended:
	default:
		t.Error("the socket is closed, and the work goes on")
	}
	if err := <-done; err == nil {
		t.Error("a command that the proxy's end cut short ends well")
	}
	o.admin = nil
	_ = store
}

// Guards against an answer that looks complete and is not.
func TestACutAnswerIsAnError(t *testing.T) {
	var b bytes.Buffer
	w := newFrameWriter(&b, func() error { return nil })
	if _, err := (frameStream{w, frameOut}).Write(bytes.Repeat([]byte("x"), 3*maxFrame+1)); err != nil {
		t.Fatal(err)
	}
	_ = w.say(frameProgress, "half")
	_ = w.say(frameEnd, "")
	whole := b.Bytes()
	n := 0
	if err := readFrames(bytes.NewReader(whole), func(kind frameKind, p []byte) error {
		if kind == frameOut {
			n += len(p)
		}
		return nil
	}); err != nil || n != 3*maxFrame+1 {
		t.Errorf("%d bytes, %v", n, err)
	}
	for cut := 0; cut < len(whole); cut += 1 + cut/2 {
		if err := readFrames(bytes.NewReader(whole[:cut]), func(frameKind, []byte) error { return nil }); !errors.Is(err, errCutShort) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	if err := readFrames(strings.NewReader("e\x00\x00\x00\x03bad"), nil); err == nil || err.Error() != "bad" {
		t.Errorf("an error: %v", err)
	}
}

// Guards against lengths that make a reader take memory without bound, or panic.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("o\x00\x00\x00\x01xz\x00\x00\x00\x00"))
	f.Add([]byte("o\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = readFrames(bytes.NewReader(b), func(frameKind, []byte) error { return nil })
	})
}

// Guards against requests that are not understood and carried out all the same.
func FuzzCacheRequest(f *testing.F) {
	f.Add([]byte("{\"do\":\"rm\",\"domain\":\"default\",\"paths\":[\"/nix/store/x\"]}\n"))
	f.Add([]byte("{\"do\":\"ls\",\"domain\":\"default\"}\nrest"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, _, err := readCacheRequest(bytes.NewReader(b))
		if err != nil {
			return
		}
		if _, known := cacheWork[q.Do]; !known || len(q.paths) != len(q.Paths) || q.Domain == "" {
			t.Errorf("%q is taken: %+v", b, q)
		}
	})
}

// Guards against "1 files".
func TestOneOfSomethingIsNotMany(t *testing.T) {
	a := storeAnswer{Domains: []domainAnswer{{Name: "default", Paths: 1}}, Quarantined: 1, Corrupt: 1, Broken: 1}
	if text := a.text(); regexp.MustCompile(`\b1 (\w+ )?\w+s\b`).MatchString(text) {
		t.Errorf("it reads:\n%s", text)
	}
}

// Guards against an import that keeps what nobody proved: signatures of strangers,
// and paths that only they signed.
func TestImportBelievesTrustedKeysAlone(t *testing.T) {
	key := func(name string) nix.SigningKey {
		secret := name + ":" + base64.StdEncoding.EncodeToString(privateKey(name))
		k, err := nix.ParseSigningKey(secret)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	trusted, public, strange := key("trusted-1"), key("public-1"), key("strange-1")
	pol := &policy.Policy{
		Domains:           []policy.Domain{{Name: "default"}},
		TrustedPublicKeys: []policy.TrustedKey{{PublicKey: trusted.Public()}, {PublicKey: public.Public(), Public: true}},
	}
	info := &nix.PathInfo{Path: storetest.Path("p"), NarHash: nix.HashBytes(nix.SHA256, nil), NarSize: 100}
	signed := func(keys ...nix.SigningKey) *nix.PathInfo {
		c := info.Clone()
		for _, k := range keys {
			c.Sigs = append(c.Sigs, k.Sign(info.Fingerprint()))
		}
		return c
	}
	forged := signed(trusted)
	forged.NarSize++
	for _, c := range []struct {
		name   string
		info   *nix.PathInfo
		vouch  bool
		want   cache.Provenance
		public bool
		sigs   int
		taken  bool
	}{
		{"trusted", signed(trusted, strange), false, cache.Signed, false, 1, true},
		{"public", signed(public, strange), false, cache.Signed, true, 1, true},
		{"strange", signed(strange), false, 0, false, 0, false},
		{"strange, vouched for", signed(strange), true, cache.DomainVouched, false, 0, true},
		{"forged", forged, false, 0, false, 0, false},
		{"unsigned", signed(), false, 0, false, 0, false},
	} {
		q := &cacheRequest{Domain: "default", Vouch: c.vouch}
		proven, grant, err := q.judge(pol)(c.info)
		if (err == nil) != c.taken {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.taken && (grant.Provenance != c.want || len(proven.Sigs) != c.sigs || grant.Public != c.public || grant.Domain != "default") {
			t.Errorf("%s: %+v with %d signatures", c.name, grant, len(proven.Sigs))
		}
	}
}

// Guards against a folder of somebody else, or a proxy that tells of it, that does
// something to the terminal of the admin.
func TestWhatPeersNameOnlyPrints(t *testing.T) {
	o := openOffice(t, "", func(context.Context, io.Writer, []string, proxy.Look) error {
		return errors.New("a\x1b[2Jb\u202e\nhint: c")
	})
	var out, errs bytes.Buffer
	if status := run([]string{"status", "--socket", o.socket}, &out, &errs); status != exitFailure || errs.String() != "nixbastion: a?[2Jb?\nhint: c\n" {
		t.Errorf("status %d, %q", status, errs.String())
	}
	_, text := refusalAnswers([]cache.Refusal{{Path: "/tmp/\x1b[2J.narinfo", Reason: "x"}})
	if text != "left out /tmp/?[2J.narinfo: x\n" {
		t.Errorf("a file is left out as %q", text)
	}
	var answer bytes.Buffer
	q := &cacheRequest{JSON: true}
	if err := q.answer(&desk{out: &answer}, refusalAnswer{Path: "\u009b\u202e\x1b", Reason: "<&>"}, ""); err != nil || strings.ContainsAny(answer.String(), "\u009b\u202e\x1b") || !strings.Contains(answer.String(), `"<&>"`) {
		t.Errorf("as JSON it is %q, %v", answer.String(), err)
	}
}

// Guards against lists of the store that nobody reads, which keep the admin from every
// answer.
func TestListsOfTheStoreCountAsLong(t *testing.T) {
	o := openOffice(t, "", repeat)
	for range adminLong {
		o.admin.long <- struct{}{}
	}
	q := &cacheRequest{Do: "ls", Domain: "default"}
	if err := q.remotely(t.Context(), o.socket, &desk{out: io.Discard}); err == nil || !strings.Contains(err.Error(), "end one of them") {
		t.Errorf("one more: %v", err)
	}
	for range adminLong {
		<-o.admin.long
	}
}
