// Command s3run starts the S3 server of the tests with an empty bucket and
// prints the settings to use it, for trying walherd by hand.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/walherd/walherd/storage/s3/s3test"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "s3run:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "walherd-s3-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := s3test.Run(ctx, dir, s3test.Options{})
	if err != nil {
		return err
	}
	if err := s.MakeBucket("walherd"); err != nil {
		return err
	}
	fmt.Printf("export WALG_S3_PREFIX=s3://walherd/main AWS_ENDPOINT=%s AWS_S3_FORCE_PATH_STYLE=true\n", s.Endpoint)
	fmt.Printf("export AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s AWS_REGION=%s\n", s.AccessKeyID, s.SecretAccessKey, s.Region)
	fmt.Fprintln(os.Stderr, "running until interrupted; what it stores goes with it")
	<-ctx.Done()
	return s.Stop()
}
