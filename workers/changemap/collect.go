package changemap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/changes"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/intake"
)

// ErrMissing: more segments are archived without a map than are read to make
// one.
var ErrMissing = errors.New("archived WAL without change maps")

// Range is the WAL whose changes are wanted.
type Range struct {
	// From and To are the start LSNs of two backups.
	From, To pg.LSN
	// History of the timeline that To is on.
	History     wal.History
	SegmentSize pg.SegmentSize
}

// segment names the archived file that holds a position, as a server with that
// history has it: the first segment of a timeline begins with a copy of its
// parent's.
func (r Range) segment(at pg.LSN) pg.SegmentName {
	n := at.Segment(r.History.Timeline, r.SegmentSize)
	n.Timeline = r.History.At(n.Next(r.SegmentSize).Start(r.SegmentSize) - 1)
	return n
}

// Collector merges the maps of a range.
type Collector struct {
	// Repos are the storages that can be read, in the order in which a
	// restore asks them.
	Repos []*repo.Repo
	Codec intake.Codec
	// Layout of the server.
	Layout changes.Layout
	Logger *slog.Logger
	// Repairs is how many segments without a map may be read to make one.
	// 0 is 16.
	Repairs int
}

// Result is what Collect found.
type Result struct {
	// Map of the segments from that of Range.From on; nil if not even that one
	// is archived.
	Map *changes.Map
	// Next is the beginning of the first segment that is not in it.
	Next pg.LSN
	// Segments is how many are in it, Made those whose map was missing.
	Segments, Made int
}

// batch is how many maps are in memory at a time, loaders how many are loaded
// side by side.
const (
	batch   = 64
	loaders = 8
)

// Collect merges the maps of the segments that lie before Range.To as a whole,
// as far as the archive goes without a hole: the rest is where the server is. A
// map that is missing or damaged is made anew from its segment, and stored, up
// to Repairs times; then it is ErrMissing.
func (c *Collector) Collect(ctx context.Context, want Range) (Result, error) {
	res := Result{Next: want.segment(want.From).Start(want.SegmentSize)}
	err := want.SegmentSize.Validate()
	if err == nil && (want.To < want.From || want.History.Timeline == 0) {
		err = errors.New("not a range")
	}
	if err == nil {
		err = c.collect(ctx, want, &res)
	}
	if err != nil {
		return Result{}, fmt.Errorf("collect change maps from %s to %s: %w", want.From, want.To, err)
	}
	return res, nil
}

func (c *Collector) collect(ctx context.Context, want Range, res *Result) error {
	found, err := c.list(ctx, want)
	if err != nil {
		return err
	}
	job := collection{Collector: c, repairs: int64(cmp.Or(c.Repairs, 16))}
	for len(found) > 0 {
		n := min(batch, len(found))
		maps := make([]*changes.Map, n)
		group, gctx := errgroup.WithContext(ctx)
		group.SetLimit(loaders)
		for i := range n {
			group.Go(func() (err error) {
				maps[i], err = job.load(gctx, found[i])
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for i, m := range maps {
			if res.Map == nil {
				res.Map = m
			} else if err := res.Map.Merge(m); err != nil {
				return fmt.Errorf("%s: %w", found[i].name, err)
			}
			res.Next = found[i].name.Next(want.SegmentSize).Start(want.SegmentSize)
		}
		res.Segments += n
		found = found[n:]
	}
	res.Made = int(job.made.Load())
	return nil
}

// archived is a segment as the listings show it.
type archived struct {
	name pg.SegmentName
	in   *repo.Repo
	// The stored segment, and its map; no key: there is none.
	key, ext       string
	modified       time.Time
	mapKey, mapExt string
	mapModified    time.Time
}

// list finds the archived segments of the range, up to the first that is in no
// storage.
func (c *Collector) list(ctx context.Context, want Range) ([]archived, error) {
	var out []archived
	at := want.segment(want.From)
	for {
		// What has the same 16 digits is one listing: timeline and four
		// gigabytes of WAL.
		last := at
		var names []pg.SegmentName
		for n := at; n.Next(want.SegmentSize).Start(want.SegmentSize) <= want.To && prefix(n) == prefix(at); {
			names, last = append(names, n), n
			n = want.segment(n.Next(want.SegmentSize).Start(want.SegmentSize))
		}
		if len(names) == 0 {
			return out, nil
		}
		known := map[pg.SegmentName]archived{}
		for _, r := range c.Repos {
			if err := listOne(ctx, r, names[0], last, known); err != nil {
				return nil, err
			}
		}
		for _, n := range names {
			a, ok := known[n]
			if !ok {
				return out, nil
			}
			out = append(out, a)
		}
		at = want.segment(last.Next(want.SegmentSize).Start(want.SegmentSize))
	}
}

func prefix(n pg.SegmentName) string { return n.String()[:16] }

// listOne adds what storage r has and no storage before it.
func listOne(ctx context.Context, r *repo.Repo, first, last pg.SegmentName, known map[pg.SegmentName]archived) error {
	here := map[pg.SegmentName]*archived{}
	for info, err := range r.Bucket().List(ctx, repo.WALKey(prefix(first)), storage.ListOptions{}) {
		if err != nil {
			return fmt.Errorf("list WAL in storage %s: %w", r.Name(), err)
		}
		o := catalog.Classify(info.Name)
		ext, isMap := strings.CutPrefix(o.Suffix, Suffix)
		if o.Kind != catalog.SegmentObject && (o.Kind != catalog.CompanionObject || !isMap) || o.Segment.Compare(first) < 0 || o.Segment.Compare(last) > 0 {
			continue
		}
		a := here[o.Segment]
		if a == nil {
			a = &archived{name: o.Segment, in: r}
			here[o.Segment] = a
		}
		ext = strings.TrimPrefix(ext, ".")
		// Of the same in several forms the newest counts.
		switch {
		case isMap && (a.mapKey == "" || info.Modified.After(a.mapModified)):
			a.mapKey, a.mapExt, a.mapModified = info.Name, ext, info.Modified
		case !isMap && (a.key == "" || info.Modified.After(a.modified)):
			a.key, a.ext, a.modified = info.Name, ext, info.Modified
		}
	}
	for name, a := range here {
		if _, ok := known[name]; !ok && a.key != "" {
			known[name] = *a
		}
	}
	return nil
}

// collection is one Collect under way.
type collection struct {
	*Collector
	repairs int64
	made    atomic.Int64
}

// load reads a segment's map, or makes it.
func (c *collection) load(ctx context.Context, a archived) (*changes.Map, error) {
	why := errors.New("there is none")
	switch {
	case a.mapKey == "":
	case a.mapModified.Before(a.modified):
		why = errors.New("it is older than the segment")
	default:
		m, err := c.read(ctx, a)
		if err == nil || ctx.Err() != nil {
			return m, err
		}
		why = err
	}
	if c.made.Add(1) > c.repairs {
		return nil, fmt.Errorf("%w: %s and %d others (the map of this one: %w)", ErrMissing, a.name, c.repairs, why)
	}
	m, err := c.scan(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("make the change map of %s (%w): %w", a.name, why, err)
	}
	c.Logger.Debug("made a change map from an archived segment", telemetry.KeySegment, a.name, "reason", why)
	if err := store(ctx, a.in, c.Codec, a.name, m); err != nil {
		c.Logger.Debug("the change map is not kept", telemetry.KeySegment, a.name, telemetry.KeyError, err)
	}
	return m, nil
}

func (c *collection) read(ctx context.Context, a archived) (m *changes.Map, err error) {
	err = c.open(ctx, a.in, a.mapKey, a.mapExt, func(r io.Reader) error {
		m, err = changes.Read(r)
		return err
	})
	if err != nil {
		return nil, err
	}
	if m.Layout() != c.layout() {
		return nil, fmt.Errorf("%s: %w: %+v", a.mapKey, changes.ErrLayout, m.Layout())
	}
	return m, nil
}

// scan makes the map of an archived segment.
func (c *collection) scan(ctx context.Context, a archived) (m *changes.Map, err error) {
	err = c.open(ctx, a.in, a.key, a.ext, func(r io.Reader) error {
		m, err = changes.Scan(r, changes.ScanOptions{Layout: c.Layout, Timeline: a.name.Timeline, MaxRecord: maxRecord})
		return err
	})
	return m, err
}

// open has a stored object read to its end.
func (c *collection) open(ctx context.Context, in *repo.Repo, key, ext string, read func(io.Reader) error) error {
	stored, err := in.OpenObject(ctx, key, storage.Range{})
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	defer stored.Close()
	plain, err := c.Codec.Open(ctx, stored, ext)
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	defer plain.Close()
	if err := read(plain); err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	// What came is proven at the end only.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	return nil
}

// layout has the zero fields filled in.
func (c *collection) layout() changes.Layout {
	l := c.Layout
	l.PageSize = cmp.Or(l.PageSize, 8192)
	l.FileBlocks = cmp.Or(l.FileBlocks, 1<<30/l.PageSize)
	return l
}
