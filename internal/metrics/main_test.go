package metrics

import (
	"testing"

	"go.uber.org/goleak"
)

// Guards against goroutines that outlive the server they worked for.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
