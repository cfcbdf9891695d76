package testbed

import (
	"strings"
	"testing"
)

// A host of each version comes up with that version, and a client builds on a
// builder of its own version over ssh-ng. Guards against roots that lack a
// file, and against daemons that are said to answer and do not.
func TestEveryVersionBuildsFromClientOnBuilder(t *testing.T) {
	for _, version := range []string{Nix28, Nix226, Nix234} {
		t.Run(version, func(t *testing.T) {
			b := ForTest(t)
			key := b.UserKey("alice")
			hosts := b.MustStart(t,
				HostSpec{Name: "builder", Kind: Builder, Nix: version, Authorize: map[string][]Key{TrustedAccount: {key}}},
				HostSpec{Name: "client", Kind: Client, Nix: version, Keys: []Key{key}, Machines: []Machine{
					{Store: "ssh-ng://nix@builder", Key: key},
				}})
			client := hosts[1]
			if got := client.MustShell(t, "nix --version"); strings.TrimSpace(got) != "nix (Nix) "+version {
				t.Errorf("client runs %q", got)
			}
			write(t, client, "/root/t.nix", Expression(Derivation{Name: "hello"}))
			out := client.MustShell(t, "nix-build --no-out-link /root/t.nix -A hello")
			if got := client.MustShell(t, "cat "+out); got != "hello\n" {
				t.Errorf("the output holds %q", got)
			}
			if !strings.Contains(hosts[0].MustShell(t, "nix-store --query --deriver "+out), "hello.drv") {
				t.Error("the builder does not know the output")
			}
		})
	}
}

func write(t *testing.T, h *Host, path, text string) {
	t.Helper()
	if err := h.WriteFile(t.Context(), path, []byte(text)); err != nil {
		t.Fatal(err)
	}
}
