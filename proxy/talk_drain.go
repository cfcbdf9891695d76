package proxy

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// ChangeAdmin carries out what the admin wants changed and says what is so now.
// Words are "drain BUILDER [REASON]", "undrain BUILDER", "kill BUILD [REASON]" or
// "reload". By is who wants it, for those to read whom it concerns. Whoever calls it has
// made sure that the asker may. The error may be a [UsageError] or a [*policy.Mistakes].
func (p *Proxy) ChangeAdmin(ctx context.Context, by string, words []string) (string, error) {
	switch {
	case (len(words) == 2 || len(words) == 3) && words[0] == "kill":
		return p.kill(ctx, by, words[1], strings.Join(words[2:], ""))
	case (len(words) == 2 || len(words) == 3) && words[0] == "drain":
		reason := ""
		if len(words) == 3 {
			reason = words[2]
		}
		return p.drain(words[1], reason)
	case len(words) == 2 && words[0] == "undrain":
		return p.undrain(words[1])
	case len(words) == 1 && words[0] == "reload":
		result, err := p.Reload("command")
		if err != nil {
			return "", err
		}
		return result.String(), nil
	}
	return "", usage("there is drain BUILDER [REASON], undrain BUILDER, kill BUILD [REASON] and reload")
}

func (p *Proxy) drain(builder, reason string) (string, error) {
	if err := p.knows(builder); err != nil {
		return "", err
	}
	if err := p.drains.drain(builder, reason); err != nil {
		return "", err
	}
	p.glances.forget()
	text := workText(p.workOf(builder))
	if p.oldProcess() {
		text += "; an old process may still have builds there"
	}
	return Printable(fmt.Sprintf("builder '%s' is drained; %s\n", builder, text)), nil
}

func (p *Proxy) undrain(builder string) (string, error) {
	if err := p.knows(builder); err != nil {
		return "", err
	}
	if err := p.drains.undrain(builder); err != nil {
		return "", err
	}
	p.glances.forget()
	return Printable(fmt.Sprintf("builder '%s' is drained no more\n", builder)), nil
}

// knows refuses a builder that is not in the policy.
func (p *Proxy) knows(builder string) error {
	builders := p.policy.Current().Builders
	names := make([]string, len(builders))
	for i, b := range builders {
		names[i] = b.Name
	}
	switch {
	case slices.Contains(names, builder):
		return nil
	case len(names) == 0:
		return usage("there is no builder %s; the policy has none", quoted(builder))
	}
	return usage("there is no builder %s; there is %s", quoted(builder), strings.Join(names, ", "))
}

// workOf is how many builds run on a builder, and of how many that have ended the
// outputs are still on their way from there.
func (p *Proxy) workOf(builder string) (builds, copies int) {
	return p.router.Busy(builder), p.builds.copies.of(builder)
}

// workText says it for people.
func workText(builds, copies int) string {
	text := "no build runs there"
	switch builds {
	case 0:
	case 1:
		text = "1 build still runs there"
	default:
		text = fmt.Sprintf("%d builds still run there", builds)
	}
	switch copies {
	case 0:
		return text
	case 1:
		return text + ", and the outputs of 1 are being fetched"
	}
	return text + fmt.Sprintf(", and the outputs of %d are being fetched", copies)
}
