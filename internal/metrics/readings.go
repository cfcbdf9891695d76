package metrics

// queueLength has a label that no other reading has.
var queueLength = descOf("queue_length", "Builds that wait for a slot.", "system")

// refusals has one, too.
var refusals = descOf("refusals_total", "Who was turned away, or made to wait, by what was in the way. A connection may count more than once.", "result")

// global are the readings without a label.
var global = []reading[State]{
	read("ready", "Whether the proxy takes clients (1), as /ready says.", func(s *State) float64 { return yes(s.Ready) }),
	read("draining", "Whether the proxy begins nothing new and ends when what runs has ended (1), as /draining says.", func(s *State) float64 { return yes(s.Draining) }),
	read("audit_failing", "Whether the audit log cannot be written (1).", func(s *State) float64 { return yes(s.AuditFailing) }),

	read("ssh_connections", "Connections of clients that are open, logged in or not.", func(s *State) float64 { return num(s.Front.Connections) }),
	read("ssh_logins_pending", "Connections that have not logged in yet.", func(s *State) float64 { return num(s.Front.Pending) }),
	read("ssh_sessions", "Sessions of clients that are open.", func(s *State) float64 { return num(s.Front.Sessions) }),
	read("ssh_jumps", "Jumps of clients that are open.", func(s *State) float64 { return num(s.Front.Jumps) }),
	read("ssh_received_bytes_total", "Bytes received from clients, with what SSH adds.", func(s *State) float64 { return num(s.Front.ReceivedTotal) }),
	read("ssh_sent_bytes_total", "Bytes sent to clients, with what SSH adds.", func(s *State) float64 { return num(s.Front.SentTotal) }),

	read("queue_oldest_wait_seconds", "For how long the build has waited that came first; 0 if none waits.", func(s *State) float64 { return s.Queue.Oldest.Seconds() }),

	read("cache_size_bytes", "What NARs take on disk, those on their way included.", func(s *State) float64 { return num(s.Cache.Bytes) }),
	read("cache_limit_bytes", "What they may take (cache.size).", func(s *State) float64 { return num(s.Cache.Limit) }),
	read("cache_paths", "Paths in the cache, once per domain.", func(s *State) float64 { return num(s.Cache.Paths) }),
	read("cache_arriving_paths", "Paths that are announced or verified and not on disk for good yet.", func(s *State) float64 { return num(s.Cache.Arriving) }),
	read("cache_hits_total", "Paths that were asked for and were there.", func(s *State) float64 { return num(s.Cache.Hits) }),
	read("cache_misses_total", "Paths that were asked for and were not there.", func(s *State) float64 { return num(s.Cache.Misses) }),
	read("cache_added_paths_total", "Paths that became valid.", func(s *State) float64 { return num(s.Cache.Added) }),
	read("cache_evicted_paths_total", "Paths that were removed to make room.", func(s *State) float64 { return num(s.Cache.Evictions) }),
	read("cache_evicted_bytes_total", "What they took on disk.", func(s *State) float64 { return num(s.Cache.EvictedBytes) }),
	read("cache_differing_paths_total", "Paths that came with other bytes than the cache holds, and were dropped.", func(s *State) float64 { return num(s.Cache.Differing) }),
	read("cache_broken_paths_total", "Paths that were removed since their NAR was missing or wrong.", func(s *State) float64 { return num(s.Cache.Broken) }),
	read("cache_corrupt_files_total", "NARs that were found to have wrong bytes on disk.", func(s *State) float64 { return num(s.Cache.Corrupt) }),
	read("cache_unpublished_paths_total", "Verified paths that could not be written to disk.", func(s *State) float64 { return num(s.Cache.Unpublished) }),
	read("cache_scrubbed_bytes_total", "Bytes that were read again in the background.", func(s *State) float64 { return num(s.Cache.ScrubbedBytes) }),
	read("cache_quarantined_files", "Corrupt NARs that are kept for the admin.", func(s *State) float64 { return num(s.Cache.Quarantined) }),
	read("cache_quarantined_bytes", "What these take on disk.", func(s *State) float64 { return num(s.Cache.QuarantinedBytes) }),
}

// builder is a reading of each builder.
func builder(name, help string, value func(*Builder) float64) reading[Builder] {
	return read("builder_"+name, help, value, "builder")
}

var perBuilder = []reading[Builder]{
	builder("slots", "Builds that the builder takes at once (max_jobs).", func(b *Builder) float64 { return num(b.Slots) }),
	builder("slots_used", "Slots that are taken.", func(b *Builder) float64 { return num(b.SlotsUsed) }),
	builder("fetching_builds", "Builds that have ended there and whose outputs are still on their way.", func(b *Builder) float64 { return num(b.Fetching) }),
	builder("up", "Whether builds may begin there now (1). What is in the way, say the others.", func(b *Builder) float64 { return yes(b.Up) }),
	builder("reachable", "Whether the builder can be reached and trusts us (1), as far as is known.", func(b *Builder) float64 { return yes(b.Reachable) }),
	builder("breaker_state", "Whether the builder is left alone after faults: 0 closed, builds go there; 1 half open, one at a time tries it; 2 open, none.", func(b *Builder) float64 { return float64(b.Breaker) }),
	builder("drained", "Whether the admin keeps new builds from it (1).", func(b *Builder) float64 { return yes(b.Drained) }),
	builder("overloaded", "Whether it is busy with other work beyond its thresholds (1).", func(b *Builder) float64 { return yes(b.Overloaded) }),
	builder("asleep", "Whether it has to be woken first (1).", func(b *Builder) float64 { return yes(b.Asleep) }),
	builder("differing_inputs_total", "Inputs that it was found to hold with other bytes than ours.", func(b *Builder) float64 { return num(b.DifferingTotal) }),
	builder("connections", "SSH connections to it that are open.", func(b *Builder) float64 { return num(b.Connections) }),
	builder("sessions", "Sessions of its daemon that are in use or being opened.", func(b *Builder) float64 { return num(b.Sessions) }),
	builder("sessions_idle", "Sessions of its daemon that wait for a user.", func(b *Builder) float64 { return num(b.SessionsIdle) }),
	builder("dials_failed_total", "Connections to it that did not come about.", func(b *Builder) float64 { return num(b.DialsFailedTotal) }),
	builder("received_bytes_total", "Bytes received from it, with what SSH adds.", func(b *Builder) float64 { return num(b.ReceivedTotal) }),
	builder("sent_bytes_total", "Bytes sent to it, with what SSH adds.", func(b *Builder) float64 { return num(b.SentTotal) }),
}

// perLoad are there only for builders that tell their load.
var perLoad = []reading[Load]{
	loadReading("load1", "Its load average of one minute.", func(l *Load) float64 { return l.Load1 }),
	loadReading("memory_available_bytes", "Memory that programs there can have without swapping.", func(l *Load) float64 { return num(l.MemoryAvailable) }),
	loadReading("disk_free_bytes", "Space that is free where its store is.", func(l *Load) float64 { return num(l.DiskFree) }),
}

func loadReading(name, help string, value func(*Load) float64) reading[Load] {
	return read("builder_"+name, help, value, "builder")
}
