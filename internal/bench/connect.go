package main

import "context"

func ping() bench {
	return bench{
		name: "ping", share: 25, title: "nix store ping",
		what:    "`nix store ping --store ssh-ng://...`: connect, log in, Nix's handshake",
		repeats: 6, extraClients: true,
		goals: []goal{{limit: 0.4}},
		warm: func(ctx context.Context, s *stage, w *way) error {
			_, err := s.watch(ctx, s.client, w, pingCommand(w))
			return err
		},
		before: func(_ context.Context, _ *stage, w *way) ([]string, error) {
			return pingCommand(w), nil
		},
	}
}

func pingCommand(w *way) []string { return []string{"nix", "store", "ping", "--store", w.store} }
