package low

import "os"

var _ = os.Args
