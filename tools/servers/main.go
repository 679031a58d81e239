// Command servers makes the servers of other projects that tests run against,
// where they are missing: each is built or installed once into the user's
// cache directory, which takes minutes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/walherd/walherd/messages/bustest/natstest"
	"github.com/walherd/walherd/storage/azure/azuretest"
	"github.com/walherd/walherd/storage/gcs/gcstest"
	"github.com/walherd/walherd/storage/s3/s3test"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	for _, build := range []func(context.Context) (string, error){s3test.Build, natstest.Build, gcstest.Build, azuretest.Install} {
		if _, err := build(ctx); err != nil {
			stop()
			fmt.Fprintln(os.Stderr, "servers:", err)
			os.Exit(1)
		}
	}
}
