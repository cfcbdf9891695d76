package proxy

import (
	"context"
	"fmt"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy/upstream"
)

// bringNamed has the path with this hash part brought, as bring does, and returns
// it; false if no builder that serves the domain has it. Lists hold hash parts
// alone, so a builder that lists one is asked for the name first.
func (f *finder) bringNamed(ctx context.Context, p *policy.Principal, hashPart string) (nix.StorePath, bool) {
	// The name is for the log alone.
	nameless, err := nix.ParseStorePath(nix.StoreDir + "/" + hashPart + "-name-not-known")
	if err != nil || nameless.HashPart() != hashPart {
		return nix.StorePath{}, false // no hash part at all
	}
	key := foundKey{p.Domain, nameless}
	for _, builder := range f.holders(key) {
		path, err := f.nameAt(ctx, p, builder, hashPart)
		if err == nil {
			return path, f.bring(ctx, p, path)
		}
		if ctx.Err() != nil {
			break
		}
		f.missed(key, builder, err)
	}
	return nix.StorePath{}, false
}

// nameAt asks a builder for the path with a hash part, on the account of a principal
// like a fetch.
func (f *finder) nameAt(ctx context.Context, p *policy.Principal, builder, hashPart string) (nix.StorePath, error) {
	release, err := f.slot(ctx, "principal "+p.Name, maxFetchesEach)
	if err != nil {
		return nix.StorePath{}, err
	}
	defer release()
	var path nix.StorePath
	err = f.at(ctx, builder, func(ctx context.Context, _ *builderDog, sess *upstream.Session) (err error) {
		path, err = sess.QueryPathFromHashPart(ctx, hashPart)
		return err
	})
	switch {
	case err != nil:
		return nix.StorePath{}, err
	case path.HashPart() != hashPart:
		return nix.StorePath{}, fmt.Errorf("builder named %s as the path with hash part %s", path, hashPart)
	}
	return path, nil
}
