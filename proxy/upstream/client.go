package upstream

import (
	"context"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/serve"
	"nixbastion/internal/nix/worker"
	"nixbastion/policy"
)

// client is our end of a session, in whichever protocol. What only one of them
// has words for is asked for with the small interfaces of package nix.
type client interface {
	nix.Store
	nix.TempRooter
	// QueryPathInfos has an entry per path, nil where it is not valid.
	QueryPathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error)
	// Reusable reports whether the session is exactly between two operations.
	Reusable() bool
}

var (
	_ client = (*worker.Client)(nil)
	_ client = (*serveClient)(nil)
)

// greeting is what a handshake told.
type greeting struct {
	protocol string // its version
	nix      string // the version of the other end, for people
	trust    nix.Trust
}

// shakeHands greets the other end of a process in the protocol of the target. On
// an error the process is closed.
func (t *target) shakeHands(ctx context.Context, p process) (client, greeting, error) {
	if t.protocol == policy.ProtocolServe {
		c, err := serve.NewClient(ctx, p, serve.ClientOptions{Builds: settingsOf(ctx).limits()})
		if err != nil {
			return nil, greeting{}, err
		}
		return &serveClient{Client: c, process: p}, greetingOfServe(c), nil
	}
	c, err := worker.NewClient(ctx, p, worker.ClientOptions{})
	if err != nil {
		return nil, greeting{}, err
	}
	if err := settingsOf(ctx).tell(ctx, c, t.socket != ""); err != nil {
		return nil, greeting{}, err
	}
	return c, greetingOfWorker(c), nil
}

func greetingOfWorker(c *worker.Client) greeting {
	g := greeting{protocol: c.Version().String(), nix: clean(c.DaemonVersion()), trust: c.Trust()}
	if g.nix == "" {
		g.nix = "older than 2.7"
	}
	return g
}

// greetingOfServe has no trust, and no more of a version than follows from that
// of the protocol, since the other end says neither.
func greetingOfServe(c *serve.Client) greeting {
	g := greeting{protocol: c.Version().String(), nix: "2.4 or newer"}
	if c.Version() < serve.Announced {
		g.nix = "older than 2.4"
	}
	return g
}
