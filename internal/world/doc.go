// Package world puts a nixbastion into a bed of internal/testbed: the real
// binary on a host of its own, with a policy made from Go values, its key let
// in on the builders and its host key known to all clients. The demo, the
// benchmarks and the end-to-end tests all begin with it.
//
// Begin with [StartProxy]:
//
//	proxy, err := world.StartProxy(ctx, bed, world.ProxySpec{
//		Builders:   []world.Builder{{Host: builder, Features: []string{"kvm"}, MaxJobs: 2}},
//		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{bed.UserKey("alice")}, Role: "full"}},
//	})
//	if err != nil {
//		return err
//	}
//	client.SetMachines(ctx, proxy.Machine(bed.UserKey("alice")))
//
// The binary is that of the environment's NIXBASTION_BIN. The proxy runs until
// Terminate or Kill, or until its host or bed ends.
package world
