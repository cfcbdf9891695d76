package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// testAudit shows that ssh-audit, as Debian 13 has it, finds no failure in what the
// front offers. Guards against an algorithm that is broken, and against a library that
// brings one back.
func (y *arena) testAudit(t *testing.T) {
	audit := startScript(t, y.hostile, "ssh-audit --version; ssh-audit --skip-rate-test --json proxy").wait(t)
	version, report, _ := strings.Cut(audit.Stdout, "\n")
	if !strings.Contains(version, "3.3") && !strings.Contains(audit.Stdout, "v3.3") {
		t.Errorf("the version is %q, want 3.3", version)
	}
	report = report[max(0, strings.Index(report, "{")):]
	// Status 3 is for failures, 2 for warnings: those of NIST curves are opinions.
	if audit.Status != 0 && audit.Status != 2 {
		t.Errorf("ended with status %d:\n%s%s", audit.Status, audit.Stdout, audit.Stderr)
	}
	type finding struct {
		Algorithm string `json:"algorithm"`
		Notes     struct {
			Fail []string `json:"fail"`
		} `json:"notes"`
	}
	var found struct {
		Kex, Key, Enc, Mac []finding
		Cves               []any
	}
	if err := json.Unmarshal([]byte(report), &found); err != nil {
		t.Fatalf("read the report: %v\n%s", err, report)
	}
	if len(found.Kex) == 0 || len(found.Key) == 0 || len(found.Enc) == 0 {
		t.Fatalf("nothing was looked at:\n%s", report)
	}
	for _, all := range [][]finding{found.Kex, found.Key, found.Enc, found.Mac} {
		for _, f := range all {
			if len(f.Notes.Fail) > 0 {
				t.Errorf("%s: %q", f.Algorithm, f.Notes.Fail)
			}
		}
	}
	if len(found.Cves) > 0 {
		t.Errorf("vulnerable: %v", found.Cves)
	}
	if !strings.Contains(report, "kex-strict-s-v00@openssh.com") {
		t.Error("strict key exchange is not offered: the front is open to Terrapin")
	}
}
