package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/changes"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/producer/basebackup"
	"github.com/walherd/walherd/workers/changemap"
)

// errNoMaps is the answer of a process that stores WAL and keeps no maps.
var errNoMaps = errors.New("no change maps are kept where WAL is stored (set WALG_USE_WAL_DELTA=true there)")

// walChanges is the first line of an answer; the map follows, if there is one.
type walChanges struct {
	Next     string `json:"next,omitempty"`
	Segments int    `json:"segments,omitempty"`
	Made     int    `json:"made,omitempty"`
	// Error is why there is no answer.
	Error string `json:"error,omitempty"`
}

// archivedChanges finds the maps of archived WAL for an increment: in this
// process's storages, or by asking a worker.
func (a *app) archivedChanges(f *fleet) basebackup.ArchivedChanges {
	if f.storages != nil {
		return localChanges{a, f.storages}
	}
	return remoteChanges{a, f}
}

type localChanges struct {
	a      *app
	stores *storages
}

// Collect implements basebackup.ArchivedChanges.
func (c localChanges) Collect(ctx context.Context, from, to pg.LSN, h wal.History) (*changes.Map, pg.LSN, error) {
	res, err := c.a.collectChanges(ctx, c.stores, changemap.Range{From: from, To: to, History: h, SegmentSize: c.a.segmentSize()})
	return res.Map, res.Next, err
}

type remoteChanges struct {
	a *app
	f *fleet
}

// Collect implements basebackup.ArchivedChanges.
func (c remoteChanges) Collect(ctx context.Context, from, to pg.LSN, h wal.History) (*changes.Map, pg.LSN, error) {
	pr, pw := io.Pipe()
	go func() {
		pw.CloseWithError(c.a.askInto(ctx, c.f, pw, "wal-changes", "--from="+from.String(), "--to="+to.String(), "--history="+historyFlag(h)))
	}()
	defer pr.Close() // ends the asking
	r := bufio.NewReader(pr)
	line, err := r.ReadBytes('\n')
	var head walChanges
	if err == nil {
		err = json.Unmarshal(line, &head)
	}
	if err == nil && head.Error != "" {
		return nil, 0, errors.New(head.Error)
	}
	var next pg.LSN
	if err == nil {
		next, err = pg.ParseLSN(head.Next)
	}
	var m *changes.Map
	if err == nil && head.Segments > 0 {
		m, err = changes.Read(r)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("ask a worker for change maps: %w", err)
	}
	return m, next, nil
}

// collectChanges merges the maps in the storages. An increment is based on what
// this process is set to keep, so maps of a time before are not looked for.
func (a *app) collectChanges(ctx context.Context, stores *storages, want changemap.Range) (changemap.Result, error) {
	if !a.set.Postgres.UseWALDelta {
		return changemap.Result{}, errNoMaps
	}
	repos, err := stores.readers(ctx)
	if err != nil {
		return changemap.Result{}, err
	}
	codec, err := a.codec(ctx)
	if err != nil {
		return changemap.Result{}, err
	}
	c := changemap.Collector{Repos: repos, Codec: codec, Layout: a.changesLayout(), Logger: a.log}
	return c.Collect(ctx, want)
}

// changesLayout is how the servers cut their relations. Files of another size
// than a gigabyte are no setting; where a server has such, its own layout
// differs and maps are not used.
func (a *app) changesLayout() changes.Layout {
	return changes.Layout{PageSize: uint32(a.set.Postgres.BlockSize)}
}

// walChangesCommand is what a worker runs for a host that takes an increment
// and has no storage.
func (a *app) walChangesCommand() *cobra.Command {
	var from, to, history string
	cmd := &cobra.Command{
		Use: "wal-changes", Short: "Print the merged change map of archived WAL", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if err := a.start(ctx, cmd); err != nil {
				return err
			}
			want := changemap.Range{SegmentSize: a.segmentSize()}
			var err error
			if want.From, err = pg.ParseLSN(from); err != nil {
				return fmt.Errorf("--from: %w", err)
			}
			if want.To, err = pg.ParseLSN(to); err != nil {
				return fmt.Errorf("--to: %w", err)
			}
			if want.History, err = parseHistoryFlag(history); err != nil {
				return fmt.Errorf("--history: %w", err)
			}
			stores, err := a.openStorages(ctx, false, false)
			if err != nil {
				return err
			}
			defer stores.close()
			res, err := a.collectChanges(ctx, stores, want)
			head := walChanges{Next: res.Next.String(), Segments: res.Segments, Made: res.Made}
			if err != nil {
				head = walChanges{Error: err.Error()}
			}
			line, err := json.Marshal(head)
			if err != nil {
				return fmt.Errorf("encode the answer: %w", err)
			}
			// In large pieces: each is a message.
			out := bufio.NewWriterSize(a.stdout, 256<<10)
			out.Write(append(line, '\n')) // bufio keeps the first failure
			if res.Map != nil {
				if err := res.Map.Write(out); err != nil {
					return err
				}
			}
			return out.Flush()
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "position from which changes are wanted")
	f.StringVar(&to, "to", "", "position up to which they are wanted")
	f.StringVar(&history, "history", "", "timelines and where each ended: 1@0/3000000,2@0/5000000,3")
	return a.ask(cmd)
}

// historyFlag writes a history without the reasons, which are free text.
func historyFlag(h wal.History) string {
	var b strings.Builder
	for _, s := range h.Switches {
		fmt.Fprintf(&b, "%d@%s,", uint32(s.Timeline), s.LSN)
	}
	fmt.Fprint(&b, uint32(h.Timeline))
	return b.String()
}

func parseHistoryFlag(text string) (wal.History, error) {
	fields := strings.Split(text, ",")
	var tl uint32
	if _, err := fmt.Sscanf(fields[len(fields)-1], "%d", &tl); err != nil {
		return wal.History{}, fmt.Errorf("%w: %q has no timeline at its end", wal.ErrHistory, text)
	}
	var file bytes.Buffer
	for _, f := range fields[:len(fields)-1] {
		file.WriteString(strings.ReplaceAll(f, "@", "\t") + "\t\n")
	}
	return wal.ParseHistory(pg.Timeline(tl), file.Bytes())
}
