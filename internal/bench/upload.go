package main

import (
	"context"
	"fmt"
	"strings"

	"nixbastion/internal/testbed"
)

const (
	bigBytes   = 1 << 30
	smallPaths = 2000
	smallBytes = 20_000
)

func bigIn() bench {
	return bench{
		name: "bigin", share: 270, title: "1 GiB in, and build",
		what: "`nix-store --realise` of a derivation with one input of 1 GiB (incompressible, its bytes never seen before) and a small output; " +
			"all stores were emptied, the proxy's with them",
		slow: true, bytes: bigBytes,
		goals: []goal{{limit: 1.2}},
		warm:  warmUp,
		before: func(ctx context.Context, s *stage, w *way) ([]string, error) {
			return s.uploadAndBuild(ctx, w, s.newBigPath)
		},
	}
}

// bigMisled is the worst of feeding ahead: all of the input goes to the wrong builder
// first, beside the upload.
func bigMisled() bench {
	return bench{
		name: "bigmisled", share: 270, title: "1 GiB in, guessed wrongly",
		what: "as 1 GiB in, but the proxy has a second builder, which ran the client's last build and can not run this one",
		slow: true, bytes: bigBytes, decoy: true,
		goals: []goal{{limit: 2.1}},
		warm:  warmUp,
		before: func(ctx context.Context, s *stage, w *way) ([]string, error) {
			return s.uploadAndBuild(ctx, w, func(ctx context.Context) ([]string, error) {
				if err := s.mislead(ctx, w); err != nil {
					return nil, err
				}
				return s.newBigPath(ctx)
			})
		},
	}
}

// mislead has the decoy run the client's last build.
func (s *stage) mislead(ctx context.Context, w *way) error {
	if w.name != proxy {
		return nil
	}
	drv, err := s.instantiate(ctx, testbed.Derivation{Name: s.serial.next(), RequiredFeatures: []string{decoy}}, nil)
	if err != nil {
		return err
	}
	_, err = s.watch(ctx, s.client, w, realise(w, drv))
	return err
}

func smallIn() bench {
	return bench{
		name: "smallin", share: 90, title: "2,000 small paths in, and build",
		what: fmt.Sprintf("as 1 GiB in, but with %d inputs of %d bytes, each a store path of its own; all stores were emptied", smallPaths, smallBytes),
		slow: true, paths: func(string) int { return smallPaths },
		warm: warmUp,
		before: func(ctx context.Context, s *stage, w *way) ([]string, error) {
			return s.uploadAndBuild(ctx, w, func(ctx context.Context) ([]string, error) { return s.newSmallPaths(ctx, smallPaths) })
		},
	}
}

// uploadAndBuild empties the stores and gives the client inputs and a
// derivation that wants them.
func (s *stage) uploadAndBuild(ctx context.Context, w *way, newInputs func(context.Context) ([]string, error)) ([]string, error) {
	if err := s.emptyStores(ctx, w); err != nil {
		return nil, err
	}
	if err := warmUp(ctx, s, w); err != nil {
		return nil, err
	}
	inputs, err := newInputs(ctx)
	if err != nil {
		return nil, err
	}
	drv, err := s.instantiate(ctx, testbed.Derivation{Name: s.serial.next()}, inputs)
	if err != nil {
		return nil, err
	}
	return realise(w, drv), nil
}

// emptyStores empties the client, the builder and what stands between.
func (s *stage) emptyStores(ctx context.Context, w *way) error {
	if w.reset != nil {
		if err := w.reset(); err != nil {
			return err
		}
	}
	for _, h := range s.stores() {
		if err := emptyStore(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) stores() []*testbed.Host {
	if s.decoy == nil {
		return []*testbed.Host{s.client, s.builder}
	}
	return []*testbed.Host{s.client, s.builder, s.decoy}
}

// newBigPath adds 1 GiB to the client's store. Random bytes are made once; a
// few at the beginning are enough to make other bytes of them.
func (s *stage) newBigPath(ctx context.Context) ([]string, error) {
	return s.addToStore(ctx, fmt.Sprintf(`
		mkdir -p /root/big
		test -e /root/big/base || head -c %d /dev/urandom > /root/big/base
		head -c 4096 /dev/urandom | dd of=/root/big/base conv=notrunc status=none
		mv /root/big/base /root/big/%[2]s
		nix-store --add /root/big/%[2]s
		mv /root/big/%[2]s /root/big/base`, bigBytes, s.serial.next()))
}

// newSmallPaths adds files to the client's store whose names are short, as all
// paths together must fit into one variable of a build's environment.
func (s *stage) newSmallPaths(ctx context.Context, n int) ([]string, error) {
	return s.addToStore(ctx, fmt.Sprintf(`
		rm -rf /root/small && mkdir /root/small && cd /root/small
		head -c %d /dev/urandom | split -a 4 -d -b %d - s
		nix-store --add s*`, n*smallBytes, smallBytes))
}

// addToStore runs a script that prints store paths of the client.
func (s *stage) addToStore(ctx context.Context, script string) ([]string, error) {
	printed, err := shell(ctx, s.client, "set -e\n"+script)
	if err != nil {
		return nil, err
	}
	return strings.Fields(printed), nil
}
