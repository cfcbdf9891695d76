package worker

import "fmt"

// The flow, C being the client and S the server. Every integer has 8 bytes.
//
//	C: magic 1, version         older clients send the version only after S's magic
//	S: magic 2, version         from here on the smaller version counts
//	C: features                 since 1.38
//	S: features                 since 1.38; what both named is in force
//	C: affinity, reserve space  both obsolete
//	S: Nix's version            since 1.33
//	S: trust                    since 1.35
//	S: log messages, LAST       or ERROR, then S closes
//
// and then, one request at a time and as often as C likes:
//
//	C: operation, its fields
//	S: log messages
//	S: LAST, the reply's fields
//	   or ERROR with a text, after which the next request may come
//
// There is no cancel message: C closes, and S stops what runs for it.
//
// Uploads follow the fields of their request as a framed stream. S may send
// ERROR while frames still come; C then writes the terminator at once, and S
// reads up to it. LAST never comes before the terminator: clients since 2.24.12
// abort over it. In versions 1.21 and 1.22 S asks for an upload piece by piece
// with READ. NarFromPath sends the NAR behind LAST, from where on an error can
// only be told by closing.
const (
	magicClient = 0x6e697863
	magicServer = 0x6478696f

	stderrNext          = 0x6f6c6d67 // text for the user's terminal
	stderrRead          = 0x64617461 // S asks for a piece of an upload
	stderrWrite         = 0x64617416 // data of ExportPath, which no client asks for any more
	stderrLast          = 0x616c7473
	stderrError         = 0x63787470
	stderrStartActivity = 0x53545254
	stderrStopActivity  = 0x53544f50
	stderrResult        = 0x52534c54
)

// Op is the number of an operation.
type Op uint64

// The operations.
const (
	opIsValidPath                 Op = 1
	opHasSubstitutes              Op = 3
	opQueryPathHash               Op = 4
	opQueryReferences             Op = 5
	opQueryReferrers              Op = 6
	opAddToStore                  Op = 7
	opAddTextToStore              Op = 8
	opBuildPaths                  Op = 9
	opEnsurePath                  Op = 10
	opAddTempRoot                 Op = 11
	opAddIndirectRoot             Op = 12
	opSyncWithGC                  Op = 13
	opFindRoots                   Op = 14
	opExportPath                  Op = 16
	opQueryDeriver                Op = 18
	opSetOptions                  Op = 19
	opCollectGarbage              Op = 20
	opQuerySubstitutablePathInfo  Op = 21
	opQueryDerivationOutputs      Op = 22
	opQueryAllValidPaths          Op = 23
	opQueryPathInfo               Op = 26
	opImportPaths                 Op = 27
	opQueryDerivationOutputNames  Op = 28
	opQueryPathFromHashPart       Op = 29
	opQuerySubstitutablePathInfos Op = 30
	opQueryValidPaths             Op = 31
	opQuerySubstitutablePaths     Op = 32
	opQueryValidDerivers          Op = 33
	opOptimiseStore               Op = 34
	opVerifyStore                 Op = 35
	opBuildDerivation             Op = 36
	opAddSignatures               Op = 37
	opNarFromPath                 Op = 38
	opAddToStoreNar               Op = 39
	opQueryMissing                Op = 40
	opQueryDerivationOutputMap    Op = 41
	opRegisterDrvOutput           Op = 42
	opQueryRealisation            Op = 43
	opAddMultipleToStore          Op = 44
	opAddBuildLog                 Op = 45
	opBuildPathsWithResults       Op = 46
	opAddPermRoot                 Op = 47
)

var opNames = map[Op]string{
	opIsValidPath:                 "IsValidPath",
	opHasSubstitutes:              "HasSubstitutes",
	opQueryPathHash:               "QueryPathHash",
	opQueryReferences:             "QueryReferences",
	opQueryReferrers:              "QueryReferrers",
	opAddToStore:                  "AddToStore",
	opAddTextToStore:              "AddTextToStore",
	opBuildPaths:                  "BuildPaths",
	opEnsurePath:                  "EnsurePath",
	opAddTempRoot:                 "AddTempRoot",
	opAddIndirectRoot:             "AddIndirectRoot",
	opSyncWithGC:                  "SyncWithGC",
	opFindRoots:                   "FindRoots",
	opExportPath:                  "ExportPath",
	opQueryDeriver:                "QueryDeriver",
	opSetOptions:                  "SetOptions",
	opCollectGarbage:              "CollectGarbage",
	opQuerySubstitutablePathInfo:  "QuerySubstitutablePathInfo",
	opQueryDerivationOutputs:      "QueryDerivationOutputs",
	opQueryAllValidPaths:          "QueryAllValidPaths",
	opQueryPathInfo:               "QueryPathInfo",
	opImportPaths:                 "ImportPaths",
	opQueryDerivationOutputNames:  "QueryDerivationOutputNames",
	opQueryPathFromHashPart:       "QueryPathFromHashPart",
	opQuerySubstitutablePathInfos: "QuerySubstitutablePathInfos",
	opQueryValidPaths:             "QueryValidPaths",
	opQuerySubstitutablePaths:     "QuerySubstitutablePaths",
	opQueryValidDerivers:          "QueryValidDerivers",
	opOptimiseStore:               "OptimiseStore",
	opVerifyStore:                 "VerifyStore",
	opBuildDerivation:             "BuildDerivation",
	opAddSignatures:               "AddSignatures",
	opNarFromPath:                 "NarFromPath",
	opAddToStoreNar:               "AddToStoreNar",
	opQueryMissing:                "QueryMissing",
	opQueryDerivationOutputMap:    "QueryDerivationOutputMap",
	opRegisterDrvOutput:           "RegisterDrvOutput",
	opQueryRealisation:            "QueryRealisation",
	opAddMultipleToStore:          "AddMultipleToStore",
	opAddBuildLog:                 "AddBuildLog",
	opBuildPathsWithResults:       "BuildPathsWithResults",
	opAddPermRoot:                 "AddPermRoot",
}

// String returns Nix's name of the operation.
func (op Op) String() string {
	if name, ok := opNames[op]; ok {
		return name
	}
	return fmt.Sprintf("operation %d", uint64(op))
}
