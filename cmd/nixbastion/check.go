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
	Connect bool   `help:"Connect to every builder and say what answers."`
}

// Run prints every mistake of the file, or what the policy means, and with
// --connect how its builders are.
func (c checkCmd) Run(out io.Writer) error {
	pol, err := policy.Load(c.File)
	if err != nil {
		return reportMistakes(err)
	}
	if err := pol.Describe(out, c.Host); err != nil {
		return err
	}
	if !c.Connect {
		return nil
	}
	return connectAll(context.Background(), out, pol.Builders)
}

// reportMistakes prints what is wrong with a policy file.
func reportMistakes(err error) error {
	fmt.Fprintln(os.Stderr, err)
	var mistakes *policy.Mistakes
	if !errors.As(err, &mistakes) {
		return err
	}
	return errMistakes
}
