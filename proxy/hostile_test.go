package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

// hostileArchive is a directory with one entry of that name, which no archive may have.
func hostileArchive(name string) []byte {
	var b bytes.Buffer
	token := func(s string) {
		b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(s))))
		b.WriteString(s)
		b.Write(make([]byte, (8-len(s)%8)%8))
	}
	for _, s := range []string{"nix-archive-1", "(", "type", "directory", "entry", "(", "name", name, "node",
		"(", "type", "regular", "contents", "owned", ")", ")", ")"} {
		token(s)
	}
	return b.Bytes()
}

// hostileUploads are files that must not become paths, with what their sender reads.
func hostileUploads() map[string]struct {
	file labFile
	want string
} {
	at := func(change func(*labFile)) labFile {
		f := newLabFile(labPath("victim"), "some text")
		change(&f)
		return f
	}
	archive := func(content []byte) labFile {
		return at(func(f *labFile) {
			f.nar = content
			f.info.NarSize, f.info.NarHash = uint64(len(content)), nix.HashBytes(nix.SHA256, content)
		})
	}
	whole := newLabFile(labPath("victim"), "some text").nar
	padded := bytes.Clone(whole)
	padded[bytes.Index(padded, []byte("some text"))+len("some text")] = 1
	ca, err := nix.ParseContentAddress("fixed:r:sha256:" + nix.HashBytes(nix.SHA256, whole).Nix32())
	if err != nil {
		panic(err)
	}
	return map[string]struct {
		file labFile
		want string
	}{
		"wrong hash":      {at(func(f *labFile) { f.info.NarHash = nix.HashBytes(nix.SHA256, []byte("other")) }), "hash mismatch"},
		"size too small":  {at(func(f *labFile) { f.info.NarSize -= 8; f.nar = f.nar[:len(f.nar)-8] }), ""},
		"size too large":  {at(func(f *labFile) { f.info.NarSize += 8; f.nar = append(f.nar, make([]byte, 8)...) }), ""},
		"no archive":      {archive([]byte(strings.Repeat("x", 128))), ""},
		"cut archive":     {archive(whole[:len(whole)-16]), ""},
		"padding":         {archive(padded), "padding"},
		"entry ..":        {archive(hostileArchive("..")), ".."},
		"entry a/b":       {archive(hostileArchive("../../etc/passwd")), "'/' in a name"},
		"entry NUL":       {archive(hostileArchive("a\x00b")), ""},
		"false ca":        {at(func(f *labFile) { f.info.CA = ca }), "content-addressed"},
		"absent referent": {at(func(f *labFile) { f.info.References = []nix.StorePath{labPath("absent")} }), "not valid"},
	}
}

// Guards against uploads that lie: they are refused with a sentence, nothing of
// them is published, no builder hears of it, and others do not notice.
func TestHostileUploadsPublishNothing(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		<-release
		return makeOutputs(ctx, b, log, drv)
	}
	l := newLab(t, b)
	bystander := l.client("alice")
	done := make(chan error, 1)
	go func() {
		result, err := bystander.build(t.Context(), nix.Discard, "hello")
		if err == nil && !result.Status.Success() {
			err = errors.New(result.ErrorMsg)
		}
		done <- err
	}()
	eventually(t, "the bystander's build runs", func() bool { return len(b.built()) == 1 })
	for name, c := range hostileUploads() {
		err := l.client("bob").upload(t.Context(), c.file)
		var remote *nix.RemoteError
		if !errors.As(err, &remote) || !strings.Contains(remote.Message, c.want) {
			t.Errorf("%s: the client reads %v", name, err)
		}
		if _, err := l.client("alice").QueryPathInfo(t.Context(), labPath("victim")); !errors.Is(err, nix.ErrNotFound) {
			t.Errorf("%s: the path is there: %v", name, err)
		}
	}
	if got := b.sent(); len(got) != 0 {
		t.Errorf("the builder was sent %q", got)
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("the bystander's build: %v", err)
	}
	good := newLabFile(labPath("victim"), "the true text")
	if err := l.client("alice").upload(t.Context(), good); err != nil {
		t.Errorf("the true upload afterwards: %v", err)
	}
	if got, err := l.client("bob").read(t.Context(), labPath("victim")); got != "the true text" || err != nil {
		t.Errorf("the path holds %q, %v", got, err)
	}
}

// Guards against an upload that is given up in the middle and leaves something.
func TestUploadCutOffPublishesNothing(t *testing.T) {
	l := newLab(t)
	f := newLabFile(labPath("victim"), strings.Repeat("x", 1<<20))
	bob := l.client("bob")
	sent := 0
	err := bob.AddMultipleToStore(t.Context(), nix.Discard, nix.PathSource{Count: 1, Next: func() (*nix.PathInfo, io.Reader, error) {
		if sent++; sent > 1 {
			return nil, nil, io.EOF
		}
		return f.info, io.MultiReader(bytes.NewReader(f.nar[:1<<19]), hangingUp{bob}), nil
	}}, nix.AddOptions{DontCheckSigs: true})
	if err == nil {
		t.Error("the upload went well")
	}
	if _, err := l.client("alice").QueryPathInfo(t.Context(), labPath("victim")); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("the path is there: %v", err)
	}
}

// hangingUp closes the client's connection where it is read.
type hangingUp struct{ c *labClient }

func (h hangingUp) Read([]byte) (int, error) {
	h.c.hangUp()
	return 0, errors.New("hung up")
}

// Guards against a declared size that reserves what no disk has.
func TestUploadLargerThanTheLimitIsRefusedUnread(t *testing.T) {
	l := newLab(t)
	s := l.proxy.newSession(l.principal("alice"), l.proxy.log)
	defer s.close()
	f := newLabFile(labPath("victim"), "x")
	f.info.NarSize = 1 << 62
	err := s.AddMultipleToStore(t.Context(), nix.Discard, nix.PathSource{Count: 1, Next: func() (*nix.PathInfo, io.Reader, error) {
		return f.info, unread{t}, nil
	}}, nix.AddOptions{})
	if err == nil || !strings.Contains(err.Error(), "limits.nar_size") {
		t.Errorf("upload: %v", err)
	}
}

// unread must not be read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the upload was read")
	return 0, io.EOF
}
