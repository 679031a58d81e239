package sftp_test

import (
	"testing"

	"go.uber.org/goleak"
)

// No test may leave a goroutine: of a connection, of read-ahead, of a request
// nobody waits for.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
