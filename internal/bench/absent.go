package main

import (
	"context"
	"fmt"

	"nixbastion/internal/nix"
)

// absentPaths is how many paths absent asks for.
const absentPaths = 1000

// absent is what a client does that looks for substitutes which nobody has.
func absent() bench {
	return bench{
		name: "absent", share: 25, title: "1,000 absent paths",
		what:    fmt.Sprintf("`nix-store --check-validity --print-invalid --store ssh-ng://...` of %d paths that nobody has, never asked for before, in one session", absentPaths),
		repeats: 3,
		goals:   []goal{{limit: 0.35}},
		warm: func(ctx context.Context, s *stage, w *way) error {
			_, err := s.watch(ctx, s.client, w, pingCommand(w))
			return err
		},
		before: func(_ context.Context, s *stage, w *way) ([]string, error) {
			argv := []string{"nix-store", "--check-validity", "--print-invalid", "--store", w.store}
			for range absentPaths {
				argv = append(argv, s.absentPath())
			}
			return argv, nil
		},
	}
}

// absentPath makes up a store path.
func (s *stage) absentPath() string {
	name := s.serial.next()
	return "/nix/store/" + nix.EncodeNix32(nix.HashBytes(nix.SHA256, []byte(name)).Bytes()[:20]) + "-" + name
}
