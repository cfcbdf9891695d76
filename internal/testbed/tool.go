package testbed

import "testing"

// NeedTool returns where a command is, and installs the Debian package that has it if
// it is missing. It fails the test where that is not possible.
func NeedTool(t testing.TB, command, pkg string) string {
	t.Helper()
	path, err := lookPath(command)
	if err == nil {
		return path
	}
	if err := installPackages(t.Context(), pkg); err != nil {
		t.Fatal(err)
	}
	if path, err = lookPath(command); err != nil {
		t.Fatal(err)
	}
	return path
}
