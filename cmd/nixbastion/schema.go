package main

import (
	"io"

	"nixbastion/policy"
)

type schemaCmd struct{}

// Help is what --help adds. kong calls it.
func (schemaCmd) Help() string {
	return `Prints the JSON Schema (draft 7) of policy files and of what they include. Editors that know it complete keys, explain them, and mark what is wrong while it is written. For those that use yaml-language-server, the first line of the policy says where it is:

  # yaml-language-server: $schema=nixbastion.schema.json

The schema cannot see other files, nor what parts of a policy say about each other; nixbastion check does.`
}

// Run prints the schema.
func (schemaCmd) Run(out io.Writer) error {
	_, err := out.Write(policy.Schema())
	return err
}
