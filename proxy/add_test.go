package proxy

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
)

func method(t *testing.T, text string) nix.ContentAddressMethod {
	t.Helper()
	m, err := nix.ParseContentAddressMethod(text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Guards against paths that do not follow from their content as Nix computes
// them; the expected ones were made by nix-store --add-fixed and builtins.toFile.
func TestAddToStoreNamesContentAsNixDoes(t *testing.T) {
	l := newLab(t)
	alice := l.client("alice")
	var archive bytes.Buffer
	if err := nar.WriteRegular(&archive, false, 6, strings.NewReader("hello\n")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ method, dump, want string }{
		{"text:sha256", "hello\n", "/nix/store/ybf7by4xvcgjhwilsg87rqz9di79bify-greeting"},
		{"fixed:sha256", "hello\n", "/nix/store/9ai0f5kyg5z0fb3szn6ib04v8mx098kw-greeting"},
		{"fixed:sha1", "hello\n", "/nix/store/64sx31zh1nsmqibcx5aip6jijl0kp72c-greeting"},
		{"fixed:r:sha256", archive.String(), "/nix/store/5nfjhql2p2cvh7d7sz3cxy0wzgr2k6nf-greeting"},
		{"fixed:r:sha512", archive.String(), "/nix/store/2d7hjzkx1fa7amncyz03gbvs8l1pfpp9-greeting"},
	} {
		info, err := alice.AddToStore(t.Context(), nix.Discard, nix.AddToStoreRequest{Name: "greeting", Method: method(t, c.method)}, strings.NewReader(c.dump))
		if err != nil {
			t.Errorf("%s: %v", c.method, err)
			continue
		}
		if info.Path.String() != c.want {
			t.Errorf("%s: got %s, want %s", c.method, info.Path, c.want)
		}
		if got, err := l.client("bob").read(t.Context(), info.Path); got != "hello\n" || err != nil {
			t.Errorf("%s: the path holds %q, %v", c.method, got, err)
		}
	}
}

// Guards against a session that is out of step, or a path that is half there,
// after content that cannot be stored.
func TestAddToStoreRefusesWithASentence(t *testing.T) {
	l := newLab(t)
	alice := l.client("alice")
	flat := method(t, "fixed:sha256")
	for name, c := range map[string]struct {
		req  nix.AddToStoreRequest
		dump string
		want string
	}{
		"git":        {nix.AddToStoreRequest{Name: "x", Method: method(t, "fixed:git:sha1")}, "x", "git trees"},
		"references": {nix.AddToStoreRequest{Name: "x", Method: flat, References: []nix.StorePath{labPath("y")}}, "x", "references"},
		"unknown":    {nix.AddToStoreRequest{Name: "x", Method: method(t, "text:sha256"), References: []nix.StorePath{labPath("y")}}, "x", "not valid"},
		"no archive": {nix.AddToStoreRequest{Name: "x", Method: method(t, "fixed:r:sha256")}, "this is no archive", "archive"},
	} {
		var remote *nix.RemoteError
		_, err := alice.AddToStore(t.Context(), nix.Discard, c.req, strings.NewReader(c.dump))
		if !errors.As(err, &remote) || !strings.Contains(remote.Message, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := alice.QueryPathInfo(t.Context(), labPath("y")); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("the session is out of step: %v", err)
	}
}

// Guards against uploads of unknown length that fill the disk.
func TestAddToStoreStopsAtTheSizeLimit(t *testing.T) {
	s := &sizeLimit{r: strings.NewReader("12345"), name: "x", limit: 4}
	if _, err := s.Read(make([]byte, 5)); err == nil || !strings.Contains(err.Error(), "limits.nar_size") {
		t.Errorf("read: %v", err)
	}
	s = &sizeLimit{r: strings.NewReader("1234"), name: "x", limit: 4}
	if n, err := s.Read(make([]byte, 5)); n != 4 || err != nil {
		t.Errorf("read = %d, %v", n, err)
	}
}

// Guards against nix-build --repair that ends at its first .drv file, and against
// an upload that replaces what is valid.
func TestOnlyContentThatNamesItselfMayComeToRepair(t *testing.T) {
	l := newLab(t)
	alice := l.client("alice")
	req := nix.AddToStoreRequest{Name: "x.drv", Method: method(t, "text:sha256"), Repair: true}
	for range 2 {
		info, err := alice.AddToStore(t.Context(), nix.Discard, req, strings.NewReader("Derive"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := alice.read(t.Context(), info.Path); got != "Derive" || err != nil {
			t.Errorf("the path holds %q, %v", got, err)
		}
	}
	err := alice.uploadWith(t.Context(), nix.AddOptions{Repair: true, DontCheckSigs: true}, newLabFile(labPath("y"), "y"))
	wantRefusal(t, "an upload", err, "does not replace")
}
