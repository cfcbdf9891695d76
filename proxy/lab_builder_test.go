package proxy

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
)

// labBuilder is a builder of a lab. Its fields are set before newLab.
type labBuilder struct {
	name    string
	maxJobs int  // 0 is 1
	strict  bool // builder_content: match
	mute    bool // never says which paths are valid, or how one is called
	// protocol is what the policy says; "" is ssh-ng, which is all that it speaks.
	protocol string
	// domain is whose it is; "" is default.
	domain string
	// systems are those of the policy, with commas between; "" is x86_64-linux.
	systems string
	// settings are more of its policy: ", speed_factor: 2".
	settings string
	trust    nix.Trust
	nix      string // version; "" is 2.34.8
	// build makes the outputs of a derivation; nil writes who built it.
	build func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error)
	// onValid is called when valid paths were asked for; nil is nothing.
	onValid func()
	// beforeNar is called before a NAR goes to the proxy; nil is nothing.
	beforeNar func()

	// onInfo and onNar are called before a path's info or NAR is given, and may wait.
	onInfo, onNar func(ctx context.Context, path nix.StorePath)
	// onFed is called with each piece of a NAR that comes, and may wait.
	onFed func(path nix.StorePath)
	// infoError is the answer to questions for path infos instead.
	infoError error
	// named answers which path has a hash part; nil does so from files.
	named func(hashPart string) (nix.StorePath, error)

	labFaults

	hostKey  ssh.Signer
	listener net.Listener

	mu    sync.Mutex // guards what follows
	conns map[net.Conn]bool
	dials int // connections so far
	files map[nix.StorePath]labFile
	drvs  []string        // what was built, in order of begin
	modes []nix.BuildMode // of drvs
	ended int             // builds that ended, in whatever way
	fed   []string        // names of paths that were sent here
	comes map[string]int  // bytes that came of each, by name
	feeds int             // uploads under way
	asked []string        // names of paths whose infos were asked for
	gave  []string        // names of paths that were fetched from here
	roots []string        // names of temporary roots
	execs []string        // commands that were run
}

func newLabBuilder(name string) *labBuilder {
	return &labBuilder{name: name, trust: nix.Trusted, conns: map[net.Conn]bool{}, files: map[nix.StorePath]labFile{}, comes: map[string]int{}}
}

func (b *labBuilder) system() string { return cmp.Or(b.systems, "x86_64-linux") }

func (b *labBuilder) policyProtocol() string { return cmp.Or(b.protocol, "ssh-ng") }

func (b *labBuilder) policyDomain() string { return cmp.Or(b.domain, "default") }

func (b *labBuilder) content() string {
	if b.strict {
		return "match"
	}
	return "accept"
}

func (b *labBuilder) start(t testing.TB) {
	t.Helper()
	b.hostKey = testKey("host of " + b.name)
	var err error
	if b.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := b.listener.Accept()
			if err != nil {
				return
			}
			b.track(conn, true)
			serving.Go(func() {
				defer b.track(conn, false)
				defer conn.Close()
				b.serve(&gatedConn{conn, &b.stopped}, &serving)
			})
		}
	})
	t.Cleanup(func() {
		b.listener.Close()
		b.wake()
		b.cut()
		serving.Wait()
	})
}

func (b *labBuilder) track(conn net.Conn, open bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if open {
		b.conns[conn] = true
		b.dials++
	} else {
		delete(b.conns, conn)
	}
}

// cut breaks all connections, as a reboot does.
func (b *labBuilder) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for conn := range b.conns {
		conn.Close()
	}
}

// die cuts and never comes back.
func (b *labBuilder) die() {
	b.listener.Close()
	b.cut()
}

func (b *labBuilder) serve(conn net.Conn, serving *sync.WaitGroup) {
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if bytes.Equal(key.Marshal(), testKey("proxy").PublicKey().Marshal()) {
			return nil, nil
		}
		return nil, errors.New("unknown key")
	}}
	config.AddHostKey(b.hostKey)
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	serving.Go(func() { ssh.DiscardRequests(requests) })
	for newChannel := range channels {
		ch, requests, err := newChannel.Accept()
		if err != nil {
			return
		}
		serving.Go(func() {
			defer ch.Close()
			for req := range requests {
				req.Reply(req.Type == "exec", nil)
				if req.Type == "exec" {
					b.mu.Lock()
					b.execs = append(b.execs, string(req.Payload[4:]))
					b.mu.Unlock()
					serving.Go(func() { ssh.DiscardRequests(requests) })
					worker.Serve(context.Background(), &spoiledChannel{ch, &b.garbage}, &labStore{b: b},
						worker.ServeOptions{DaemonVersion: cmp.Or(b.nix, "2.34.8"), Trust: b.trust})
					ch.SendRequest("exit-status", false, []byte{0, 0, 0, 0})
					return
				}
			}
		})
	}
}

func (b *labBuilder) put(f labFile) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.files[f.info.Path] = f
}

// drop collects a path as garbage.
func (b *labBuilder) drop(path nix.StorePath) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.files, path)
}

// askedFor, given and rooted are the paths whose infos and NARs were asked for, and
// those that sessions keep here.
func (b *labBuilder) askedFor() []string { return b.copyOf(&b.asked) }
func (b *labBuilder) given() []string    { return b.copyOf(&b.gave) }
func (b *labBuilder) rooted() []string   { return b.copyOf(&b.roots) }

// executed are the commands that were run here.
func (b *labBuilder) executed() []string { return b.copyOf(&b.execs) }

func (b *labBuilder) copyOf(names *[]string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string{}, *names...)
}

func (b *labBuilder) note(names *[]string, paths ...nix.StorePath) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, path := range paths {
		*names = append(*names, path.Name())
	}
}

func (b *labBuilder) file(path nix.StorePath) (labFile, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, ok := b.files[path]
	return f, ok
}

func (b *labBuilder) underWay(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.feeds += n
}

// uploads is how many uploads are under way to here, and came how many bytes of a
// path came so far.
func (b *labBuilder) uploads() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.feeds
}

func (b *labBuilder) came(path nix.StorePath) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.comes[path.Name()]
}

// comingReader counts what comes of a path.
type comingReader struct {
	r    io.Reader
	b    *labBuilder
	path nix.StorePath
}

func (c comingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.b.mu.Lock()
	c.b.comes[c.path.Name()] += n
	c.b.mu.Unlock()
	if c.b.onFed != nil {
		c.b.onFed(c.path)
	}
	return n, err
}

// built are the names of the derivations that came here.
func (b *labBuilder) built() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string{}, b.drvs...)
}

// builtIn are the modes in which derivations came here.
func (b *labBuilder) builtIn() []nix.BuildMode {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]nix.BuildMode{}, b.modes...)
}

func (b *labBuilder) sent() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string{}, b.fed...)
}

func (b *labBuilder) endedBuilds() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended
}

// makeOutputs is a build that works.
func makeOutputs(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
	result := &nix.BuildResult{Status: nix.StatusBuilt}
	for _, o := range drv.Outputs {
		b.put(newLabFile(o.Path, "built by "+b.name))
		result.Outputs = append(result.Outputs, nix.BuiltOutput{Name: o.Name, Path: o.Path})
	}
	return result, nil
}

// labStore is a builder's store as one daemon session sees it.
type labStore struct {
	nix.Store // what is not below is not used
	b         *labBuilder
}

func (s *labStore) AddTempRoots(_ context.Context, paths []nix.StorePath) error {
	s.b.note(&s.b.roots, paths...)
	return nil
}

func (s *labStore) QueryAllValidPaths(context.Context) ([]nix.StorePath, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return slices.SortedFunc(maps.Keys(s.b.files), nix.StorePath.Compare), nil
}

// QueryReferrers and QueryValidDerivers are there for the interface alone.
func (s *labStore) QueryReferrers(context.Context, nix.StorePath) ([]nix.StorePath, error) {
	return nil, nil
}

func (s *labStore) QueryValidDerivers(context.Context, nix.StorePath) ([]nix.StorePath, error) {
	return nil, nil
}

func (s *labStore) QueryPathFromHashPart(ctx context.Context, hashPart string) (nix.StorePath, error) {
	if s.b.mute {
		<-ctx.Done()
	}
	if s.b.named != nil {
		return s.b.named(hashPart)
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	for path := range s.b.files {
		if path.HashPart() == hashPart {
			s.b.asked = append(s.b.asked, hashPart)
			return path, nil
		}
	}
	return nix.StorePath{}, nix.ErrNotFound
}

func (s *labStore) QueryValidPaths(ctx context.Context, paths []nix.StorePath, _ bool) ([]nix.StorePath, error) {
	if s.b.mute {
		<-ctx.Done()
	}
	if s.b.onValid != nil {
		s.b.onValid()
	}
	var valid []nix.StorePath
	for _, path := range paths {
		if _, ok := s.b.file(path); ok {
			valid = append(valid, path)
		}
	}
	return valid, nil
}

func (s *labStore) QueryPathInfo(ctx context.Context, path nix.StorePath) (*nix.PathInfo, error) {
	s.b.note(&s.b.asked, path)
	if s.b.onInfo != nil {
		s.b.onInfo(ctx, path)
	}
	if s.b.infoError != nil {
		return nil, s.b.infoError
	}
	f, ok := s.b.file(path)
	if !ok {
		return nil, nix.ErrNotFound
	}
	return f.info, nil
}

func (s *labStore) NarFromPath(ctx context.Context, path nix.StorePath) (io.ReadCloser, error) {
	s.b.note(&s.b.gave, path)
	if s.b.onNar != nil {
		s.b.onNar(ctx, path)
	}
	f, ok := s.b.file(path)
	if !ok {
		return nil, nix.ErrNotFound
	}
	if s.b.beforeNar != nil {
		s.b.beforeNar()
	}
	return io.NopCloser(bytes.NewReader(f.nar)), nil
}

func (s *labStore) AddMultipleToStore(_ context.Context, _ nix.Logger, src nix.PathSource, _ nix.AddOptions) error {
	s.b.underWay(1)
	defer s.b.underWay(-1)
	for {
		info, r, err := src.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		content, err := io.ReadAll(comingReader{r, s.b, info.Path})
		if err != nil {
			return err
		}
		s.b.put(labFile{info: info, nar: content})
		s.b.mu.Lock()
		s.b.fed = append(s.b.fed, info.Path.Name())
		s.b.mu.Unlock()
	}
}

func (s *labStore) BuildDerivation(ctx context.Context, log nix.Logger, drvPath nix.StorePath, drv *nix.BasicDerivation, mode nix.BuildMode) (*nix.BuildResult, error) {
	s.b.mu.Lock()
	s.b.drvs = append(s.b.drvs, drvPath.DrvName())
	s.b.modes = append(s.b.modes, mode)
	s.b.mu.Unlock()
	defer func() {
		s.b.mu.Lock()
		defer s.b.mu.Unlock()
		s.b.ended++
	}()
	build := s.b.build
	switch {
	case build != nil:
	case mode == nix.BuildCheck:
		build = checkOutputs
	default:
		build = makeOutputs
	}
	return build(ctx, s.b, log, drv)
}

// checkOutputs is a build that compares, as a daemon does it.
func checkOutputs(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
	for _, o := range drv.Outputs {
		if _, ok := b.file(o.Path); !ok {
			return nil, nix.Refuse("some outputs of '%s' are not valid, so checking is not possible", drv.Env[0].Value)
		}
	}
	return &nix.BuildResult{Status: nix.StatusBuilt}, nil
}
