package s3_test

import (
	"testing"

	"go.uber.org/goleak"
)

// No test may leave a goroutine: of an upload, of read-ahead, of a watch.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
