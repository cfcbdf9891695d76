package main

import (
	"encoding/json"
	"errors"
	"io"

	"nixbastion/policy"
)

type diffCmd struct {
	Old  string `arg:"" help:"The policy file that counts now." type:"path"`
	New  string `arg:"" help:"The policy file that is to take its place." type:"path"`
	JSON bool   `help:"Answer for programs." name:"json"`
}

// Help is what --help adds. kong calls it.
func (diffCmd) Help() string {
	return `Says in words what changes when one policy takes the place of another: who gains (+) and who loses (-) what, what is otherwise than it was (~), the most important first, and which changes count only after a restart of the proxy. Comments, the order of keys and the files that a policy is split into change nothing.

Files with keys (authorized_keys, revoked_keys, signing_keys, host_certificate) are compared by what they have now; those with which the proxy reaches builders (identity_file, known_hosts) by their names. Names that do not begin with / start from the directory of each policy file.

The exit status is 0 if nothing changes, 1 if something does, and 2 if one of the files has mistakes, which are printed.`
}

// errDifferent says that the difference was printed already.
var errDifferent = errors.New("the policies differ")

// Run prints the difference.
func (c diffCmd) Run(out io.Writer) error {
	old, oldErr := policy.Load(c.Old)
	next, nextErr := policy.Load(c.New)
	if oldErr != nil || nextErr != nil {
		return errors.Join(reportMistakes(oldErr), reportMistakes(nextErr))
	}
	diff := old.Compare(next)
	if err := c.write(out, diff); err != nil {
		return err
	}
	if !diff.Same() {
		return errDifferent
	}
	return nil
}

func (c diffCmd) write(out io.Writer, diff policy.Difference) error {
	if !c.JSON {
		return diff.Write(out)
	}
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(diff)
}
