package serve

import "nixbastion/internal/nix/wire"

// Limits bound what a peer can make this end hold or take. Nix sets none of
// them. A zero field means the default.
type Limits = wire.Limits

// Limits that nobody needs to move.
const (
	// maxExport is how many paths one ExportPaths may ask for: their infos are
	// held to bring them in order, and no client since 2.0 asks at all.
	maxExport = 10_000
	// maxImport is the largest NAR that ImportPaths takes, in bytes: until its name
	// has arrived it lies in a file that the store does not count.
	maxImport = 4 << 30
	// infoBatch is how many paths one QueryPathInfos asks for, so that an answer
	// stays within the memory of a message.
	infoBatch = 256
)
