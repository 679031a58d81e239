package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/walherd/walherd/engine/pg"
)

// figures are what the demo measured; sizes in bytes.
type figures struct {
	database, read, stored int64
	push, fetch, recovery  time.Duration
	segments               int
	// meanPush is of whole wal-push processes that archived a segment.
	meanPush time.Duration
}

// readTimes reads the lines that archive_command wrote: file name,
// nanoseconds, exit code.
func (f *figures) readTimes(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the times of wal-push: %w", err)
	}
	var sum time.Duration
	f.segments = 0
	for line := range strings.Lines(string(text)) {
		var name string
		var ns int64
		var code int
		if _, err := fmt.Sscan(line, &name, &ns, &code); err != nil {
			return fmt.Errorf("read the times of wal-push: line %q: %w", line, err)
		}
		if code != 0 {
			return fmt.Errorf("archive %s: wal-push exited with code %d", name, code)
		}
		if kind, _ := pg.ClassifyWALFile(name); kind == pg.SegmentFile {
			f.segments++
			sum += time.Duration(ns)
		}
	}
	if f.segments == 0 {
		return fmt.Errorf("read the times of wal-push: no segment in %s", path)
	}
	f.meanPush = sum / time.Duration(f.segments)
	return nil
}

func (f *figures) print(w io.Writer, opt options) {
	method := opt.compression
	if opt.encryption != encryptionNone {
		method += ", " + opt.encryption
	}
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.AppendRows([]table.Row{
		{"databases", size(f.database)},
		{"backup-push, under load", seconds(f.push)},
		{"backup, stored", fmt.Sprintf("%s of %s (%.1f : 1, %s)", size(f.stored), size(f.read), float64(f.read)/float64(f.stored), method)},
		{"WAL segments archived", f.segments},
		{"wal-push, mean", fmt.Sprintf("%.0f ms", float64(f.meanPush)/1e6)},
		{"backup-fetch", seconds(f.fetch)},
		{"start, recovery, promotion", seconds(f.recovery)},
	})
	fmt.Fprintln(w, t.Render())
}
