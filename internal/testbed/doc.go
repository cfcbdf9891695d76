// Package testbed runs real Nix hosts on one Linux machine: each host is a
// network namespace with its own mounts, processes and /nix, and has Debian's
// own nix-daemon and sshd in version 2.8.0, 2.26.3 or 2.34.8. Whether the proxy
// works is shown with these; a fake is for faults.
//
// Begin with [New], which makes an empty bed, and (*Bed).Start, which adds a
// host:
//
//	bed, err := testbed.New(ctx, testbed.Options{})
//	if err != nil {
//		return err
//	}
//	defer bed.Close()
//
//	key := bed.UserKey("alice")
//	hosts, err := bed.StartAll(ctx,
//		testbed.HostSpec{Name: "builder", Kind: testbed.Builder, Authorize: map[string][]testbed.Key{"nix": {key}}},
//		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}, Machines: []testbed.Machine{
//			{Store: "ssh-ng://nix@builder", Key: key, MaxJobs: 1},
//		}},
//	)
//	if err != nil {
//		return err
//	}
//	client := hosts[1]
//	client.WriteFile(ctx, "/root/t.nix", []byte(testbed.Expression(testbed.Derivation{Name: "hello"})))
//	res, err := client.Shell(ctx, "nix-build --no-out-link /root/t.nix -A hello")
//
// In a test, [ForTest] and (*Bed).MustStart do the same and end the test where
// something is wrong.
//
// # Who may log in where
//
// Every host has the accounts root, nix (a trusted user of nix-daemon), guest
// (not trusted) and user (not trusted). A [Key] opens an account once it is
// named in HostSpec.Authorize or given to (*Host).Authorize. Clients check
// host keys strictly and ask no questions; every host of a bed knows the host
// keys of all others, under the name, the name with port, and the address.
// A server of the test's own becomes known by (*Bed).AddKnownHost.
//
// # What it needs and leaves
//
// Root (network namespaces and mounts), Debian, and once per machine a Debian
// mirror: [Ensure] unpacks one small Debian per Nix version below
// NIXBASTION_CACHE (/var/cache/nixbastion), and New calls it for what a host
// asks for. Namespaces hang on processes of the bed and on open files of this
// process alone: nothing is mounted, named or linked in the machine's own
// namespaces, so beds of several processes cannot collide, and nothing of a
// bed outlives its process but a folder, which the next New removes.
//
// The package works on Linux only. It does not know the proxy.
package testbed
