package s3test

import (
	"context"

	"github.com/walherd/walherd/storage/storagetest/pinned"
)

var tool = pinned.Tool{
	Name: "S3 server", Module: "s3server", Package: "github.com/versity/versitygw/cmd/versitygw", Env: "WALHERD_S3_SERVER",
}

// Build gives the path of the server's binary: $WALHERD_S3_SERVER, else the
// one in the user's cache directory, which it builds when there is none for
// the pinned version and this Go.
func Build(ctx context.Context) (string, error) { return tool.Build(ctx) }
