// Command bench measures walherd against the plain tools and, if
// REFERENCE_WALG names its binary, against WAL-G: whole processes, run in
// rotation (A B C A B C ...) on real PostgreSQL clusters it makes for the
// purpose, so that what the machine does meanwhile meets all alike. It prints
// Markdown: wall time, processor time and peak resident memory of each, and
// the ratio of the times within each round.
//
// What is called stages is measured otherwise: each compressor and crypter on
// one core beside its library (benchmarks of the packages themselves, which
// alone import the libraries), the stages from reader to an S3 server each
// alone and all together, in this process; and listings and removals on S3 as
// whole processes again.
//
// The page cache is left alone: everything is measured warm, which compares
// programs and not disks. Before each run dirty pages are written out. It
// fails when a command fails, or when a result is not what it must be; it has
// no opinion on how long anything took.
//
// Everything lies below one temporary directory in /var/tmp, which is removed
// at the end. A full run takes about 8 GB there, --memory 14 GB.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"syscall"

	"github.com/walherd/walherd/producer/pgtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "walherd bench: FAILED: %v\n", err)
		os.Exit(1)
	}
}

// options are the bench's flags.
type options struct {
	binary, reference string
	scale, random     int
	runs, calls       int
	memory, cold      bool
	gigabytes, files  int
	only              *regexp.Regexp
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	opt := options{reference: os.Getenv("REFERENCE_WALG")}
	var only string
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&opt.binary, "bin", "bin/walherd", "walherd binary (make build)")
	fs.IntVar(&opt.scale, "scale", 100, "pgbench scale of the compressible cluster: about 15 MB each")
	fs.IntVar(&opt.random, "random", 1000, "size of the hardly compressible cluster in MB")
	fs.IntVar(&opt.runs, "runs", 5, "rounds of backup-push and backup-fetch")
	fs.IntVar(&opt.calls, "calls", 20, "rounds of wal-push and wal-fetch")
	fs.StringVar(&only, "only", "", "run the measurements whose names match this expression (see the headings; \"stages\" is one)")
	fs.BoolVar(&opt.memory, "memory", false, "measure memory against size and number of files as well")
	fs.BoolVar(&opt.cold, "cold", false, "empty the page cache before each increment (as root)")
	fs.IntVar(&opt.gigabytes, "gigabytes", 10, "the larger size in GB for --memory")
	fs.IntVar(&opt.files, "files", 200_000, "the number of small files for --memory")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var err error
	if opt.only, err = regexp.Compile(only); err != nil {
		return fmt.Errorf("read --only: %w", err)
	}
	if min(opt.scale, opt.random, opt.runs, opt.calls, opt.gigabytes, opt.files) < 1 || fs.NArg() > 0 {
		return fmt.Errorf("read flags: numbers start at 1, and there are no arguments")
	}
	if err := forgetSettings(); err != nil {
		return err
	}
	logf := func(format string, a ...any) { fmt.Fprintf(stderr, format+"\n", a...) }
	return pgtest.Do("bench", logf, func(t pgtest.TB) error {
		b, err := newBench(ctx, t, opt, stdout, logf)
		if err != nil {
			return err
		}
		cache := "Warm page cache"
		if opt.cold {
			cache = "Increments with an empty page cache, the rest with a warm one"
		}
		fmt.Fprintf(stdout, "%d processors (%s/%s), %s. %s, all files on one file system.\n",
			runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), cache)
		if opt.reference == "" {
			fmt.Fprintln(stdout, "No WAL-G: set REFERENCE_WALG to its binary to have it in the rotation.")
		}
		return b.run()
	})
}

// forgetSettings removes from the environment what would lead walherd or
// WAL-G to a storage, a broker or a collector of the user's.
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
