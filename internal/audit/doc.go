// Package audit keeps the audit log: what was done, by whom, as lines of JSON that
// are only ever appended, each with the hash of the one before. Begin with [Open]
// for writing, [Verify] and [Scan] for reading. It does not know where events come
// from, and logs nothing for people: that is slog's.
//
// # A line
//
//	{"v":1,"seq":7,"time":"2026-11-30T18:45:13.123456Z","event":"login",...,"prev":"<64 hex>","hash":"<64 hex>"}
//
// The hash of a line is the SHA-256 of its bytes from "{" up to, and without, the
// comma before "hash". prev is the hash of the line before, in the file before for
// the first line; zeros where there is none. seq grows by one with each line. What
// stands between event and prev depends on the event: see [Event], and docs/audit.md
// for readers. v changes when a field changes its meaning or goes; new fields and
// events come without.
//
// Whoever can write the file can make a whole new chain: the chain shows what was
// changed only to who knows a later hash. So the hash of the last line, the head, is
// printed at the start, at each rotation and at the end, for a log on another host.
//
// # Writing
//
// One goroutine writes. Callers encode their event and put it into a queue, bounded
// in bytes; what is there when the writer comes is written by one system call, and
// synced by one. [Log.Commit] waits for that, [Log.Record] does not.
//
// A kill leaves all that was written, and may leave a part of a line behind it. The
// next start ends that line, and a line with the event recovered binds it into the
// chain: so it is told from a line that somebody has cut.
package audit
