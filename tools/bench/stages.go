package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/walherd/walherd/producer/pgtest"
)

// The titles of what stages measures.
const (
	titleStages   = "stages, each alone on one core"
	titlePipeline = "stages, the pipeline to S3"
)

const (
	// stageScale bounds the cluster whose files the stages work on: 400 MB
	// show what there is to see.
	stageScale = 25
	// stageSample is how much of it each codec packs, in pieces from all
	// over it: the slow ones make 15 MB a second.
	stageSample = 24 << 20
)

// stages measures compressors and crypters beside their libraries, and the
// pipeline of all stages to a real S3 server, on the files of a cluster that
// pgbench has filled and then worked on.
func (b *bench) stages(t pgtest.TB) error {
	var pipelines []string
	for _, c := range combos() {
		pipelines = append(pipelines, c.title())
	}
	if !b.selected(append(pipelines, titleStages)...) {
		return nil
	}
	scale := min(b.opt.scale, stageScale)
	b.logf("making a cluster: pgbench scale %d, with traffic", scale)
	c := pgtest.New(t, quiet(), pgtest.WithOwnSystemID())
	c.Run("pgbench", "-i", "-q", "-s", strconv.Itoa(scale))
	c.Run("pgbench", "-n", "-c", "4", "-t", "2500")
	c.SQL("CHECKPOINT")
	dir := pgtest.TempDir(t)
	corpus := filepath.Join(dir, "corpus")
	c.Run("/bin/bash", "-c", "set -eo pipefail; "+tar(c)+" > "+corpus)
	c.Stop(pgtest.Fast)
	if b.selected(titleStages) {
		if err := b.codecs(corpus); err != nil {
			return err
		}
	}
	if b.selected(pipelines...) {
		return b.pipelines(dir, corpus)
	}
	return nil
}

// codecs runs the benchmarks that engine/compress and engine/seal have for the
// purpose. They lie there because only those packages import the libraries.
func (b *bench) codecs(corpus string) error {
	sample := corpus + ".sample"
	if err := writeSample(sample, corpus, stageSample); err != nil {
		return err
	}
	defer os.Remove(sample)
	type testBinary struct{ path, dir string }
	var binaries []testBinary
	for _, pkg := range []string{"compress", "seal"} {
		path := "github.com/walherd/walherd/engine/" + pkg
		dir, err := b.output(exec.CommandContext(b.ctx, "go", "list", "-f", "{{.Dir}}", path))
		if err != nil {
			return err
		}
		binary := corpus + "." + pkg + ".test"
		if _, err := b.output(exec.CommandContext(b.ctx, "go", "test", "-c", "-o", binary, path)); err != nil {
			return err
		}
		defer os.Remove(binary)
		binaries = append(binaries, testBinary{binary, strings.TrimSpace(dir)})
	}
	rates := map[string][]float64{}
	for round := range b.opt.runs {
		for _, bin := range binaries {
			b.logf("%s: round %d of %d: %s", titleStages, round+1, b.opt.runs, filepath.Base(bin.dir))
			cmd := exec.CommandContext(b.ctx, bin.path, "-test.run", "^$", "-test.bench", "^BenchmarkStage$", "-test.cpu", "1", "-test.benchtime", "200ms")
			cmd.Dir = bin.dir
			cmd.Env = append(os.Environ(), "WALHERD_BENCH_CORPUS="+sample)
			out, err := b.output(cmd)
			if err != nil {
				return err
			}
			one, err := readBench(strings.NewReader(out), "MB/core-s")
			if err != nil {
				return err
			}
			for name, v := range one {
				rates[name] = append(rates[name], v)
			}
		}
	}
	return reportCodecs(b.stdout, b.opt.runs, rates)
}

// output runs a command and gives what it prints.
func (b *bench) output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w\n%s", strings.Join(cmd.Args, " "), err, tail(stdout.String()+stderr.String()))
	}
	return stdout.String(), nil
}

// reportCodecs writes the table from rates by Stage/METHOD/DIRECTION/WHO, who
// being ours or library, of the same rounds in the same order.
func reportCodecs(w io.Writer, rounds int, rates map[string][]float64) error {
	t := table.NewWriter()
	t.AppendHeader(table.Row{"stage", "direction", "ours MB/s, median (min-max)", "library MB/s", "ours / library"})
	for _, name := range slices.Sorted(maps.Keys(rates)) {
		stage, ok := strings.CutSuffix(name, "/ours")
		if !ok {
			continue
		}
		raw := rates[stage+"/library"]
		if len(raw) != len(rates[name]) {
			return fmt.Errorf("report %s: %d rounds of ours, %d of the library", stage, len(rates[name]), len(raw))
		}
		share := make([]float64, len(raw))
		for i := range raw {
			share[i] = rates[name][i] / raw[i]
		}
		method, direction, _ := strings.Cut(strings.TrimPrefix(stage, "Stage/"), "/")
		t.AppendRow(table.Row{method, direction, spreadOf(rates[name]).format("%.0f"), spreadOf(raw).format("%.0f"), spreadOf(share).format("%.2f")})
	}
	if t.Length() == 0 {
		return errors.New("report stages: no figures")
	}
	fmt.Fprintf(w, "\n### %s (%d rounds)\n\n%s\n\n"+
		"MB of plain data by second of processor time, GOMAXPROCS=1, the collector's time included; tar of a pgbench cluster after\n"+
		"traffic, %d MB from all over it, in memory. The library is its own stream writer or reader with the same parameters (lz4, zstd,\n"+
		"brotli, lzma, openpgp, envelope); for libsodium ChaCha20-Poly1305 and for the key services AES-256-GCM, in place, without any\n"+
		"stream. Ratios are of neighbours within a round: above 1 ours is faster.\n",
		titleStages, rounds, t.RenderMarkdown(), stageSample>>20)
	return nil
}

// writeSample writes size bytes of from, in pieces at even distances.
func writeSample(to, from string, size int64) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("make a sample: %w", err)
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return fmt.Errorf("make a sample: %w", err)
	}
	const piece = 1 << 20
	var out []byte
	for n := range size / piece {
		at := fi.Size() * n * piece / size
		part, err := io.ReadAll(io.NewSectionReader(in, at, piece))
		if err != nil {
			return fmt.Errorf("make a sample: %w", err)
		}
		out = append(out, part...)
	}
	if err := os.WriteFile(to, out, 0o600); err != nil {
		return fmt.Errorf("make a sample: %w", err)
	}
	return nil
}
