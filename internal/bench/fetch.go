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
		goal:    goal{rate: 1.1},
		prepare: prepareBigOut,
		warm:    warmUp,
		before:  copyFrom,
	}
}

func smallOut() bench {
	return bench{
		name: "smallout", share: 70, title: "many small paths out",
		what: fmt.Sprintf("as 1 GiB out, but a path that refers to %d others of %d bytes (client 2.26.3, which opens a connection for each: %d)",
			smallPaths, smallBytes, smallPathsOut(testbed.Nix226)),
		slow: true, paths: smallPathsOut,
		prepare: prepareSmallOut,
		warm:    warmUp,
		before:  copyFrom,
	}
}

func prepareBigOut(ctx context.Context, s *stage) error {
	d := testbed.Derivation{Name: s.serial.next(), OutputSize: bigBytes, Random: true}
	return s.buildSubject(ctx, d, nil)
}

func prepareSmallOut(ctx context.Context, s *stage) error {
	inputs, err := s.newSmallPaths(ctx, smallPathsOut(s.client.Nix()))
	if err != nil {
		return err
	}
	d := testbed.Derivation{Name: s.serial.next(), KeepInputs: true}
	return s.buildSubject(ctx, d, inputs)
}

// smallPathsOut is how many paths a client fetches. 2.26.3 opens an SSH connection
// for each, which takes minutes for thousands.
func smallPathsOut(client string) int {
	if client == testbed.Nix226 {
		return smallPaths / 40
	}
	return smallPaths
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
