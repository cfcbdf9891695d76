package proxy

import (
	"testing"

	"go.uber.org/goleak"
)

// Guards against goroutines that outlive the connections they worked for.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
