package worker

import (
	"bytes"
	"testing"
	"testing/synctest"
)

// Guards against a refusal after which the user knows no more than before: every
// operation that a command of Nix sends and a proxy does not do says who does it
// instead.
func TestWhatAProxyDoesNotDoIsRefusedWithAReason(t *testing.T) {
	repair := func(c *conn) {
		c.w.Uint64(uint64(opVerifyStore))
		c.w.Bool(true)
		c.w.Bool(true)
	}
	for name, tc := range map[string]struct {
		request func(*conn)
		reason  string
	}{
		"nix-store --gc":               {requestOf(opCollectGarbage), refusesGarbage},
		"nix-store --gc --print-roots": {requestOf(opFindRoots), refusesRoots},
		"nix store optimise":           {requestOf(opOptimiseStore), refusesOptimise},
		"nix-store --verify":           {requestOf(opVerifyStore), refusesVerify},
		"nix-store --verify --repair":  {repair, refusesRepair},
		"nix store copy-log":           {requestOf(opAddBuildLog), refusesLogs},
		"a permanent root":             {requestOf(opAddPermRoot), refusesRoot},
		"an export":                    {requestOf(opExportPath), refusesExport},
		"an import":                    {requestOf(opImportPaths), refusesExport},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				heard, err := serveBytes(storeWithPaths(), ServeOptions{}, bytesOf(latest, hello), bytesOf(latest, tc.request))
				if want := errorOf(latest, tc.reason); err != nil || !bytes.HasSuffix(heard, want) {
					t.Errorf("serve: %v, the client hears %q", err, heard)
				}
			})
		})
	}
}
