// Command nixbastion is the one host that Nix clients list: it answers their
// remote-store protocol over SSH and has each derivation built on the builder
// that suits it. Subcommands stand in one file each.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"nixbastion/proxy"
)

// version is set by the linker in releases.
var version = "0.1.0-dev"

type cli struct {
	Serve    serveCmd    `cmd:"" help:"Serve Nix clients as the policy file says."`
	Check    checkCmd    `cmd:"" help:"Check a policy file and print what it means."`
	Diff     diffCmd     `cmd:"" help:"Say in words what another policy file changes: who gains and who loses what."`
	Schema   schemaCmd   `cmd:"" help:"Print the JSON Schema of policy files, for editors."`
	Status   statusCmd   `cmd:"" help:"Print builders, slots and queue of the running proxy."`
	Queue    queueCmd    `cmd:"" help:"Print what waits for a builder, in order, and why."`
	Builds   buildsCmd   `cmd:"" help:"Print what is being built, and how the last builds ended."`
	Log      logCmd      `cmd:"" help:"Print the log of a build that runs or has ended."`
	Kill     killCmd     `cmd:"" help:"End a build that waits or runs, for all its clients."`
	Who      whoCmd      `cmd:"" help:"Print who is connected, and what they do."`
	Why      whyCmd      `cmd:"" help:"Print where the running proxy would build something, and why."`
	Reload   reloadCmd   `cmd:"" help:"Have the running proxy load its policy file again, or say what is wrong with it."`
	Explain  explainCmd  `cmd:"" help:"Print whether a key may have something built, where it would go, and why not elsewhere."`
	Drain    drainCmd    `cmd:"" help:"Keep new builds from a builder until undrain, and let those that run there end."`
	Upgrade  upgradeCmd  `cmd:"" help:"Start the program anew, to take the place of the running proxy, which ends its builds."`
	Undrain  undrainCmd  `cmd:"" help:"Let a drained builder have builds again."`
	Audit    auditCmd    `cmd:"" help:"Verify the audit log, and search in it."`
	Key      keyCmd      `cmd:"" help:"Make keys that sign store paths, and show their public halves."`
	Cache    cacheCmd    `cmd:"" help:"Look at the store of the proxy, running or not, and change it."`
	Simulate simulateCmd `cmd:"" help:"Print how long builds would take if they were placed in this and in other ways."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

type versionCmd struct{}

func (versionCmd) Run(out io.Writer) error {
	_, err := fmt.Fprintln(out, "nixbastion", version)
	return err
}

// The exit statuses of the command.
const (
	exitFailure   = 1
	exitDifferent = 1 // of diff
	// exitMistakes says that the command line or the policy file has mistakes: EX_CONFIG
	// of sysexits.h. It is not 2, with which a Go program ends that crashes, since systemd
	// starts a proxy anew that has crashed.
	exitMistakes = 78
)

// errMistakes says that the mistakes were printed already.
var errMistakes = errors.New("the policy file has mistakes")

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) (status int) {
	var commands cli
	parser, err := kong.New(&commands,
		kong.Name("nixbastion"),
		kong.Description("One SSH host for all Nix builders."),
		kong.UsageOnError(),
		kong.Writers(stdout, stderr),
		kong.BindTo(stdout, (*io.Writer)(nil)),
		kong.Exit(func(int) { panic(exitEarly{}) }),
	)
	if err != nil {
		fmt.Fprintln(stderr, "nixbastion:", err)
		return exitFailure
	}
	defer func() {
		if r := recover(); r != nil {
			if _, help := r.(exitEarly); !help {
				panic(r)
			}
			status = 0
		}
	}()
	ctx, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "nixbastion: %v\nhint: nixbastion --help lists the commands\n", err)
		return exitMistakes
	}
	switch err := ctx.Run(); {
	case err == nil:
		return 0
	case errors.Is(err, errMistakes):
		return exitMistakes
	case errors.Is(err, errDifferent):
		return exitDifferent
	default:
		fmt.Fprintln(stderr, "nixbastion:", proxy.Printable(err.Error())) // it may have names of files and texts of peers
		return exitFailure
	}
}

// exitEarly is what kong's wish to exit, after --help, becomes.
type exitEarly struct{}
