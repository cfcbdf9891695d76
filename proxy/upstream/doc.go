// Package upstream keeps SSH connections to builders and gives out daemon
// sessions on them. Begin with [Pool].
//
// From a builder's name to a session:
//
//	Pool.Get
//	  builder.Get         an idle session, if one waits
//	  builder.openSession else a new one:
//	    builder.reserve     a connection with room for a channel, dialled if need be
//	    conn.start          a channel on which the remote program runs: a process
//	    worker.NewClient    the daemon's handshake
//
// What lives how long: a connection carries several processes and is closed some
// minutes after the last; a process is one session; a session is used by one
// build after the other, and ended when it is too old, holds too much on the
// builder, or is not exactly between two operations.
//
// A builder is hostile: it may be slow, silent, talkative or lying. Whatever it
// does costs its own sessions and a bounded amount of memory and time, and never
// another builder's.
//
// This package knows no clients and decides nothing about where a build runs.
package upstream
