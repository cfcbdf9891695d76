package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"nixbastion/internal/testbed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	start := run
	args := os.Args[1:]
	if len(args) > 0 && args[0] == discard {
		start, args = func(ctx context.Context, args []string, _, _ io.Writer) error { return runDiscard(ctx, args) }, args[1:]
	}
	if len(args) > 0 && args[0] == fleetWord {
		start, args = runFleet, args[1:]
	}
	if err := start(ctx, args, os.Stdout, os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	rounds  int
	only    []string // names of benches; nil is all
	client  string   // a version of Nix; "" is the usual choice
	builder string   // the version of Nix that builder and hub run
	columns []string // names of ways; nil is all
	disk    bool
	line    int           // MB/s of the client's line; 0 is no limit
	time    time.Duration // 0 is no limit
}

func parseOptions(args []string, help io.Writer) (options, error) {
	var o options
	var only, columns string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(help)
	f.IntVar(&o.rounds, "rounds", 5, "how often each way runs each bench")
	f.StringVar(&only, "only", "", "benches to run, separated by commas: "+strings.Join(benchNames(), ", "))
	f.StringVar(&o.client, "client", "", "run all benches with this version of Nix as client (2.34.8, 2.26.3 or 2.8.0);\n"+
		"if not set, all with 2.34.8 and those of connections and builds with 2.8.0 too")
	f.StringVar(&o.builder, "builder", testbed.Nix234, "let builder and hub run this version of Nix (2.34.8, 2.26.3 or 2.8.0), with the OpenSSH of its time")
	f.StringVar(&columns, "columns", "", "ways to measure, separated by commas: "+strings.Join(wayNames, ", "))
	f.DurationVar(&o.time, "time", 20*time.Minute, "begin no round that would make it last much longer; 0 is no limit")
	f.IntVar(&o.line, "line", 0, "let each client reach the others over a line of so many MB/s (10^6 bytes); 0 is no limit")
	f.BoolVar(&o.disk, "disk", false, "keep all stores on disk instead of in memory")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var err error
	if o.only, err = words("bench", only, benchNames()); err != nil {
		return o, err
	}
	if o.columns, err = words("column", columns, wayNames); err != nil {
		return o, err
	}
	if err := knownVersion("builder", o.builder); err != nil {
		return o, err
	}
	if o.client != "" {
		if err := knownVersion("client", o.client); err != nil {
			return o, err
		}
	}
	if o.line < 0 {
		return o, fmt.Errorf("-line %d is less than nothing", o.line)
	}
	if o.rounds < 1 {
		return o, fmt.Errorf("-rounds %d is less than one", o.rounds)
	}
	return o, nil
}

func knownVersion(of, version string) error {
	if !slices.Contains(nixVersions, version) {
		return fmt.Errorf("no %s has version %q; there are %s", of, version, strings.Join(nixVersions, ", "))
	}
	return nil
}

func run(ctx context.Context, args []string, out, progress io.Writer) (err error) {
	o, err := parseOptions(args, progress)
	if err != nil {
		return err
	}
	began := time.Now()
	log := slog.New(slog.NewTextHandler(progress, nil))
	l, err := openLab(ctx, o, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	about, err := describe(ctx, l)
	if err != nil {
		return err
	}
	if o.line > 0 {
		about = append(about, fmt.Sprintf("clients are on a line of %d MB/s", o.line))
	}
	results, measureErr := measureAll(ctx, l, o, log)
	r := report{about: about, took: time.Since(began), results: results, columns: o.columns}
	if _, err := io.WriteString(out, r.String()); err != nil {
		return err
	}
	return errors.Join(measureErr, r.failure())
}
