package proxy

import (
	"strings"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

// verdictOrder has one input.
func verdictOrder() *order {
	path, drv := labDrv("hello", labPath("input"))
	return &order{drvPath: path, drv: drv, inputs: []*nix.PathInfo{{Path: labPath("input")}}}
}

// failedAs is what a daemon says of a failed build.
type failedAs struct {
	status nix.BuildStatus
	text   string
	want   blame
}

// Guards against clients whose builds fail since a builder does, and against builds
// that fail by themselves and take one builder after the other from everybody.
func TestWordsOfADaemonTellWhoseFaultItIs(t *testing.T) {
	drv, out, input := labPath("hello.drv").String(), labPath("hello").String(), labPath("input").String()
	const misc, perm, transient = nix.StatusMiscFailure, nix.StatusPermanentFailure, nix.StatusTransientFailure
	for name, c := range map[string]failedAs{
		"disk, 2.3":    {misc, "error: writing to file: No space left on device", blameBuilder},
		"disk, 2.8":    {misc, "\x1b[31;1merror:\x1b[0m creating directory '\x1b[35;1m/nix/store/.links\x1b[0m': \x1b[35;1mNo space left on device\x1b[0m", blameBuilder},
		"disk, 2.26":   {misc, "error: filesystem error: cannot create directories: No space left on device [/nix/var/nix/builds/1]", blameBuilder},
		"disk, SQLite": {misc, "error: executing SQLite statement 'insert into Refs': database or disk is full, database or disk is full (in '/nix/var/nix/db/db.sqlite')", blameBuilder},
		"disk, found after the build, 2.8": {transient, "builder for '" + drv + "' failed with exit code 1;\nlast 1 log lines:\n> cc: error\nFor full logs, run 'nix log " + drv +
			"'.\nnote: build failure may have been caused by lack of free disk space", blameBuilder},
		"disk, found after the build, 2.34": {transient, "Cannot build '" + drv + "'.\nReason: builder failed with exit code 1.\nOutput paths:\n  " + out +
			"\nLast 1 log lines:\n> x\nFor full logs, run:\n  nix log " + drv + "\nnote: build failure may have been caused by lack of free disk space", blameBuilder},
		"quota":             {misc, "error: writing to file: Disk quota exceeded", blameBuilder},
		"read-only store":   {misc, "error: opening lock file '" + out + ".lock': Read-only file system", blameBuilder},
		"malformed":         {misc, "error: executing SQLite query 'select 1': database disk image is malformed (in '/nix/var/nix/db/db.sqlite')", blameBuilder},
		"locked":            {misc, "error: SQLite database '/nix/var/nix/db/db.sqlite' is busy: database is locked", blameBuilder},
		"build users, 2.3":  {misc, "error: all build users are currently in use; consider creating additional users and adding them to the 'nixbld' group", blameBuilder},
		"no users":          {misc, "error: the build users group 'nixbld' has no members", blameBuilder},
		"sandbox":           {misc, "error: this system does not support the kernel namespaces that are required for sandboxing; use '--no-sandbox' to disable sandboxing", blameBuilder},
		"clone":             {misc, "error: cloning builder process: Operation not permitted", blameBuilder},
		"fork":              {misc, "error: unable to fork: Cannot allocate memory", blameBuilder},
		"memory":            {misc, "error: std::bad_alloc", blameBuilder},
		"stopped daemon":    {misc, "error: interrupted by the user", blameBuilder},
		"no daemon, 2.3":    {misc, "error: cannot connect to daemon at '/nix/var/nix/daemon-socket/socket': Connection refused", blameBuilder},
		"no daemon, 2.18":   {misc, "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Connection refused", blameBuilder},
		"killed daemon":     {misc, "error: Nix daemon disconnected unexpectedly (maybe it crashed?)", blameBuilder},
		"too many files":    {misc, "error: opening directory '/nix/store': Too many open files", blameBuilder},
		"lacks system":      {misc, "error: a 'aarch64-linux' with features {} is required to build '" + drv + "', but I am a 'x86_64-linux' with features {benchmark, kvm}", blameMatch},
		"lacks feature":     {nix.StatusInputRejected, "Cannot build '" + drv + "'.\nReason: required system or feature not available\nRequired system: 'x86_64-linux' with features {kvm}\nCurrent system: 'x86_64-linux' with features {}", blameMatch},
		"max-jobs 0":        {misc, "error: unable to start any build; either increase '--max-jobs' or enable remote builds.", blameMatch},
		"ca, off":           {misc, "error: experimental Nix feature 'ca-derivations' is disabled; add '--extra-experimental-features ca-derivations' to enable it", blameMatch},
		"collected, 2.8":    {misc, "error: dependency '" + input + "' of '" + drv + "' does not exist, and substitution is disabled", blameInput},
		"collected, 2.3":    {misc, "error: some dependencies of '" + drv + "' are missing", blameInput},
		"collected":         {misc, "error: path '" + input + "' is not valid", blameInput},
		"collected, 2.34":   {misc, "error: path '" + input + "' is required, but there is no substituter that can build it", blameInput},
		"its files gone":    {misc, "error: getting attributes of path '" + input + "': No such file or directory", blameInput},
		"other path":        {misc, "error: path '" + out + "' is not valid", blameBuild},
		"exit status":       {perm, "builder for '" + drv + "' failed with exit code 1", blameBuild},
		"exit, fixed":       {transient, "builder for '" + drv + "' failed with exit code 1;\nlast 1 log lines:\n> curl: could not resolve host", blameBuild},
		"no shell":          {misc, "error: executing '" + input + "/bin/sh': No such file or directory", blameBuild},
		"no right to it":    {misc, "error: executing '" + input + "/bin/sh': Input/output error", blameBuild},
		"wrong hash":        {nix.StatusOutputRejected, "hash mismatch in fixed-output derivation '" + drv + "':\n  specified: sha256-A=\n     got:    sha256-B=", blameBuild},
		"file of that name": {misc, "error: file '" + out + "/No space left on device' has an unsupported type", blameBuild},
		"own time limit":    {nix.StatusTimedOut, "building of '" + drv + "' timed out after 5 seconds; No space left on device", blameBuild},
		"killed":            {perm, "builder for '" + drv + "' failed due to signal 9 (Killed)", blameDoubt},
		"going down":        {perm, "Cannot build '" + drv + "'.\nReason: builder failed due to signal 15 (Terminated).", blameDoubt},
		"crash":             {perm, "builder for '" + drv + "' failed due to signal 11 (Segmentation fault)", blameBuild},
		"disk, in its log":  {perm, "builder for '" + drv + "' failed with exit code 1;\nlast 2 log lines:\n       > cc: x.o: No space left on device\n       > make: *** Error 1", blameDoubt},
	} {
		got := verdictOrder().failed(&nix.BuildResult{Status: c.status, ErrorMsg: c.text})
		if got.blame != c.want {
			t.Errorf("%s: blame is on %s, want %s", name, got.blame, c.want)
		}
		if got.blame != blameBuild && (got.reason == "" || strings.ContainsAny(got.reason, "\n\x1b")) {
			t.Errorf("%s: the reason is %q", name, got.reason)
		}
		if got.blame == blameBuild && got.result == nil {
			t.Errorf("%s: there is no answer", name)
		}
	}
}

// Guards against a client that takes builders from everybody with a build that prints
// what daemons say of their machines.
func TestLogOfABuildNeverCountsAgainstItsBuilder(t *testing.T) {
	texts := append([]string{}, systemErrors...)
	for _, s := range sayings {
		texts = append(texts, s.text)
	}
	for _, text := range append(texts, inputSayings...) {
		for _, status := range []nix.BuildStatus{nix.StatusMiscFailure, nix.StatusPermanentFailure, nix.StatusTransientFailure} {
			for _, line := range []string{"> error: ", "       > x: ", ">"} {
				message := "builder for 'x.drv' failed with exit code 1;\nlast 1 log lines:\n" + line + text + "\nFor full logs, run 'nix log x.drv'."
				if got := verdictOrder().failed(&nix.BuildResult{Status: status, ErrorMsg: message}); got.blame != blameBuild && got.blame != blameDoubt {
					t.Errorf("%s with %q in the log: blame is on %s", status, text, got.blame)
				}
			}
		}
	}
}

// Guards against the same through what daemons quote of a derivation.
func TestDerivationDoesNotSpeakForADaemon(t *testing.T) {
	o := verdictOrder()
	o.drv.Env = append(o.drv.Env, nix.EnvVar{Name: "allowedReferences", Value: "x\ndatabase is locked\n"})
	message := "error: derivation contains an illegal reference specifier 'x\ndatabase is locked\n'"
	if got := o.failed(nix.Failure(nix.StatusMiscFailure, "%s", message)); got.blame != blameDoubt {
		t.Errorf("blame is on %s", got.blame)
	}
}

// Guards against errors of an operation that are taken for an answer: what a daemon
// refuses before it builds is not the build's fault.
func TestErrorsTellWhoseFaultTheyAre(t *testing.T) {
	lost := func(kind upstream.Kind, text string) error {
		return &upstream.Error{Builder: "b1", Kind: kind, Err: nix.Refuse("%s", text)}
	}
	for name, c := range map[string]struct {
		err       error
		otherwise blame
		want      blame
	}{
		"lost":             {lost(upstream.Lost, "connection lost"), blameBuild, blameBuilder},
		"corrupt":          {lost(upstream.Protocol, "daemon session broken"), blameBuild, blameBuilder},
		"untrusted":        {lost(upstream.Untrusted, "must be in trusted-users"), blameBuild, blameMatch},
		"serve, disk":      {lost(upstream.Refused, "'nix-store --serve' gave up AddToStoreNar: error: writing to file: No space left on device"), blameBuild, blameBuilder},
		"serve, other":     {lost(upstream.Refused, "'nix-store --serve' gave up AddToStoreNar: error: no"), blameBuild, blameMatch},
		"upload, disk":     {&nix.RemoteError{Message: "error: writing to file: No space left on device"}, blameMatch, blameBuilder},
		"upload, unknown":  {&nix.RemoteError{Message: "error: bad archive"}, blameMatch, blameMatch},
		"upload, no input": {&nix.RemoteError{Message: "error: path '" + labPath("input").String() + "' is not valid"}, blameMatch, blameInput},
		"build, unknown":   {&nix.RemoteError{Message: "error: no such mode"}, blameBuild, blameBuild},
		"false output":     {falseOutput("does not say where output %q is", "out"), blameMatch, blameBuilder},
		"other bytes":      {nix.Refuse("holds x with other content"), blameMatch, blameMatch},
		"forgot":           {sameContent([]nix.StorePath{labPath("input")}, []*nix.PathInfo{nil}, nil), blameMatch, blameInput},
		"panic":            {errInternal, blameMatch, blameMatch},
	} {
		got := verdictOrder().erred(c.err, c.otherwise)
		if got.blame != c.want || got.reason == "" {
			t.Errorf("%s: blame is on %s (%q), want %s", name, got.blame, got.reason, c.want)
		}
		if got.blame == blameBuild && got.result == nil {
			t.Errorf("%s: there is no answer", name)
		}
	}
}
