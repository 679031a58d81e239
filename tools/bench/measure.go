package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/walherd/walherd/producer/pgtest"
)

// contender is one command of a measurement.
type contender struct {
	name string
	// script is run by bash with pipefail, so that a failing stage fails
	// the run and the processor time of all stages counts.
	script string
	env    []string
	// out is made empty before every run; what the run leaves there must
	// be at least wantBytes, and is counted as stored if count is set.
	out       string
	wantBytes int64
	count     bool
	// before is run untimed by bash, after out was made empty.
	before string
	// cold: with an empty page cache.
	cold bool
}

// rotate runs the contenders in turn and prints the table. The first is
// walherd, which the others are compared with.
func (b *bench) rotate(c *pgtest.Cluster, title string, rounds int, list []contender) error {
	samples := make([][]sample, len(list))
	names := make([]string, len(list))
	for round := range rounds {
		for i, x := range list {
			b.logf("%s: round %d of %d: %s", title, round+1, rounds, x.name)
			s, err := b.measure(c, x)
			if err != nil {
				return fmt.Errorf("measure %s: %s: %w", title, x.name, err)
			}
			samples[i] = append(samples[i], s)
			names[i] = x.name
		}
	}
	report(b.stdout, title, names, samples)
	return nil
}

// measure runs one contender once.
func (b *bench) measure(c *pgtest.Cluster, x contender) (sample, error) {
	if err := os.RemoveAll(x.out); err != nil {
		return sample{}, fmt.Errorf("remove the last result: %w", err)
	}
	c.Run("mkdir", "-p", x.out)
	if x.before != "" {
		c.Run("/bin/bash", "-c", "set -eo pipefail; "+x.before)
	}
	// What another run left to be written would be paid by this one.
	syscall.Sync()
	if x.cold {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
			return sample{}, fmt.Errorf("empty the page cache: %w", err)
		}
	}
	cmd := c.Command(b.ctx, "/bin/bash", "-c", "set -o pipefail; "+x.script)
	cmd.Env = append(cmd.Env, x.env...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	if err != nil {
		return sample{}, fmt.Errorf("%w\n%s", err, tail(output.String()))
	}
	s, err := usage(cmd)
	if err != nil {
		return sample{}, err
	}
	s.wall = wall
	size, err := treeSize(x.out)
	if err != nil {
		return sample{}, err
	}
	if size < x.wantBytes || size == 0 {
		return sample{}, fmt.Errorf("it left %d bytes in %s, want at least %d", size, x.out, x.wantBytes)
	}
	if x.count {
		s.stored = size
	}
	return s, nil
}

// usage reads what the process and its children took. The kernel counts the
// memory of this program up to exec as the child's, so that a peak below some
// 20 MiB means nothing.
func usage(cmd *exec.Cmd) (sample, error) {
	ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return sample{}, errors.New("read the resources it used: unknown system")
	}
	return sample{
		cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(),
		rss: ru.Maxrss << 10, // Linux counts in KiB
	}, nil
}

func tail(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// treeSize is the sum of the sizes of the files below dir.
func treeSize(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		sum += fi.Size()
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return sum, nil
}
