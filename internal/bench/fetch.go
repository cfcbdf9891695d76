package main

import (
	"context"
	"fmt"
	"strings"

	"nixbastion/internal/testbed"
)

func bigOut() bench {
	return bench{
		name: "bigout", share: 150, title: "1 GiB out",
		what: "`nix copy --from ssh-ng://...` of one path of 1 GiB into an empty store: direct and through HAProxy it comes from the builder's daemon, " +
			"from proxy and hub out of their own stores",
		slow: true, bytes: bigBytes,
		goals:   []goal{{rate: 1.2}, {cpu: 0.4}},
		prepare: prepareBigOut,
		warm:    warmUp,
		before:  copyFrom,
	}
}

func smallOut() bench {
	return bench{
		name: "smallout", share: 70, title: "2,000 small paths out",
		what: fmt.Sprintf("as 1 GiB out, but a path that refers to %d others of %d bytes", smallPaths, smallBytes),
		slow: true, paths: func(string) int { return smallPaths + 1 },
		goals:   []goal{{rate: 2}},
		prepare: func(ctx context.Context, s *stage) error { return s.buildClosure(ctx, smallPaths) },
		warm:    warmUp,
		before:  copyFrom,
	}
}

// connectedPaths is few: 2.26.3 opens an SSH connection for each.
const connectedPaths = 60

func connectedOut() bench {
	return bench{
		name: "connected", share: 50, title: "61 paths out, a connection for each",
		what: fmt.Sprintf("as 2,000 small paths out, but with %d others and a client of version %s, which connects once for every path", connectedPaths, testbed.Nix226),
		slow: true, client: testbed.Nix226, paths: func(string) int { return connectedPaths + 1 },
		goals:   []goal{{rate: 2}},
		prepare: func(ctx context.Context, s *stage) error { return s.buildClosure(ctx, connectedPaths) },
		warm:    warmUp,
		before:  copyFrom,
	}
}

func prepareBigOut(ctx context.Context, s *stage) error {
	d := testbed.Derivation{Name: s.serial.next(), OutputSize: bigBytes, Random: true}
	return s.buildSubject(ctx, d, nil)
}

// buildClosure makes a path with so many others behind it.
func (s *stage) buildClosure(ctx context.Context, others int) error {
	inputs, err := s.newSmallPaths(ctx, others)
	if err != nil {
		return err
	}
	d := testbed.Derivation{Name: s.serial.next(), KeepInputs: true}
	return s.buildSubject(ctx, d, inputs)
}

// buildSubject builds what is to be fetched on the builder: through the proxy if
// there is one, so that it is in its cache. The hub gets a copy.
func (s *stage) buildSubject(ctx context.Context, d testbed.Derivation, inputs []string) error {
	w := s.wayThatFills()
	drv, err := s.instantiate(ctx, d, inputs)
	if err != nil {
		return err
	}
	out, err := s.client.Command(ctx, realise(w, drv)...).Output()
	if err != nil {
		return fmt.Errorf("build what is to be fetched over %s: %w", w.name, err)
	}
	s.subject = strings.TrimSpace(string(out))
	if err := keep(ctx, s.builder, s.subject); err != nil || s.hub == nil {
		return err
	}
	if _, err := shell(ctx, s.hub, "nix copy --no-check-sigs --from ssh-ng://nix@builder?ssh-key="+s.bed.UserKey("hub").File()+" "+s.subject); err != nil {
		return err
	}
	return keep(ctx, s.hub, s.subject)
}

func (s *stage) wayThatFills() *way {
	for _, w := range s.ways {
		if w.name == proxy {
			return w
		}
	}
	return s.ways[0]
}

// keep saves a path from emptyStore, in place of the one before.
func keep(ctx context.Context, h *testbed.Host, path string) error {
	_, err := shell(ctx, h, "ln -sfn "+path+" /nix/var/nix/gcroots/bench")
	return err
}

func copyFrom(ctx context.Context, s *stage, w *way) ([]string, error) {
	if err := emptyStore(ctx, s.client); err != nil {
		return nil, err
	}
	return []string{"nix", "copy", "--no-check-sigs", "--from", w.store, s.subject}, nil
}
