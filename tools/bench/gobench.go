package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// readBench reads one metric from the output of go test -bench, in Go's
// benchmark format (go.dev/design/14313-benchmark-format): a line has the
// benchmark's name, the count of iterations, and pairs of value and unit. The
// result is by name without "Benchmark"; the number of processors is cut off
// where it is told.
func readBench(r io.Reader, unit string) (map[string]float64, error) {
	out := map[string]float64{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, ok := strings.CutPrefix(lines.Text(), "Benchmark")
		f := strings.Fields(name)
		if !ok || len(f) < 4 {
			continue
		}
		name = f[0]
		if at := strings.LastIndexByte(name, '-'); at > 0 {
			if _, err := strconv.Atoi(name[at+1:]); err == nil {
				name = name[:at]
			}
		}
		for i := 2; i+1 < len(f); i += 2 {
			if f[i+1] != unit {
				continue
			}
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, fmt.Errorf("read benchmark %s: %w", name, err)
			}
			out[name] = v
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read benchmarks: %w", err)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("read benchmarks: none tells its %s", unit)
	}
	return out, nil
}
