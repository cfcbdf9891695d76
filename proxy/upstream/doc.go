// Package upstream keeps connections to builders and gives out sessions with
// their Nix. Begin with [Pool].
//
// From a builder's name to a session:
//
//	Pool.Get
//	  builder.get         an idle session, if one waits
//	  builder.open        else a new one, over ssh:
//	    builder.reserve     a connection with room for a channel, dialled if need be
//	    conn.start          a channel on which the remote program runs: a process
//	                      or at the socket of this machine's daemon:
//	    connectSocket       a connection, which is a process of its own
//	    builder.greet       the handshake of the worker or the serve protocol
//
// What lives how long: an ssh connection carries several processes and is closed
// some minutes after the last; a process is one session; a session is used by one
// build after the other, and ended when it is too old, holds too much on the
// builder, or is not exactly between two operations.
//
// A builder may be leaving, or asleep (rest.go): then nothing is asked of it that
// nobody asked for.
//
// [Pool.Lists] tells what a builder's store held when it was listed last, which is
// done in the background (inventory.go).
//
// A builder is hostile: it may be slow, silent, talkative or lying. Whatever it
// does costs its own sessions and a bounded amount of memory and time, and never
// another builder's.
//
// This package knows no clients and decides nothing about where a build runs.
package upstream
