package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"nixbastion/cache"
	"nixbastion/policy"
	"nixbastion/proxy"
)

// cacheCmd is what the admin does with the store: through the socket of a running
// proxy, or on the store of a stopped one.
type cacheCmd struct {
	Ls     cacheLsCmd     `cmd:"" help:"List paths."`
	Info   cacheInfoCmd   `cmd:"" help:"Print what the store holds, or what is known of paths."`
	Verify cacheVerifyCmd `cmd:"" help:"Read paths again, or the whole store, and drop what is damaged."`
	GC     cacheGCCmd     `cmd:"" name:"gc" help:"Evict what was used longest ago."`
	Pin    cachePinCmd    `cmd:"" help:"Keep paths, with all that they refer to, from eviction for good."`
	Unpin  cacheUnpinCmd  `cmd:"" help:"Let pinned paths go."`
	Rm     cacheRmCmd     `cmd:"" help:"Remove paths."`
	Sign   cacheSignCmd   `cmd:"" help:"Give all paths of the domain the signatures of its keys that they lack."`
	Import cacheImportCmd `cmd:"" help:"Take the paths of a Nix binary cache in a folder, uncompressed."`
	Export cacheExportCmd `cmd:"" help:"Write paths, with all that they refer to, as a Nix binary cache."`
}

// cacheFlags are those of all cache commands.
type cacheFlags struct {
	askFlags
	Domain string `help:"The domain whose paths are meant." default:"default"`
}

// pathArgs are store paths.
type pathArgs struct {
	Paths []string `arg:"" help:"Store paths." name:"path"`
}

type optionalPathArgs struct {
	Paths []string `arg:"" optional:"" help:"Store paths." name:"path"`
}

type cacheLsCmd struct {
	cacheFlags
	All bool `help:"Of all domains."`
}

func (c cacheLsCmd) Run(out io.Writer) error {
	return c.do(out, cacheRequest{Do: "ls", All: c.All}, nil, nil)
}

type cacheInfoCmd struct {
	cacheFlags
	optionalPathArgs
}

func (c cacheInfoCmd) Run(out io.Writer) error {
	return c.do(out, cacheRequest{Do: "info", Paths: c.Paths}, nil, nil)
}

type cacheVerifyCmd struct {
	cacheFlags
	optionalPathArgs
}

func (c cacheVerifyCmd) Run(out io.Writer) error {
	return c.do(out, cacheRequest{Do: "verify", Paths: c.Paths}, nil, nil)
}

type cacheGCCmd struct {
	cacheFlags
	Size string `help:"How much may stay, as 20GiB (default: the low watermark, 85% of what is not for uploads alone)."`
}

func (c cacheGCCmd) Run(out io.Writer) error {
	request := cacheRequest{Do: "gc"}
	if c.Size != "" {
		bytes, err := policy.ParseSize(c.Size)
		if err != nil {
			return mistake(err)
		}
		request.Size = &bytes
	}
	return c.do(out, request, nil, nil)
}

type cachePinCmd struct {
	cacheFlags
	pathArgs
}

func (c cachePinCmd) Run(out io.Writer) error {
	return c.do(out, cacheRequest{Do: "pin", Paths: c.Paths}, nil, nil)
}

type cacheUnpinCmd struct {
	cacheFlags
	pathArgs
}

func (c cacheUnpinCmd) Run(out io.Writer) error {
	return c.do(out, cacheRequest{Do: "unpin", Paths: c.Paths}, nil, nil)
}

type cacheRmCmd struct {
	cacheFlags
	pathArgs
	Referrers bool `help:"Take along what refers to them."`
}

func (c cacheRmCmd) Run(out io.Writer) error {
	return c.do(out, cacheRequest{Do: "rm", Paths: c.Paths, Referrers: c.Referrers}, nil, nil)
}

type cacheSignCmd struct{ cacheFlags }

func (c cacheSignCmd) Run(out io.Writer) error {
	return c.do(out, cacheRequest{Do: "sign"}, nil, nil)
}

type cacheImportCmd struct {
	cacheFlags
	From  string `arg:"" help:"The folder, also as file://FOLDER."`
	Vouch bool   `help:"Vouch for paths that neither a trusted signature nor a content address proves: they are then as good as what the domain built."`
}

func (c cacheImportCmd) Run(out io.Writer) error {
	source, err := cache.NewFolderSource(strings.TrimPrefix(c.From, "file://"))
	if err != nil {
		return fmt.Errorf("import %s: %w", c.From, err)
	}
	err = c.do(out, cacheRequest{Do: "import", Vouch: c.Vouch}, source, nil)
	_, left := refusalAnswers(source.Refused)
	fmt.Fprint(os.Stderr, left)
	if n := len(source.Refused); err == nil && n > 0 {
		err = fmt.Errorf("%s could not be taken", policy.CountOf(n, "file"))
	}
	return errors.Join(err, source.Close())
}

type cacheExportCmd struct {
	cacheFlags
	To string `arg:"" help:"The folder, made if it is missing."`
	optionalPathArgs
}

func (c cacheExportCmd) Run(out io.Writer) error {
	sink, err := cache.NewFolderSink(strings.TrimPrefix(c.To, "file://"))
	if err != nil {
		return fmt.Errorf("export to %s: %w", c.To, err)
	}
	err = c.do(out, cacheRequest{Do: "export", Paths: c.Paths}, nil, sink)
	return errors.Join(err, sink.Close())
}

// mistake prints what is wrong with the command line.
func mistake(err error) error {
	fmt.Fprintln(os.Stderr, "nixbastion:", proxy.Printable(err.Error()))
	return errMistakes
}

// do has a request carried out by the proxy that runs, or in its place. source and
// sink are the folder of import and export, nil for other requests.
func (f cacheFlags) do(out io.Writer, q cacheRequest, source *cache.FolderSource, sink *cache.FolderSink) error {
	q.Domain, q.JSON = f.Domain, f.JSON
	if err := q.check(); err != nil {
		return mistake(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	socket, pol, err := f.place()
	if err != nil {
		return err
	}
	d := &desk{out: out, progress: func(line string) { fmt.Fprintln(os.Stderr, line) }}
	if source != nil {
		d.source = source
	}
	if sink != nil {
		d.sink = sink
	}
	err = q.remotely(ctx, socket, d)
	if errors.Is(err, errNobody) {
		err = q.alone(ctx, socket, pol, d)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s was interrupted", q.Do)
	}
	return err
}

// place is where the proxy answers, and its policy if that was named.
func (f askFlags) place() (socket string, pol *policy.Policy, err error) {
	if f.Config == "" {
		socket, err = f.socket()
		return socket, nil, err
	}
	if pol, err = policy.Load(f.Config); err != nil {
		return "", nil, reportMistakes(err)
	}
	return pol.Admin.Socket, pol, nil
}
