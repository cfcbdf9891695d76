package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// drainPoll is how often the proxy is asked whether a drained builder is done.
const drainPoll = time.Second

// changeFlags say whom a subcommand commands.
type changeFlags struct {
	Config string `help:"The policy file, which names the socket." type:"path" xor:"where"`
	Socket string `help:"The socket of the running proxy (default: /var/lib/nixbastion/admin.sock)." type:"path" xor:"where"`
}

func (f changeFlags) socket() (string, error) {
	return askFlags{Config: f.Config, Socket: f.Socket}.socket()
}

type drainCmd struct {
	changeFlags
	Builder string `arg:"" help:"The builder's name in the policy."`
	Reason  string `help:"Why, for people: clients whose builds find no builder read it, too."`
	Wait    bool   `help:"Wait until nothing runs there and all outputs are fetched."`
}

// Run keeps new builds from a builder.
func (c drainCmd) Run(out io.Writer) error {
	socket, err := c.socket()
	if err != nil {
		return err
	}
	words := []string{c.Builder}
	if c.Reason != "" {
		words = append(words, c.Reason)
	}
	if err := request(out, socket, http.MethodPost, "drain", words...); err != nil || !c.Wait {
		return err
	}
	ctx, stop := untilInterrupted()
	defer stop()
	return awaitDrain(ctx, out, socket, c.Builder)
}

// drainWork is what still runs on a builder.
type drainWork struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Busy     int    `json:"busy"`
	Fetching int    `json:"fetching"`
	// old says that the process before an upgrade may still have builds there.
	old bool
}

func (w *drainWork) none() bool { return w.Busy == 0 && w.Fetching == 0 && !w.old }

func (w *drainWork) text() string {
	if w.Busy == 0 && w.Fetching == 0 {
		return "waiting for an old process, which may still have builds on '" + w.Name + "'"
	}
	return fmt.Sprintf("waiting for '%s': %d running, outputs of %d being fetched", w.Name, w.Busy, w.Fetching)
}

// awaitDrain returns when nothing runs on a drained builder any more, and prints
// what it waits for whenever that has changed.
func awaitDrain(ctx context.Context, out io.Writer, socket, builder string) error {
	var told drainWork
	for {
		work, err := workOf(ctx, socket, builder)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("stopped waiting; builder '%s' stays drained", builder)
		case err != nil:
			return err
		case work.State != "drained" && work.State != "removed":
			return fmt.Errorf("builder '%s' is not drained any more: it is %s", builder, work.State)
		case work.none():
			_, err := fmt.Fprintf(out, "nothing runs on '%s' any more\n", builder)
			return err
		case work != told:
			told = work
			if _, err := fmt.Fprintln(out, work.text()); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(drainPoll):
		}
	}
}

// workOf asks the proxy what still runs on a builder. One that it does not know any
// more was removed, and has nothing.
func workOf(ctx context.Context, socket, builder string) (drainWork, error) {
	var text bytes.Buffer
	if err := requestWith(ctx, &text, socket, http.MethodGet, "status", nil, "--json"); err != nil {
		return drainWork{}, err
	}
	var status struct {
		Builders []drainWork `json:"builders"`
		Totals   struct {
			OldProcess bool `json:"old_process"`
		} `json:"totals"`
	}
	if err := json.Unmarshal(text.Bytes(), &status); err != nil {
		return drainWork{}, fmt.Errorf("read the proxy's answer: %w", err)
	}
	work := drainWork{Name: builder, State: "removed"}
	for _, b := range status.Builders {
		if b.Name == builder {
			work = b
		}
	}
	work.old = status.Totals.OldProcess
	return work, nil
}

type undrainCmd struct {
	changeFlags
	Builder string `arg:"" help:"The builder's name in the policy."`
}

// Run lets a drained builder have builds again.
func (c undrainCmd) Run(out io.Writer) error {
	socket, err := c.socket()
	if err != nil {
		return err
	}
	return request(out, socket, http.MethodPost, "undrain", c.Builder)
}
