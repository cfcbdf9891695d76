package serve

import "fmt"

// The flow, C being the client and S the server. Every integer has 8 bytes.
//
//	C: magic 1, version         always both at once
//	S: magic 2, version         from here on the smaller version counts
//
// and then, one command at a time and as often as C likes:
//
//	C: command, its fields
//	S: the reply's fields
//
// Nothing else is ever on these two streams: no log, no error, no frames. What S
// prints on its standard error while it builds is the log of the build, and what
// it prints before it exits with status 1 is why. So whatever goes wrong without
// a field for it ends the session, also a path that is not valid.
//
// There is no cancel message either: C closes, and S, which watches its input
// while it builds, stops what runs for it.
//
// Uploads have their NAR behind the fields, exactly as long as these say, or in
// an export stream (see exportMagic), which ends by itself. DumpStorePath is
// answered by a NAR, whose end its grammar tells. An upload that S does not want
// cannot be skipped by anybody: S exits.
const (
	magicClient = 0x390c9deb
	magicServer = 0x5452eecb
)

// Command is the number of a command.
type Command uint64

// The commands.
const (
	cmdQueryValidPaths Command = 1
	cmdQueryPathInfos  Command = 2
	cmdDumpStorePath   Command = 3
	cmdImportPaths     Command = 4
	cmdExportPaths     Command = 5
	cmdBuildPaths      Command = 6
	cmdQueryClosure    Command = 7
	cmdBuildDerivation Command = 8
	cmdAddToStoreNar   Command = 9
)

var commandNames = map[Command]string{
	cmdQueryValidPaths: "QueryValidPaths",
	cmdQueryPathInfos:  "QueryPathInfos",
	cmdDumpStorePath:   "DumpStorePath",
	cmdImportPaths:     "ImportPaths",
	cmdExportPaths:     "ExportPaths",
	cmdBuildPaths:      "BuildPaths",
	cmdQueryClosure:    "QueryClosure",
	cmdBuildDerivation: "BuildDerivation",
	cmdAddToStoreNar:   "AddToStoreNar",
}

// String returns Nix's name of the command.
func (c Command) String() string {
	if name, ok := commandNames[c]; ok {
		return name
	}
	return fmt.Sprintf("serve command %d", uint64(c))
}
