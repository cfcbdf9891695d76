package main

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

// file is a file with golden data.
type file struct {
	root fs.FS
	name string // from the root on, with slashes
	data []byte
}

// stem is the name without folder and extension.
func (f *file) stem() string {
	base := path.Base(f.name)
	return strings.TrimSuffix(base, path.Ext(base))
}

// sibling reads another file of the same folder.
func (f *file) sibling(name string) ([]byte, error) {
	return fs.ReadFile(f.root, path.Join(path.Dir(f.name), name))
}

// other is the file of the same stem with another extension.
func (f *file) other(ext string) ([]byte, error) { return f.sibling(f.stem() + ext) }

// rule says how the files are checked whose name matches, or why they are not.
type rule struct {
	pattern *regexp.Regexp
	check   func(*file) error
	exempt  string
}

func checked(pattern string, check func(*file) error) rule {
	return rule{pattern: whole(pattern), check: check}
}

func exempt(pattern, reason string) rule { return rule{pattern: whole(pattern), exempt: reason} }

func whole(pattern string) *regexp.Regexp { return regexp.MustCompile("^(?:" + pattern + ")$") }

// ruleFor returns the first rule that matches.
func ruleFor(name string) *rule {
	for i := range rules {
		if rules[i].pattern.MatchString(name) {
			return &rules[i]
		}
	}
	return nil
}

// Why files are not checked.
const (
	tooOld      = "of a protocol older than 1.16, while the oldest that is spoken is 1.21"
	clientsOnly = "the proxy reads none: it is a matter of Nix's clients"
)

const (
	wireDirs  = `libstore/(?:worker|serve|common)-protocol/`
	serveDir  = `libstore/serve-protocol/`
	drvDir    = `libstore/derivation/`
	anySuffix = `(?:-.*)?\.bin`
)

var rules = []rule{
	// What only the serve protocol has.
	checked(`libstore/serve-protocol/handshake-to-client\.bin`, checkServeGreeting),
	checked(serveDir+`build-options`+anySuffix, checkBuildOptions),
	checked(serveDir+`build-result`+anySuffix, serveMessages(readServeResult, writeServeResult, buildResultJSON)),
	checked(serveDir+`unkeyed-valid-path-info`+anySuffix, serveMessages(readReplied, writeReplied, pathInfoJSON)),
	checked(serveDir+`valid-path-info`+anySuffix, serveMessages(readKeyed, writeKeyed, keyedPathInfoJSON)),
	exempt(`libstore/worker-protocol/.*-1\.(?:[0-9]|1[0-5])\.(?:bin|json)`, tooOld),

	// Messages, with their JSON beside them.
	checked(wireDirs+`optional-store-path`+anySuffix, messages(readOptionalPath, writePath, basePathJSON)),
	checked(wireDirs+`store-path`+anySuffix, messages(readPath, writePath, basePathJSON)),
	checked(wireDirs+`(?:optional-)?content-address`+anySuffix, messages(readCA, writeCA, contentAddressJSON)),
	checked(wireDirs+`derived-path`+anySuffix, messages(readTarget, writeTarget, targetJSON)),
	checked(wireDirs+`build-mode`+anySuffix, messages(readMode, writeMode, asIs)),
	checked(wireDirs+`optional-trusted-flag`+anySuffix, messages(readTrust, writeTrust, trustJSON)),
	checked(wireDirs+`build-result`+anySuffix, messages(readResult, writeResult, buildResultJSON)),
	checked(wireDirs+`keyed-build-result`+anySuffix, messages(readKeyedResult, writeKeyedResult, keyedResultJSON)),
	checked(wireDirs+`unkeyed-valid-path-info`+anySuffix, messages(readInfo, writeInfo, pathInfoJSON)),
	checked(wireDirs+`valid-path-info`+anySuffix, messages(readValidInfo, writeValidInfo, keyedPathInfoJSON)),
	checked(wireDirs+`drv-output`+anySuffix, messages(readOutputID, writeOutputID, drvOutputJSON)),
	checked(wireDirs+`unkeyed-realisation`+anySuffix, messages(readFound, writeFound, unkeyedRealisationJSON)),
	checked(wireDirs+`realisation`+anySuffix, checkRealisations),
	checked(wireDirs+`(?:set|vector|list|string)`+anySuffix, checkCollections),
	checked(`libstore/worker-protocol/client-handshake-info_1_(\d+)\.bin`, checkHandshakeInfo),
	checked(`libstore/worker-protocol/handshake-to-client\.bin`, checkServerGreeting),
	checked(wireDirs+`.*\.json`, checkHasMessages),

	// Derivations.
	checked(drvDir+`(?:.*/)?bad-[^/]*\.drv`, checkRefusedDrv),
	checked(drvDir+`firefox\.drv`, checkUnsortedDrv),
	checked(drvDir+`hash-modulo/.*-modulo\.drv`, checkModulo),
	checked(drvDir+`.*\.drv`, checkDrv),
	checked(drvDir+`output-.*\.json`, checkOutputJSON),
	checked(drvDir+`invariants/bad-.*\.json`, checkWrongPaths),
	checked(drvDir+`invariants/.*-pre\.json`, checkFillsIn),
	checked(drvDir+`invariants/.*-post\.json`, checkDrvJSON), // compared by the file before
	checked(drvDir+`invariants/.*\.json`, checkRightPaths),
	checked(drvDir+`.*derivation-options/.*\.json`, checkOptionsFeatures),
	exempt(drvDir+`try-resolve/.*-options.*\.json`, "the proxy reads no option of a derivation but its required features"),
	checked(drvDir+`try-resolve/.*-buildTrace\.json`, checkBuildTrace),
	checked(drvDir+`.*\.json`, checkDrvJSON),

	// Nouns as JSON.
	checked(`libstore/path-info/json-\d/.*\.json`, checkPathInfoJSON),
	checked(`libstore/nar-info/json-\d/.*\.json`, checkNarInfoJSON),
	checked(`libstore/build-result/.*\.json`, checkBuildResultJSON),
	checked(`libstore/content-address/.*\.json`, checkContentAddressJSON),
	checked(`libstore/store-path/.*\.json`, checkStorePathJSON),
	checked(`libstore/derived-path/.*_built_built\.json`, checkNestedTarget),
	checked(`libstore/derived-path/.*\.json`, checkTargetJSON),
	checked(`libstore/outputs-spec/[^/]*\.json`, checkOutputsSpec),
	exempt(`libstore/outputs-spec/extended/.*\.json`, clientsOnly),
	checked(`libstore/realisation/.*-fingerprint\.txt`, checkFingerprint),
	checked(`libstore/realisation/.*-sig\.json`, checkSignatureJSON),
	checked(`libstore/realisation/unkeyed-.*\.json`, checkUnkeyedRealisation),
	checked(`libstore/realisation/.*\.json`, checkRealisationJSON),
	exempt(`libstore/machines/.*`, clientsOnly),
	exempt(`libstore/store-reference/.*`, clientsOnly),

	// Hashes and archives.
	checked(`libutil/hash/blake3.*\.json`, checkRefusedHash),
	checked(`libutil/hash/.*\.json`, checkHash),
	checked(`libutil/nar-listing/.*\.json`, checkListing),
	checked(`libutil/nars/regular-one-byte-zero-padding\.nar`, checkAcceptedNar),
	checked(`libutil/nars/.*\.nar`, checkRefusedNar),

	// Recorded sessions.
	checked(`sessions/[^/]*/build-ssh-\d+\.c2s`, checkServeSession),
	exempt(`sessions/[^/]*/INDEX`, "a list of the recordings"),
	checked(`sessions/[^/]*/.*\.c2s`, checkSession),
	checked(`sessions/[^/]*/.*\.s2c`, checkHasRequests),
}

// checkHasMessages is for the JSON that is compared with a .bin: there must be one.
func checkHasMessages(f *file) error { return mustExist(f, ".bin") }

// checkHasRequests is for what servers said, which is read along with what they
// were asked.
func checkHasRequests(f *file) error { return mustExist(f, ".c2s") }

func mustExist(f *file, ext string) error {
	if _, err := f.other(ext); err != nil {
		return fmt.Errorf("nothing to compare it with: %w", err)
	}
	return nil
}
