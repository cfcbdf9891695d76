package proxy

import (
	"io"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// stdio joins the two directions of a channel.
type stdio struct {
	io.Reader
	io.Writer
}

// trustOf is what a client is told of its standing. It decides how newer clients
// ask for builds: only one that is trusted sends BuildDerivation.
func trustOf(role policy.Role) nix.Trust {
	if role == policy.RoleFull {
		return nix.Trusted
	}
	return nix.NotTrusted
}
