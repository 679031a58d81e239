package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/storage/s3/s3test"
)

const (
	titleList   = "stages, listing 100,000 objects on S3"
	titleDelete = "stages, deleting 10,000 objects on S3"

	// objectRounds is how often each is done, at most: the server reads the
	// whole folder for each thousand names it lists.
	objectRounds = 3
)

// objects measures what a listing and a removal of many objects take, whole
// processes: requests, time and memory.
func (b *bench) objects(t pgtest.TB) (err error) {
	if !b.selected(titleList, titleDelete) {
		return nil
	}
	const listed, deleted = 100_000, 10_000
	b.logf("making a bucket: %d and %d objects", listed, deleted)
	dir := pgtest.TempDir(t)
	server, err := s3test.Run(b.ctx, dir, s3test.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if err := server.MakeBucket("bench"); err != nil {
		return err
	}
	front, err := newCounter(server.Endpoint)
	if err != nil {
		return err
	}
	defer front.Close()
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "WALG_S3_PREFIX=s3://bench/main", "AWS_ENDPOINT=" + front.URL, "AWS_S3_FORCE_PATH_STYLE=true",
		"AWS_ACCESS_KEY_ID=" + server.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + server.SecretAccessKey, "AWS_REGION=" + server.Region,
	}
	// A file in the server's directory is an object: planting them by
	// requests would take minutes.
	main := filepath.Join(dir, "data", "bench", "main")
	if b.selected(titleList) {
		if err := plantObjects(filepath.Join(main, "wal_005"), listed); err != nil {
			return err
		}
		if err := b.manyObjects(titleList, front, env, listed, func() error { return nil }, "st", "ls", "wal_005"); err != nil {
			return err
		}
	}
	if !b.selected(titleDelete) {
		return nil
	}
	doomed := filepath.Join(main, "doomed")
	return b.manyObjects(titleDelete, front, env, 0, func() error { return plantObjects(doomed, deleted) }, "st", "rm", "doomed/")
}

// manyObjects runs a command of walherd in rounds, and of WAL-G if it is there.
// The output must have at least lines lines.
func (b *bench) manyObjects(title string, front *counter, env []string, lines int, before func() error, args ...string) error {
	t := table.NewWriter()
	t.AppendHeader(table.Row{"command", "requests", "wall s, median (min-max)", "CPU s", "peak MiB"})
	samples := map[string][]sample{}
	requests := map[string]string{}
	rounds := min(b.opt.runs, objectRounds)
	for round := range rounds {
		for _, p := range b.programs {
			b.logf("%s: round %d of %d: %s", title, round+1, rounds, p.name)
			if err := before(); err != nil {
				return err
			}
			front.take()
			cmd := exec.CommandContext(b.ctx, p.path, args...)
			cmd.Env = env
			var stderr strings.Builder
			var out lineCounter
			cmd.Stdout, cmd.Stderr = &out, &stderr
			start := time.Now()
			err := cmd.Run()
			wall := time.Since(start)
			if err != nil {
				return fmt.Errorf("measure %s: %s: %w\n%s", title, p.name, err, tail(stderr.String()))
			}
			if int(out) < lines {
				return fmt.Errorf("measure %s: %s told %d lines, want %d", title, p.name, int(out), lines)
			}
			s, err := usage(cmd)
			if err != nil {
				return err
			}
			s.wall = wall
			samples[p.name] = append(samples[p.name], s)
			requests[p.name] = front.take()
		}
	}
	for _, p := range b.programs {
		s := samples[p.name]
		t.AppendRow(table.Row{
			p.name + " " + strings.Join(args, " "), requests[p.name], spreadOf(column(s, wallSeconds)).format("%.2f"),
			fmt.Sprintf("%.2f", spreadOf(column(s, func(s sample) float64 { return s.cpu.Seconds() })).median),
			fmt.Sprintf("%.0f", spreadOf(column(s, func(s sample) float64 { return float64(s.rss) / (1 << 20) })).max),
		})
	}
	fmt.Fprintf(b.stdout, "\n### %s (%d rounds)\n\n%s\n", title, rounds, t.RenderMarkdown())
	return nil
}

// plantObjects makes n small objects with names of WAL segments.
func plantObjects(dir string, n int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("plant objects: %w", err)
	}
	for i := range n {
		name := fmt.Sprintf("%08X%08X%08X.lz4", 1, i/256, i%256)
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644); err != nil {
			return fmt.Errorf("plant objects: %w", err)
		}
	}
	return nil
}

// lineCounter counts the lines written to it.
type lineCounter int

func (c *lineCounter) Write(p []byte) (int, error) {
	*c += lineCounter(strings.Count(string(p), "\n"))
	return len(p), nil
}

// counter is a proxy in front of a store that counts the requests.
type counter struct {
	*httptest.Server

	mu   sync.Mutex
	seen map[string]int // by method
}

func newCounter(backend string) (*counter, error) {
	target, err := url.Parse(backend)
	if err != nil {
		return nil, fmt.Errorf("count requests: %w", err)
	}
	c := &counter{seen: map[string]int{}}
	forward := &httputil.ReverseProxy{
		ErrorLog: log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			// The host is part of the signature, so it stays.
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = target.Scheme, target.Host, r.In.Host
			r.Out.Header["X-Forwarded-For"] = nil
		},
	}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.seen[r.Method]++
		c.mu.Unlock()
		forward.ServeHTTP(w, r)
	}))
	return c, nil
}

// take tells the requests since the last take, "3 (2 GET, 1 POST)".
func (c *counter) take() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := 0
	var kinds []string
	for _, method := range slices.Sorted(maps.Keys(c.seen)) {
		sum += c.seen[method]
		kinds = append(kinds, fmt.Sprintf("%d %s", c.seen[method], method))
	}
	c.seen = map[string]int{}
	return fmt.Sprintf("%d (%s)", sum, strings.Join(kinds, ", "))
}
