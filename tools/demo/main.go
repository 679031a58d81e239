// Command demo shows, on this machine and in about a minute, that a
// PostgreSQL cluster archived by walherd comes back: it makes a real cluster,
// backs it up while it is being written to, destroys it, restores it and
// compares. It prints every step as it happens and fails (exit code 1, with
// what differed) when anything is not as it was.
//
// With --storage s3 the storage is a real S3 server that it starts; with that,
// another compression or an encryption it also reads what was stored with
// others' programs alone (libsodium through a few lines of C, gpg, zstd, tar,
// cmp) before it destroys the cluster.
//
// Everything lies below one temporary directory, which is removed at the end
// and on an interrupt; --keep leaves it. As root, PostgreSQL and walherd run
// as the operating system's user postgres, since PostgreSQL refuses root. The
// demo takes no settings from its environment, so that it never reaches a
// storage or a broker that is in use.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/walherd/walherd/producer/pgtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "walherd demo: FAILED: %v\n", err)
		os.Exit(1)
	}
	fmt.Println("walherd demo: passed")
}

// options are the demo's flags.
type options struct {
	binary string
	scale  int
	write  time.Duration
	keep   bool

	storage, compression, encryption string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var opt options
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&opt.binary, "bin", "bin/walherd", "walherd binary (make build)")
	fs.IntVar(&opt.scale, "scale", 10, "pgbench scale: about 15 MB of data each")
	fs.DurationVar(&opt.write, "write", 5*time.Second, "how long to go on writing after the backup")
	fs.BoolVar(&opt.keep, "keep", false, "leave the restored cluster and the storage behind")
	fs.StringVar(&opt.storage, "storage", storageFile, "where the backup goes: file (a directory) or s3 (a server the demo starts)")
	fs.StringVar(&opt.compression, "compression", "lz4", "lz4, zstd, brotli, lzma or none")
	fs.StringVar(&opt.encryption, "encryption", encryptionNone, "none, libsodium or openpgp, with a key of the demo's own")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if opt.scale < 1 || fs.NArg() > 0 {
		return fmt.Errorf("read flags: want a scale of at least 1 and no arguments")
	}
	if err := opt.check(); err != nil {
		return err
	}
	if err := forgetSettings(); err != nil {
		return err
	}
	logf := func(format string, a ...any) { fmt.Fprintf(stderr, format+"\n", a...) }
	return pgtest.Do("demo", logf, func(t pgtest.TB) error {
		d, err := newDemo(ctx, t, opt, stdout)
		if err != nil {
			return err
		}
		return d.run()
	})
}

// forgetSettings removes from the environment what would lead walherd to a
// storage, a broker or a collector of the user's. (pgtest does the same for
// PostgreSQL's own variables.)
func forgetSettings() error {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		for _, p := range []string{"WALG_", "WALE_", "WALHERD_", "NATS_", "OTEL_", "AWS_"} {
			if !strings.HasPrefix(name, p) || name == "WALHERD_PG_BIN" {
				continue
			}
			if err := os.Unsetenv(name); err != nil {
				return fmt.Errorf("clear %s from the environment: %w", name, err)
			}
		}
	}
	return nil
}
