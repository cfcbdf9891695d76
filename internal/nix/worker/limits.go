package worker

import "nixbastion/internal/nix/wire"

// Limits bound what a peer can make this end hold or take. Nix sets none of
// them. A zero field means the default.
type Limits = wire.Limits

// Limits that nobody needs to move.
const (
	// maxFields is per log message; Nix sends up to four.
	maxFields = 64
	// maxTraces is per error.
	maxTraces = 1024
	// maxFeatures and maxFeatureName bound the feature exchange.
	maxFeatures    = 64
	maxFeatureName = 256
	// maxOverrides is per SetOptions: Nix has some 200 settings.
	maxOverrides = 1024
)
