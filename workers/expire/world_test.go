package expire_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/retain"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/expire"
)

const size = pg.DefaultSegmentSize

// errKilled is what a process that is dead gets of its storage.
var errKilled = errors.New("the process was killed")

// killer is a store whose process dies at a call: later calls of any store of
// the process do nothing.
type killer struct {
	storage.Bucket
	life *life
}

// life counts the calls of one process over all its stores.
type life struct {
	mu    sync.Mutex
	calls int
	// at is the call at which it dies; 0 is never.
	at  int
	how death
	err error // nil is errKilled
	// broken is that only this call fails.
	once bool
}

type death int

const (
	before death = iota // the call does nothing
	half                // a deletion removes every second object
	after               // the call is done, and the answer lost
)

// next counts a call; dying is that it is the last, dead that it comes later.
func (l *life) next() (dying, dead bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	return l.calls == l.at, l.at > 0 && l.calls > l.at && !l.once
}

func (l *life) died() error {
	if l.err != nil {
		return l.err
	}
	return errKilled
}

func (k *killer) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	if dying, dead := k.life.next(); dying || dead {
		return nil, k.life.died()
	}
	return k.Bucket.Open(ctx, name, rng)
}

func (k *killer) Stat(ctx context.Context, name string) (storage.Info, error) {
	if dying, dead := k.life.next(); dying || dead {
		return storage.Info{}, k.life.died()
	}
	return k.Bucket.Stat(ctx, name)
}

func (k *killer) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	dying, dead := k.life.next()
	return func(yield func(storage.Info, error) bool) {
		n := 0
		for info, err := range k.Bucket.List(ctx, prefix, opt) {
			if dead || dying && (k.life.how == before || n > 3) {
				break
			}
			if n++; !yield(info, err) {
				return
			}
		}
		if dying || dead {
			yield(storage.Info{}, k.life.died())
		}
	}
}

func (k *killer) Delete(ctx context.Context, names ...string) error {
	dying, dead := k.life.next()
	switch {
	case dead || dying && k.life.how == before:
		return k.life.died()
	case dying && k.life.how == half:
		var some []string
		for i := 0; i < len(names); i += 2 {
			some = append(some, names[i])
		}
		return errors.Join(k.Bucket.Delete(ctx, some...), k.life.died())
	case dying:
		return errors.Join(k.Bucket.Delete(ctx, names...), k.life.died())
	}
	return k.Bucket.Delete(ctx, names...)
}

// world is a cluster's storages and what was put there. It knows what backups
// need, and nothing of plans.
type world struct {
	t       testing.TB
	now     time.Time
	stores  map[string]*mem.Bucket
	tl      pg.Timeline
	next    int // the next segment
	path    []place
	backups map[catalog.BackupID]*made
	foreign map[string][]string // by store
}

// place is one segment of the cluster's history, which is a line.
type place struct {
	tl pg.Timeline
	n  int
	at time.Time
}

type made struct {
	id          catalog.BackupID
	first, last int // in path
	parent      *made
	objects     []string
	listed      bool
	permanent   bool
	at          time.Time
}

func newWorld(t testing.TB) *world {
	w := &world{
		t: t, now: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), tl: 1, next: 1,
		stores: map[string]*mem.Bucket{}, backups: map[catalog.BackupID]*made{}, foreign: map[string][]string{},
	}
	for _, name := range []string{"default", "spare"} {
		w.stores[name] = mem.NewAt(func() time.Time { return w.now })
	}
	for store, names := range map[string][]string{
		"default": {"basebackups_005/notes.txt", "wal_005/README", "elsewhere/base_000000010000000000000001/metadata.json", "000000010000000000000001"},
		"spare":   {"wal_005/000000010000000000000001.txt"},
	} {
		for _, n := range names {
			w.put(store, n, "foreign")
		}
		w.foreign[store] = names
	}
	return w
}

func (w *world) put(store, key, content string) {
	if _, err := w.stores[store].Put(context.Background(), key, strings.NewReader(content), storage.PutOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) has(store, key string) bool {
	_, err := w.stores[store].Stat(context.Background(), key)
	return err == nil
}

func walKey(tl pg.Timeline, n int) string {
	return repo.WALKey(pg.SegmentAt(tl, uint64(n), size).String() + ".lz4")
}

// archive stores segments, an hour each.
func (w *world) archive(store string, count int) {
	for range count {
		w.put(store, walKey(w.tl, w.next), "wal")
		w.path = append(w.path, place{w.tl, w.next, w.now})
		w.next++
		w.now = w.now.Add(time.Hour)
	}
}

// promote starts the next timeline in the next segment.
func (w *world) promote(store string) {
	old := w.tl
	w.tl++
	text := ""
	for tl := pg.Timeline(1); tl <= old; tl++ {
		end := w.next
		for i, p := range w.path {
			if p.tl == tl+1 {
				end = w.path[i].n
				break
			}
		}
		text += fmt.Sprintf("%d\t%s\tno reason\n\n", tl, pg.LSN(uint64(end)*uint64(size)))
	}
	w.put(store, repo.WALKey(w.tl.HistoryFile()), text)
	w.archive(store, 1)
}

// backup makes one of two segments; without a parent a full one, without a
// sentinel a failed one.
func (w *world) backup(store string, parent *made, listed bool) *made {
	first := w.next
	b := &made{first: len(w.path), parent: parent, listed: listed}
	seg := pg.SegmentAt(w.tl, uint64(first), size)
	start := w.now
	w.archive(store, 2)
	b.last = len(w.path) - 1
	name, members := pg.FullBackupName(seg), ""
	if parent != nil {
		name = pg.IncrementName(seg, parent.id.Name)
		pseg, _ := parent.id.Name.Segment()
		members = fmt.Sprintf(`"DeltaLSN":%d,"DeltaFrom":%q,"DeltaFullName":%q,"DeltaCount":1,`, pseg.Number(size)*uint64(size)+0x28, parent.id.Name, parent.id.Name)
	}
	b.id = catalog.BackupID{Storage: store, Folder: catalog.BaseBackups, Name: name}
	lsn, end := uint64(first)*uint64(size)+0x28, uint64(first+1)*uint64(size)+0x100
	object := func(k catalog.Kind, part, content string) {
		key := b.id.Key(k, part)
		w.put(store, key, content)
		b.objects = append(b.objects, key)
	}
	for i := range 3 {
		object(catalog.PartObject, fmt.Sprintf("part_%03d.tar.lz4", i+1), "tar")
	}
	w.now = w.now.Add(time.Minute)
	if listed {
		object(catalog.FilesObject, "", "{}")
		object(catalog.MetadataObject, "", w.metadata(lsn, end, start, false))
		object(catalog.SentinelObject, "", fmt.Sprintf(`{"LSN":%d,%s"FinishLSN":%d,"Version":2}`, lsn, members, end))
	}
	b.at = w.now
	w.now = w.now.Add(time.Minute)
	w.backups[b.id] = b
	return b
}

func (w *world) metadata(lsn, end uint64, start time.Time, permanent bool) string {
	return fmt.Sprintf(`{"start_time":%q,"finish_time":%q,"start_lsn":%d,"finish_lsn":%d,"is_permanent":%v,"user_data":{"n":%d}}`,
		start.Format(time.RFC3339), w.now.Format(time.RFC3339), lsn, end, permanent, lsn)
}

// mark makes a backup and its chain permanent, as backup-mark does.
func (w *world) mark(b *made) {
	for ; b != nil; b = b.parent {
		seg, _ := b.id.Name.Segment()
		lsn := seg.Number(size) * uint64(size)
		w.put(b.id.Storage, b.id.Key(catalog.MetadataObject, ""), w.metadata(lsn+0x28, lsn+uint64(size)+0x100, w.path[b.first].at, true))
		b.permanent = true
	}
}

// copy puts a full backup into the other store under the same name.
func (w *world) copy(b *made, store string) *made {
	c := *b
	c.id.Storage, c.permanent, c.objects = store, false, nil
	for _, key := range b.objects {
		r, err := w.stores[b.id.Storage].Open(context.Background(), key, storage.Range{})
		if err != nil {
			w.t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			w.t.Fatal(err)
		}
		w.put(store, key, strings.ReplaceAll(string(data), `"is_permanent":true`, `"is_permanent":false`))
		c.objects = append(c.objects, key)
	}
	c.at = w.now
	w.backups[c.id] = &c
	return &c
}

// clone is the same world in stores of its own.
func (w *world) clone() *world {
	c := *w
	c.stores, c.backups = map[string]*mem.Bucket{}, maps.Clone(w.backups)
	for name, from := range w.stores {
		var at time.Time
		to := mem.NewAt(func() time.Time { return at })
		for info, err := range from.List(context.Background(), "", storage.ListOptions{}) {
			if err != nil {
				w.t.Fatal(err)
			}
			r, err := from.Open(context.Background(), info.Name, storage.Range{})
			if err != nil {
				w.t.Fatal(err)
			}
			at = info.Modified
			if _, err := to.Put(context.Background(), info.Name, r, storage.PutOptions{}); err != nil {
				w.t.Fatal(err)
			}
		}
		c.stores[name] = to
	}
	return &c
}

func (w *world) listed(b *made) bool {
	return b.listed && w.has(b.id.Storage, b.id.Key(catalog.SentinelObject, ""))
}

func (w *world) hasWAL(i int) bool {
	p := w.path[i]
	return w.has("default", walKey(p.tl, p.n)) || w.has("spare", walKey(p.tl, p.n))
}

// whole tells that a backup, its chain and the WAL it needs are all there.
func (w *world) whole(b *made) error {
	for i := b.first; i <= b.last; i++ {
		if !w.hasWAL(i) {
			return fmt.Errorf("%s: segment %s is missing", b.id, walKey(w.path[i].tl, w.path[i].n))
		}
	}
	for c := b; c != nil; c = c.parent {
		for _, o := range c.objects {
			if !w.has(c.id.Storage, o) {
				return fmt.Errorf("%s: %s is missing", b.id, o)
			}
		}
	}
	return nil
}

// reach is how far in path recovery from b comes; -1 if nowhere.
func (w *world) reach(b *made) int {
	if !w.listed(b) || w.whole(b) != nil {
		return -1
	}
	i := b.first
	for i < len(w.path) && w.hasWAL(i) {
		i++
	}
	return i - 1
}

// reachable are the places that some backup's recovery comes to.
func (w *world) reachable() map[int]bool {
	out := map[int]bool{}
	for _, b := range w.backups {
		if to := w.reach(b); to >= 0 {
			for i := b.last; i <= to; i++ {
				out[i] = true
			}
		}
	}
	return out
}

// promises is what must hold after any deletion, whole or cut, that began now.
type promises struct {
	whole map[catalog.BackupID]bool
	young map[catalog.BackupID]bool
	reach map[catalog.BackupID]int
}

func (w *world) promises() promises {
	p := promises{map[catalog.BackupID]bool{}, map[catalog.BackupID]bool{}, map[catalog.BackupID]int{}}
	for id, b := range w.backups {
		switch {
		case w.listed(b):
			p.whole[id] = w.whole(b) == nil
			p.reach[id] = w.reach(b)
		case !b.listed && w.now.Sub(b.at) < retain.DefaultSafetyAge && w.has(id.Storage, b.objects[0]):
			p.young[id] = true
		}
	}
	return p
}

// check holds what is left against the promises.
func (w *world) check(p promises) error {
	for id, b := range w.backups {
		switch {
		case p.whole[id] && w.listed(b):
			if err := w.whole(b); err != nil {
				return fmt.Errorf("listed and not whole: %w", err)
			}
			// What is kept for an increment's sake needs to be consistent.
			if !b.permanent && !w.base(b) && w.reach(b) < p.reach[id] {
				return fmt.Errorf("%s reaches segment %d of the history, and did %d", id, w.reach(b), p.reach[id])
			}
		case p.whole[id] && b.permanent:
			return fmt.Errorf("the permanent %s is gone", id)
		case p.young[id]:
			for _, o := range b.objects {
				if !w.has(id.Storage, o) {
					return fmt.Errorf("%s, which may be in the making, lacks %s", id, o)
				}
			}
		}
	}
	for store, names := range w.foreign {
		for _, n := range names {
			if !w.has(store, n) {
				return fmt.Errorf("the unrelated %s is gone", n)
			}
		}
	}
	return nil
}

// base tells that a listed backup is built on b, or what is left of one whose
// deletion was cut: it may be in the making, so b is kept for its sake.
func (w *world) base(b *made) bool {
	for _, c := range w.backups {
		if c.parent == b && (w.listed(c) || slices.ContainsFunc(c.objects, func(o string) bool { return w.has(c.id.Storage, o) })) {
			return true
		}
	}
	return false
}

// names lists all objects of all stores.
func (w *world) names() (all []string) {
	for _, store := range slices.Sorted(maps.Keys(w.stores)) {
		for info, err := range w.stores[store].List(context.Background(), "", storage.ListOptions{}) {
			if err != nil {
				w.t.Fatal(err)
			}
			all = append(all, store+":"+info.Name)
		}
	}
	return all
}

// work deletes in the world as a process with that life.
func (w *world) work(l *life) *expire.Work {
	work := &expire.Work{
		Scanner: expire.Scanner{
			Size: size, Readers: 1, Logger: slog.New(slog.DiscardHandler),
			Open: func(_ context.Context, stored io.Reader, ext string) (io.ReadCloser, error) {
				if ext != "" {
					return nil, errors.New("not compressed here")
				}
				return io.NopCloser(stored), nil
			},
		},
		Batch: 4, Now: func() time.Time { return w.now },
	}
	for _, name := range slices.Sorted(maps.Keys(w.stores)) {
		work.Stores = append(work.Stores, repo.New(&killer{w.stores[name], l}, name))
	}
	return work
}

func (w *world) delete(l *life, c expire.Command) (uint64, error) {
	return w.work(l).Do(context.Background(), c, func(*retain.Plan) error { return nil })
}

func command(line string) expire.Command {
	words := strings.Fields(line)
	c := expire.Command{Verb: words[0]}
	for _, word := range words[1:] {
		switch name, value, _ := strings.Cut(word, "="); name {
		case "--window":
			c.Flags.Window = value
		case "--after":
			c.Flags.After = value
		case "--without-backup-check":
			c.Flags.WithoutBackupCheck = true
		case "--use-sentinel-time":
			c.UseStartTime = true
		default:
			c.Words = append(c.Words, word)
		}
	}
	return c
}
