package worker

import (
	"context"
	"errors"

	"nixbastion/internal/nix"
)

// pipelineBatch is how many requests are sent before the next ones wait for
// their answers. The daemon answers in order, one at a time; without a bound the
// requests and the answers could fill both directions.
const pipelineBatch = 256

// pipeline runs n operations of a kind without a round trip each. The requests
// of a batch are written while the replies are read. An error of the daemon for
// one of them does not stop the others; the first such is returned.
func (c *Client) pipeline(ctx context.Context, op Op, n int, write, read func(i int)) error {
	k, err := c.begin(ctx, op)
	if err != nil {
		return err
	}
	var refused error
	for start := 0; start < n; start += pipelineBatch {
		stop := min(start+pipelineBatch, n)
		err := c.pipelineSome(op, start, stop, write, read, &refused)
		if err != nil {
			return k.End(err)
		}
	}
	return k.End(refused)
}

func (c *Client) pipelineSome(op Op, start, stop int, write, read func(i int), refused *error) error {
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := start; i < stop; i++ {
			c.w.Uint64(uint64(op))
			write(i)
		}
		c.w.Flush()
	}()
	err := c.readReplies(start, stop, read, refused)
	if err != nil {
		c.sever() // so that the writing ends
	}
	<-written
	return err
}

func (c *Client) readReplies(start, stop int, read func(i int), refused *error) error {
	for i := start; i < stop; i++ {
		err := c.awaitReply(reply{log: c.log})
		var remote *nix.RemoteError
		switch {
		case errors.As(err, &remote):
			if *refused == nil {
				*refused = err
			}
			continue
		case err != nil:
			return err
		}
		read(i)
		if err := c.r.Err(); err != nil {
			return err
		}
	}
	return nil
}
