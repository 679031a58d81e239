// Command pgmatrix installs the PostgreSQL servers of every supported version
// that its package-lock.json pins, once, below the directory for temporary files
// that last, and prints where they are. Tests run against those that are
// installed.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/walherd/walherd/tools/pgmatrix/matrix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	bins, err := matrix.Install(ctx)
	if err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "pgmatrix:", err)
		os.Exit(1)
	}
	for _, major := range slices.Sorted(maps.Keys(bins)) {
		fmt.Println(major, bins[major])
	}
}
