package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"path/filepath"
	"time"

	"gopkg.in/yaml.v3"

	"nixbastion/internal/nix"
)

// Load reads and checks a policy file, with the files that it includes and names.
// Relative paths start from the directory of the file that has them. The error is of type *[Mistakes].
func Load(file string) (*Policy, error) { return loadFrom(file, realDisk{}) }

func loadFrom(file string, disk disk) (*Policy, error) {
	text, err := readMain(file, disk)
	if err != nil {
		return nil, err
	}
	return parse(file, text, disk)
}

// readMain reads a policy file, without looking at what it says.
func readMain(file string, disk disk) ([]byte, error) {
	text, mode, err := disk.read(file, maxPolicyBytes)
	if err == nil && mode&othersMayWrite != 0 {
		err = refuse("chmod o-w "+file, "everybody may write this file (mode %#o), and so decide who gets in", mode)
	}
	if err != nil {
		return nil, &Mistakes{List: []Mistake{{File: file, Text: err.Error(), Hint: hintOf(err)}}}
	}
	return text, nil
}

func parse(file string, text []byte, disk disk) (*Policy, error) {
	d := newDecoder(file, disk)
	d.decode(text)
	sum := hex.EncodeToString(d.hash.Sum(nil))
	d.pol.FileHash, d.mistakes.FileHash = sum, sum
	if err := d.mistakes.sorted(file); err != nil {
		return nil, err
	}
	return d.pol, nil
}

func newDecoder(file string, disk disk) *decoder {
	dir, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		dir = filepath.Dir(file) // the working directory is gone; relative to it is what is left
	}
	return &decoder{
		file: file, dir: dir, places: places{file, map[*yaml.Node]string{}}, disk: disk, fullPaths: map[*yaml.Node]string{},
		pol: defaults(), usualLoad: defaultLoad(), schema: map[string]bool{}, keys: keyring{}, authorities: map[string][]*ownedKey{},
		hash:        sha256.New(),
		domainsSeen: names{}, buildersSeen: names{}, principalsSeen: names{},
	}
}

func (d *decoder) decode(text []byte) {
	d.hash.Write(text)
	root := d.document(text)
	if root == nil {
		return
	}
	d.root = root
	d.include(root)
	d.settings(root)
	d.relations()
	d.index()
}

// Defaults of what a file does not say.
const (
	defaultListen     = ":22"
	defaultDrain      = time.Minute
	maxDrain          = 24 * time.Hour
	defaultCacheSize  = 50 << 30
	defaultScrubRate  = 8 << 20
	defaultNarSize    = 64 << 30
	defaultBuildLog   = 64 << 20
	defaultBuildLogs  = 1 << 30
	defaultHistory    = 1000
	defaultSSHPort    = "22"
	defaultMaxJobs    = 1
	defaultDomainName = "default"
	// defaultReserveShare is the part of the cache that is kept for uploads.
	defaultReserveShare = 10
	// defaultAdminSocket is in the state directory.
	defaultAdminSocket = "admin.sock"
	// defaultTrustedKey is that of cache.nixos.org, which Nix trusts by default.
	defaultTrustedKey = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
)

func defaults() *Policy {
	return &Policy{
		Listen: []string{defaultListen}, DrainTimeout: defaultDrain,
		Cache:   Cache{Size: defaultCacheSize, SpoolReserve: -1, ScrubRate: defaultScrubRate},
		Limits:  Limits{NarSize: defaultNarSize, BuildLog: defaultBuildLog, BuildLogs: defaultBuildLogs, BuildHistory: defaultHistory},
		SSH:     SSH{Limits: defaultFrontLimits(), Penalties: DefaultPenalties()},
		Log:     Log{Level: slog.LevelInfo, Format: "json"},
		Domains: []Domain{{Name: defaultDomainName}},

		Scheduling: defaultScheduling(),
		Audit:      defaultAudit(),

		keys: map[string]*grant{}, authorities: map[string][]*grant{},
		TrustedPublicKeys: []TrustedKey{{PublicKey: mustPublicKey(defaultTrustedKey)}},
	}
}

// mustPublicKey is for keys that stand in the program.
func mustPublicKey(text string) nix.PublicKey {
	key, err := nix.ParsePublicKey(text)
	if err != nil {
		panic(err)
	}
	return key
}
