// Package cache keeps store paths on disk. What a client uploads and what a
// builder makes is streamed to disk once, verified on the way, and read from
// there by everybody who may see it.
//
// Begin with [Open]. [Cache.Receive] takes an upload, [Cache.ReceiveFound] what
// somebody found on a builder, [Cache.Announce] takes the output of a build that
// others may follow while it grows, and
// [Cache.QueryValidPaths], [Cache.QueryPathInfo] and [Cache.OpenNar] answer;
// [Cache.QueryReferrers], [Cache.QueryPathFromHashPart] and
// [Cache.QueryAllValidPaths] search. [Cache.AddSignatures] adds to what is there.
// [Pins] keep what a session was promised, [Cache.PinPaths] what the admin wants.
// [Cache.List], [Cache.Verify], [Cache.Collect], [Cache.Remove], [Cache.Import] and
// [Cache.Export] are the admin's. [Cache.Retire] gives the directory to another process,
// which takes the place of this one.
//
// # Words
//
//   - A domain is a set of keys that trust each other. A path is valid in a
//     domain or it is not; that another domain holds the same bytes is no
//     answer. The public domain, named "", is seen by all.
//   - A record is a path in one domain: its path info and its [Provenance],
//     who vouches for it. The same path may have different bytes in two
//     domains; the same bytes are stored once, under their NAR hash.
//   - A spool is a NAR on its way in: one writer and any number of followers.
//   - A path is whole if all that it refers to is valid in its domain, too. An
//     upload must be. What was found on a builder need not: the rest of its
//     closure is there, and is fetched when somebody asks for it. Eviction makes
//     nothing less whole than it was.
//   - A path is verified once size, hash, grammar and content address were
//     checked: it is acknowledged and used in this process from then on. It is
//     durable once it is published on disk. A power cut between the two loses
//     the path, never its integrity.
//   - The keeper is the one goroutine that changes what is published.
//   - Our signatures are those of [Options.Sign], which is shown a [Verified] path
//     before that becomes valid. [Cache.Resign] adds those of new keys.
//
// # On disk
//
//	nix-cache-info, <hash>.narinfo     the public domain
//	domain/<name>/nix-cache-info, <hash>.narinfo, nar -> ../../nar
//	nar/<2 chars>/<NAR hash>.nar       whole, uncompressed, shared by all domains
//	tmp/<pid>/, tmp/<pid>.lock         spools of one process; what one that has given
//	                                   the index away promises and offers
//	pins/<domain>/<name>               paths that the admin has pinned
//	quarantine/                        what was found broken, for some time
//	scrubbed                           how far the store was read again
//	index.db, index.sealed             can be rebuilt, is never the truth
//
// So the directory and each domain's folder are binary caches as Nix itself
// reads them (nix copy --from file://DIR/domain/NAME).
//
// # The flow of a path
//
//	room       space for the declared size is reserved, or waited for   (room.go)
//	spool      the NAR streams into tmp/, checked on the way            (spool.go, verify.go)
//	commit     the first bytes of a path in a domain win: the path is
//	           verified, signed and answered from memory                (commit.go, verified.go)
//	keeper     up to 50 of them at a time: sync, rename NARs, rename
//	           narinfos, sync, one index transaction: durable           (keeper.go, publish.go)
//	resign     what is published gets the signatures of new keys         (resign.go)
//	evict      least recently used first, referrers before what they
//	           refer to, narinfo before NAR                             (evict.go)
//	read       hashed when that is due, the end held back until it is
//	           right                                                    (reader.go, checked.go)
//	scrub      all NARs again and again, at a rate                      (scrub.go)
//	retire     the index is given to another process, and perhaps
//	           taken back                                               (retire.go, promised.go)
//	adopt      what processes offer that had the index before           (adopt.go, predecessor.go)
//	broken     NAR to quarantine, all records that name it dropped      (broken.go, quarantine.go)
//
// # Concurrency
//
// Cache.mu guards what is in memory (pending publications, hot records, pins,
// claims) and is never held across I/O. The index is changed by the keeper
// alone, which is checked as a whole when it is opened (indexcheck.go). Whoever decides about a path (commit, eviction) holds its claim; whoever
// was promised a path holds a pin, and an eviction claims no pinned path. Locks
// are taken in the order Cache.mu, then a spool's or the room's.
//
// The package knows no clients, builders or keys: which signatures count and who
// may see what is decided by the caller, who says so in a [Grant].
package cache
