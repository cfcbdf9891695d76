// Package fleet carries a trace of internal/simulate through real hosts of
// internal/testbed, once for each way of placing builds: by clients that list all
// builders themselves, through HAProxy, through a hub (a nix-daemon with builders of
// its own), and through the proxy. What the models of internal/simulate say can be
// held against it.
//
// Begin with [Open], then [Fleet.Run] for a way:
//
//	f, err := fleet.Open(ctx, bed, simulate.Calibration(0), fleet.Ways...)
//	if err != nil {
//		return err
//	}
//	result, err := f.Run(ctx, fleet.Proxy)
//
// Builds sleep while they hold one of the slots of their builder, for their work
// divided by its speed: overload shows as waiting, and two cores carry a large fleet.
// All stores are emptied before each run, and nothing is remembered from one run to
// the next but what the trace says was known before. All wishes of a client come at once, whatever the trace says.
package fleet
