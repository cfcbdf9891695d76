package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"nixbastion/policy"
	"nixbastion/proxy/upstream"
)

const (
	// checkTimeout is what one builder may take from the first packet to the end
	// of its session. It is above the sum of the pool's own time limits, whose
	// errors say more.
	checkTimeout = 45 * time.Second
	// checksAtOnce keeps the handshakes of a large fleet from slowing each other,
	// and bounds how long one takes of which many do not answer.
	checksAtOnce = 64
)

// builderCheck is how one builder is. Keys of the JSON are stable: new ones may come,
// none changes its meaning.
type builderCheck struct {
	Name string `json:"name"`
	// Address is host:port, or the socket of this machine's daemon. Account is empty
	// for that one.
	Address string `json:"address"`
	Account string `json:"account,omitempty"`
	// OK says that there is no problem. One with a problem that is Usable gets builds
	// all the same, and some may fail there.
	OK       bool               `json:"ok"`
	Usable   bool               `json:"usable"`
	Problems []upstream.Finding `json:"problems"`
	Notes    []upstream.Finding `json:"notes"`
	// The rest is there if it is usable.
	Server           string   `json:"server,omitempty"`
	Nix              string   `json:"nix,omitempty"`
	Protocol         string   `json:"protocol,omitempty"`
	Trust            string   `json:"trust,omitempty"`
	Command          string   `json:"command,omitempty"`
	ConnectSeconds   float64  `json:"connect_seconds,omitempty"`
	HandshakeSeconds float64  `json:"handshake_seconds,omitempty"`
	Systems          []string `json:"systems,omitempty"`
	Features         []string `json:"features,omitempty"`
	DiskFree         int64    `json:"disk_free,omitempty"`
	ClockAhead       float64  `json:"clock_ahead_seconds,omitempty"`

	load string // for people
}

// connectAll tries every builder and prints what it found, in the order of the
// policy. It is an error if one of them has a problem.
func connectAll(ctx context.Context, out io.Writer, builders []policy.Builder, asJSON bool) error {
	pool := upstream.NewPool(upstream.Options{})
	pool.Update(builders)
	checks := make([]builderCheck, len(builders))
	var group errgroup.Group
	group.SetLimit(checksAtOnce)
	for i := range builders {
		group.Go(func() error {
			report, err := checkOne(ctx, pool, builders[i].Name)
			checks[i] = newBuilderCheck(&builders[i], &report, err)
			return nil
		})
	}
	_ = group.Wait() // none of them returns an error
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := pool.Close(ctx)
	if writeErr := printChecks(out, checks, asJSON); writeErr != nil {
		return writeErr
	}
	if verdict := verdictOf(checks); verdict != nil {
		return verdict
	}
	return err
}

func checkOne(ctx context.Context, pool *upstream.Pool, name string) (upstream.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return pool.Check(ctx, name)
}

func newBuilderCheck(b *policy.Builder, r *upstream.Report, err error) builderCheck {
	c := builderCheck{Name: b.Name, Address: b.Address, Account: b.User, Problems: []upstream.Finding{}, Notes: []upstream.Finding{}}
	if b.Socket != "" {
		c.Address = b.Socket
	}
	if err != nil {
		c.Problems = append(c.Problems, upstream.FaultOf(b, err))
		return c
	}
	problems, notes := r.Findings(b)
	c.Problems, c.Notes = append(c.Problems, problems...), append(c.Notes, notes...)
	c.OK, c.Usable = len(problems) == 0, true
	c.Server, c.Nix, c.Protocol, c.Trust, c.Command = r.Server, r.Nix, r.Protocol, r.Trust.String(), r.Command
	if c.Nix == "" {
		c.Nix = "older than 2.7"
	}
	c.ConnectSeconds, c.HandshakeSeconds = r.Connect.Seconds(), r.Handshake.Seconds()
	if r.SettingsErr == nil {
		c.Systems, c.Features = append([]string{r.Settings.System}, r.Settings.ExtraPlatforms...), r.Settings.Features
	}
	if r.LoadErr == nil {
		c.DiskFree, c.ClockAhead, c.load = r.Load.DiskFree, r.Load.ClockAhead.Seconds(), r.Load.String()
	}
	if b.Load.Off {
		c.load = "its load is not looked at (load: off)"
	}
	return c
}

func printChecks(out io.Writer, checks []builderCheck, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(struct {
			Builders []builderCheck `json:"builders"`
		}{checks})
	}
	var text strings.Builder
	for i := range checks {
		checks[i].print(&text)
	}
	_, err := fmt.Fprintf(out, "\n%s", &text)
	return err
}

// print writes what an admin reads about one builder.
func (c *builderCheck) print(out io.Writer) {
	where := c.Address
	if c.Account != "" {
		where += ", account " + c.Account
	}
	fmt.Fprintf(out, "Builder %s at %s: %s\n", c.Name, where, c.word())
	if c.Usable {
		fmt.Fprintf(out, "  %s; Nix %s, protocol %s, trust: %s\n  connected in %s; %s answered after %s\n",
			c.Server, c.Nix, c.Protocol, c.Trust, milliseconds(c.ConnectSeconds), c.Command, milliseconds(c.HandshakeSeconds))
	}
	if c.load != "" {
		fmt.Fprintf(out, "  %s\n", c.load)
	}
	for _, f := range c.Problems {
		fmt.Fprintf(out, "  %s: %s\n", f.Kind, f.What)
		if f.Fix != "" {
			fmt.Fprintf(out, "    hint: %s\n", f.Fix)
		}
	}
	for _, f := range c.Notes {
		fmt.Fprintf(out, "  note: %s\n", f.What)
		if f.Fix != "" {
			fmt.Fprintf(out, "    hint: %s\n", f.Fix)
		}
	}
}

func (c *builderCheck) word() string {
	switch {
	case !c.Usable:
		return "cannot be used"
	case c.OK:
		return "ready"
	case len(c.Problems) == 1:
		return "1 problem"
	}
	return fmt.Sprintf("%d problems", len(c.Problems))
}

// verdictOf is the error of all checks together.
func verdictOf(checks []builderCheck) error {
	unusable, wrong := 0, 0
	for i := range checks {
		switch c := &checks[i]; {
		case !c.Usable:
			unusable++
		case !c.OK:
			wrong++
		}
	}
	switch {
	case unusable > 0 && wrong > 0:
		return fmt.Errorf("%d of %d builders cannot be used, and %d have problems", unusable, len(checks), wrong)
	case unusable > 0:
		return fmt.Errorf("%d of %d builders cannot be used", unusable, len(checks))
	case wrong > 0:
		return fmt.Errorf("%d of %d builders have problems", wrong, len(checks))
	}
	return nil
}

func milliseconds(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(100 * time.Microsecond).String()
}
