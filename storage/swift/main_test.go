package swift_test

import (
	"testing"

	"go.uber.org/goleak"
)

// No test may leave a goroutine: of an upload, of a watch, of the library.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
