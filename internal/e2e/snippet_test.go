package e2e

import (
	_ "embed" // how NixOS writes a machines file
	"os"
	"regexp"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
)

// machinesOf is the part of NixOS that makes a machines file of nix.buildMachines.
//
//go:embed testdata/machines.nix
var machinesOf string

// readmeHost is the proxy's name in the README.
const readmeHost = "nix.example.org"

// The lines that the README has for clients are no prose: the machines line builds
// as it stands there, and what it has for NixOS evaluates and gives a line that
// builds too. Guards against a README that was right once.
func TestS18LinesOfTheReadmeWork(t *testing.T) {
	g := startGate(t)
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	line := lineBeginning(t, string(text), "ssh-ng://"+readmeHost+" ")
	writeSSHConfig(t, g.client, "Host "+readmeHost+"\n  HostName proxy\n  HostKeyAlias proxy\n")
	t.Run("machines line", func(t *testing.T) { g.testReadmeLine(t, line, "line") })
	for _, block := range nixBlocks(string(text)) {
		t.Run("NixOS", func(t *testing.T) { g.testReadmeLine(t, g.evaluated(t, block), "nixos") })
	}
}

// testReadmeLine builds by a machines line whose key file is the client's own.
func (g *gate) testReadmeLine(t *testing.T, line, name string) {
	fields := strings.Fields(line)
	if len(fields) < 7 || !strings.HasSuffix(fields[0], "://"+readmeHost) {
		t.Fatalf("the line is %q", line)
	}
	fields[2] = g.alice.File()
	writeMachinesLine(t, g.client, fields)
	d := testbed.Derivation{Name: "by-readme-" + name}
	startScript(t, g.client, buildScript(writeExpression(t, g.client, d), []string{d.Name})+" -j0").mustSucceed(t)
	if got := builtOn(g.proxy, d.Name); len(got) != 1 {
		t.Errorf("it was built on %q, want once", got)
	}
}

var nixBlock = regexp.MustCompile("(?s)```nix\n(.*?)```")

// nixBlocks are the configurations of NixOS in a text.
func nixBlocks(text string) []string {
	var blocks []string
	for _, found := range nixBlock.FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, found[1])
	}
	return blocks
}

// evaluated has Nix make the machines line of a configuration: either a module or
// the inside of its set.
func (g *gate) evaluated(t *testing.T, block string) string {
	t.Helper()
	if !strings.HasPrefix(strings.TrimSpace(block), "{") {
		block = "{ config, pkgs, ... }: {\n" + block + "\n}"
	}
	for name, text := range map[string]string{"snippet.nix": block, "machines.nix": machinesOf} {
		if err := g.client.WriteFile(t.Context(), "/root/e2e/"+name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	line := g.client.MustShell(t, "nix-instantiate --eval --strict --json /root/e2e/machines.nix --arg configuration /root/e2e/snippet.nix")
	return strings.TrimSpace(strings.Trim(strings.TrimSpace(line), `"`))
}
