package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"nixbastion/policy"
)

type checkCmd struct {
	File    string `arg:"" help:"The policy file." type:"path"`
	Host    string `help:"Name under which clients reach the proxy, for the lines to paste." default:"HOST"`
	Connect bool   `help:"Connect to every builder, compare it with the policy, and say what is wrong and how to mend it." xor:"what"`
	JSON    bool   `help:"With --connect: say of the builders alone, for programs." name:"json"`
	Print   bool   `help:"Print the policy in effect as YAML instead: with what is included, with defaults, and where each value is from." xor:"what"`
}

// Run prints every mistake of the file, or what the policy means, and with
// --connect how its builders are; with --print the policy itself.
func (c checkCmd) Run(out io.Writer) error {
	switch {
	case c.JSON && !c.Connect:
		return errors.New("--json goes with --connect\nhint: without it check is for people")
	case c.Print:
		return reportMistakes(policy.Print(c.File, out))
	}
	pol, err := policy.Load(c.File)
	if err != nil {
		return reportMistakes(err)
	}
	if !c.JSON {
		if err := pol.Describe(out, c.Host); err != nil {
			return err
		}
	}
	if !c.Connect {
		return nil
	}
	return connectAll(context.Background(), out, pol.Builders, c.JSON)
}

// reportMistakes prints what is wrong with a policy file, if it is that.
func reportMistakes(err error) error {
	var mistakes *policy.Mistakes
	if !errors.As(err, &mistakes) {
		return err
	}
	fmt.Fprintln(os.Stderr, err)
	return errMistakes
}
