package main

import (
	"context"
	_ "embed" // demo.nix
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

//go:embed demo.nix
var demoNix string

const greeting = "hello"

// A target is an attribute of demo.nix that can be built, with the one builder
// that is right for it.
type target struct{ attr, builder string }

var (
	intel = target{"intel", intelBuilder}
	arm   = target{"arm", armBuilder}
	vm    = target{"vm", intelBuilder} // needs kvm
)

// refusalLimit is how long it may take until a client knows that nobody can
// ever build what it asks for: from the moment when its Nix hands the build to
// the proxy to the end of the command.
const refusalLimit = time.Second

// tell runs the story from begin to end.
func tell(ctx context.Context, p *page, s *stage) error {
	if err := paste(ctx, p, s); err != nil {
		return err
	}
	built, err := buildEverything(ctx, p, s)
	if err != nil {
		return err
	}
	if err := askForTooMuch(ctx, p, s); err != nil {
		return err
	}
	if s.plot.beforeSharing != nil {
		if err := s.plot.beforeSharing(ctx, s); err != nil {
			return err
		}
	}
	return shareOutputs(ctx, p, s, built)
}

// paste shows the three lines that a client needs, and puts them where they
// belong exactly as they were printed.
func paste(ctx context.Context, p *page, s *stage) error {
	p.chapter("What a client needs: three lines")
	p.text("The proxy prints them, among other things. On alice and bob the first now goes to /etc/nix/machines, the second to /root/.ssh/known_hosts, and the third, the key that signs what is built, to /etc/nix/nix.conf. Clients know nothing of the builders.")
	res, err := typed(ctx, p, s.proxy.Host(), fmt.Sprintf("nixbastion check --host %s %s", proxyHost, world.ConfigFile), linesToPaste)
	if err != nil {
		return err
	}
	if res.status != 0 {
		return fmt.Errorf("nixbastion check ended with status %d:\n%s", res.status, res.text)
	}
	lines, err := findPasteLines(res.text)
	if err != nil {
		return err
	}
	for _, client := range []*testbed.Host{s.alice, s.bob} {
		if err := lines.pasteInto(ctx, client); err != nil {
			return err
		}
	}
	return greet(ctx, p, s.alice)
}

// greet has a client say hello to the proxy: by its known_hosts, as the machines
// file has no part in it.
func greet(ctx context.Context, p *page, client *testbed.Host) error {
	res, err := typed(ctx, p, client, "nix store info --store ssh-ng://"+proxyHost, everything)
	if err == nil && res.status != 0 {
		err = fmt.Errorf("%s cannot reach the proxy:\n%s", client.Name(), res.text)
	}
	return err
}

// pasteLines are what `nixbastion check` prints for clients.
type pasteLines struct{ machines, knownHosts, trustedKeys string }

func findPasteLines(text string) (pasteLines, error) {
	var found pasteLines
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "ssh-ng://"+proxyHost+" "):
			found.machines = line
		case strings.HasPrefix(line, proxyHost+" ssh-ed25519 "):
			found.knownHosts = line
		case strings.HasPrefix(line, "extra-trusted-public-keys = "+signingKey+":"):
			found.trustedKeys = line
		}
	}
	if found.machines == "" || found.knownHosts == "" || found.trustedKeys == "" {
		return found, fmt.Errorf("nixbastion check printed no line for machines files, none for known_hosts or none for nix.conf:\n%s", text)
	}
	return found, nil
}

// linesToPaste leaves out of the output of `nixbastion check` all but the lines
// for clients.
func linesToPaste(line string) []string {
	found, _ := findPasteLines(line)
	if found == (pasteLines{}) {
		return nil
	}
	return []string{line}
}

func (l pasteLines) pasteInto(ctx context.Context, client *testbed.Host) error {
	if err := client.WriteFile(ctx, "/etc/nix/machines", []byte(l.machines+"\n")); err != nil {
		return err
	}
	if err := client.WriteFile(ctx, "/root/.ssh/known_hosts", []byte(l.knownHosts+"\n")); err != nil {
		return err
	}
	return quietly(ctx, client, "echo '"+l.trustedKeys+"' >>/etc/nix/nix.conf")
}

// buildEverything has the first client build, and returns what came of it.
func buildEverything(ctx context.Context, p *page, s *stage) ([]output, error) {
	p.chapter("Each build runs on the builder that suits it")
	p.text("Each build writes the name of the machine that it runs on into its output, and a random number.")
	res, err := typed(ctx, p, s.alice, "tail -n 6 demo.nix", everything)
	if err != nil || res.status != 0 {
		return nil, errors.Join(err, fmt.Errorf("read demo.nix on alice: status %d", res.status))
	}
	var all []output
	for _, t := range []target{intel, arm, vm} {
		made, err := build(ctx, p, s.alice, t)
		if err != nil {
			return nil, err
		}
		all = append(all, made...)
	}
	if err := s.checkPlaces(ctx, all); err != nil {
		return nil, err
	}
	p.gap()
	p.text("Three builds, each on the right machine, by one line in the machines file.")
	return all, nil
}

// build has a client build targets with one command, reads the outputs and
// checks that each was made where it should be.
func build(ctx context.Context, p *page, client *testbed.Host, targets ...target) ([]output, error) {
	command := "nix-build demo.nix"
	for _, t := range targets {
		command += " -A " + t.attr
	}
	res, err := typed(ctx, p, client, command, nixMatters)
	if err != nil {
		return nil, err
	}
	if res.status != 0 {
		return nil, fmt.Errorf("%q on %s ended with status %d:\n%s", command, client.Name(), res.status, res.text)
	}
	files := "result"
	if len(targets) > 1 {
		files = "result*"
	}
	res, err = typed(ctx, p, client, "cat "+files, everything)
	if err != nil {
		return nil, err
	}
	return readOutputs(res.text, targets)
}

// askForTooMuch shows how a build ends that no builder can ever run.
func askForTooMuch(ctx context.Context, p *page, s *stage) error {
	p.chapter("What nobody can build fails at once, with the reasons")
	p.text("The attribute nowhere wants aarch64-linux with kvm. One builder has the one, another has the other, none has both.")
	before, err := s.evidence(ctx)
	if err != nil {
		return err
	}
	if err := refuse(ctx, p, s.alice); err != nil {
		return err
	}
	return s.nothingSince(ctx, before)
}

// refuse has a client ask for what nobody can build. An answer that comes late
// may have met a busy machine, so there are two more chances.
func refuse(ctx context.Context, p *page, client *testbed.Host) error {
	for tries := 1; ; tries++ {
		var asked time.Time
		res, err := typed(ctx, p, client, "nix-build demo.nix -A nowhere", func(line string) []string {
			if strings.HasSuffix(line, "on 'ssh-ng://"+proxyHost+"'...") {
				asked = time.Now()
			}
			return nixMatters(line)
		})
		took := time.Since(asked)
		if err != nil {
			return err
		}
		if err := checkReasons(res); err != nil {
			return err
		}
		p.gap()
		switch {
		case asked.IsZero():
			return fmt.Errorf("alice did not ask the proxy:\n%s", res.text)
		case took <= refusalLimit:
			p.text("From the request to the end that took %.1f seconds.", took.Seconds())
			return nil
		case tries == 3:
			return fmt.Errorf("a refusal took %v, more than %v, three times", took, refusalLimit)
		}
		p.text("From the request to the end that took %.1f seconds, too long. Is this machine busy? Once more:", took.Seconds())
	}
}

// checkReasons fails unless a build failed for the reasons that each builder has.
func checkReasons(res reply) error {
	if res.status == 0 {
		return fmt.Errorf("a build that no builder can run succeeded:\n%s", res.text)
	}
	for _, reason := range []string{intelBuilder + ": .*aarch64-linux", armBuilder + ": .*kvm"} {
		if !regexp.MustCompile(reason).MatchString(res.text) {
			return fmt.Errorf("the reasons do not have %q:\n%s", reason, res.text)
		}
	}
	return nil
}

// shareOutputs has the second client get what the first had built.
func shareOutputs(ctx context.Context, p *page, s *stage, built []output) error {
	p.chapter("The second client gets the same outputs without a build")
	p.text("Bob's Nix asks for the same three builds. The proxy answers from its cache.")
	before, err := s.evidence(ctx)
	if err != nil {
		return err
	}
	got, err := build(ctx, p, s.bob, intel, arm, vm)
	if err != nil {
		return err
	}
	if !slices.Equal(got, built) {
		return fmt.Errorf("bob did not get what alice had built: %v, not %v", got, built)
	}
	if err := s.nothingSince(ctx, before); err != nil {
		return err
	}
	p.gap()
	p.text("The same numbers as on alice, and neither builder has built anything meanwhile.")
	return checkSignatures(ctx, p, s.bob)
}

// checkSignatures has a client's own Nix check who signed the outputs that it got.
func checkSignatures(ctx context.Context, p *page, client *testbed.Host) error {
	p.gap()
	p.text("The proxy has hashed each output and signed it with its key, the only one that bob trusts. His Nix finds bytes and signatures in order:")
	const command = "nix store verify --recursive --sigs-needed 1 ./result*"
	res, err := typed(ctx, p, client, command, nixMatters)
	if err != nil {
		return err
	}
	if res.status != 0 {
		return fmt.Errorf("%q on %s ended with status %d:\n%s", command, client.Name(), res.status, res.text)
	}
	// The same without the key must fail, or the check would mean nothing.
	if err := quietly(ctx, client, "cd && ! "+command+" --option trusted-public-keys ''"); err != nil {
		return fmt.Errorf("the outputs are good without the proxy's signature: %w", err)
	}
	return nil
}
