package nix

import (
	"context"
	"io"
)

// Store answers the operations of Nix's remote-store protocols. A client's
// session with the proxy, a daemon session on a builder and a store in memory
// are Stores; the codecs of both protocols sit on it from either side.
//
// What only some stores can do are the small interfaces below: a codec asks
// with a type assertion and refuses the operation with a sentence otherwise.
//
// Methods return [ErrNotFound] (wrapped) for a path that is not there, and a
// [UserError] or [RemoteError] where the text is meant for the user. A Store
// need not be safe for concurrent use: the protocols ask one thing at a time.
type Store interface {
	// QueryValidPaths returns those of paths that are valid. With substitute
	// the store may fetch missing ones first; failing to is no error.
	QueryValidPaths(ctx context.Context, paths []StorePath, substitute bool) ([]StorePath, error)

	// QueryPathInfo returns what is known of a valid path.
	QueryPathInfo(ctx context.Context, path StorePath) (*PathInfo, error)

	// NarFromPath opens the NAR of a valid path. ErrNotFound comes from the
	// call, never from the reader. The reader ends with io.EOF exactly behind
	// the NAR, and with another error if the NAR turned out to be broken.
	// The caller closes it, and asks the store nothing else before that.
	NarFromPath(ctx context.Context, path StorePath) (io.ReadCloser, error)

	// AddToStore adds content whose path follows from it. What is not read of
	// dump when the call returns is for the caller to discard.
	AddToStore(ctx context.Context, log Logger, req AddToStoreRequest, dump io.Reader) (*PathInfo, error)

	// AddMultipleToStore adds paths with their NARs, references first. The
	// operation AddToStoreNar is the case of one. What is not read of src when
	// the call returns is for the caller to discard.
	AddMultipleToStore(ctx context.Context, log Logger, src PathSource, opts AddOptions) error

	// BuildDerivation builds a derivation whose inputs are valid. A failed
	// build is a result; an error means that the store could not try.
	BuildDerivation(ctx context.Context, log Logger, drvPath StorePath, drv *BasicDerivation, mode BuildMode) (*BuildResult, error)

	// BuildPathsWithResults realises targets: paths that must become valid, or
	// outputs of derivations that are valid. One result per target, in order.
	BuildPathsWithResults(ctx context.Context, log Logger, targets []DerivedPath, mode BuildMode) ([]KeyedBuildResult, error)
}

// AddToStoreRequest describes content that names itself.
type AddToStoreRequest struct {
	Name       string
	Method     ContentAddressMethod
	References []StorePath
	// Repair asks to replace a valid path.
	Repair bool
	// DumpIsNAR says that the dump is a NAR even for a flat method, as clients
	// before 1.25 send it. For Method.Method NAR and Git it always is one.
	DumpIsNAR bool
}

// AddOptions are the wishes of a client that uploads paths.
type AddOptions struct {
	// Repair asks to replace valid paths.
	Repair bool
	// DontCheckSigs asks to accept paths without a trusted signature.
	DontCheckSigs bool
}

// PathSource yields the paths of an upload in order.
type PathSource struct {
	// Count is the number of paths that Next yields.
	Count uint64
	// Next returns the next path and a reader of its NAR that ends after
	// exactly NarSize bytes, which is valid until the following call. io.EOF
	// after the last.
	Next func() (*PathInfo, io.Reader, error)
}

// TempRooter is a Store that can keep paths from garbage collection until the
// session ends.
type TempRooter interface {
	AddTempRoots(ctx context.Context, paths []StorePath) error
}

// MissingQuerier is a Store that can tell beforehand what realising takes.
type MissingQuerier interface {
	QueryMissing(ctx context.Context, targets []DerivedPath) (*Missing, error)
}

// Missing is the answer of QueryMissing. Sizes are bytes.
type Missing struct {
	WillBuild, WillSubstitute, Unknown []StorePath
	DownloadSize, NarSize              uint64
}

// OutputMapper is a Store that knows the outputs of derivations it holds. A
// zero path is an output whose path is not known yet.
type OutputMapper interface {
	QueryDerivationOutputMap(ctx context.Context, drvPath StorePath) (map[string]StorePath, error)
}

// PathFinder is a Store with an index of its paths.
type PathFinder interface {
	QueryReferrers(ctx context.Context, path StorePath) ([]StorePath, error)
	QueryValidDerivers(ctx context.Context, path StorePath) ([]StorePath, error)
	// QueryPathFromHashPart takes the 32 characters before the name.
	QueryPathFromHashPart(ctx context.Context, hashPart string) (StorePath, error)
}

// PathLister is a Store that can name everything it holds.
type PathLister interface {
	QueryAllValidPaths(ctx context.Context) ([]StorePath, error)
}

// PathWalker is a PathLister whose list need not be held whole: the names of a
// million paths take 100 MB.
type PathWalker interface {
	// WalkAllValidPaths calls visit with every path, in the order of the store,
	// which for Nix is that of the paths. A list of more than limit paths is an
	// error, before the first of them is visited.
	WalkAllValidPaths(ctx context.Context, limit int, visit func(StorePath)) error
}

// SignatureAdder is a Store that keeps further signatures of a path.
type SignatureAdder interface {
	AddSignatures(ctx context.Context, path StorePath, sigs []string) error
}

// RealisationStore is a Store that keeps realisations.
type RealisationStore interface {
	RegisterDrvOutput(ctx context.Context, r Realisation) error
	// QueryRealisation returns ErrNotFound if there is none.
	QueryRealisation(ctx context.Context, id DrvOutput) (*Realisation, error)
}

// ClientOptions are the settings of SetOptions that mean something to a proxy.
// Everything else that a client sets is read and dropped.
type ClientOptions struct {
	KeepFailed, KeepGoing, TryFallback bool
	Verbosity, MaxBuildJobs            uint32
	MaxSilentTime                      uint32 // seconds, 0 for none
	BuildCores                         uint32
	UseSubstitutes                     bool
	Overrides                          map[string]string
}

// OptionSetter is a Store that takes a client's settings.
type OptionSetter interface {
	SetOptions(ctx context.Context, opts ClientOptions) error
}

// BuildLimiter is a Store that bounds its builds as a client asks. The limits
// hold for the builds that follow, until they are set again.
type BuildLimiter interface {
	SetBuildLimits(limits BuildLimits)
}

// Trust is what a server tells a client of the client's own standing.
type Trust uint8

// The trust flags. Their numbers are those of the protocol.
const (
	TrustUnknown Trust = iota
	Trusted
	NotTrusted
)

// String is for logs and people.
func (t Trust) String() string {
	switch t {
	case Trusted:
		return "trusted"
	case NotTrusted:
		return "not trusted"
	}
	return "unknown"
}
