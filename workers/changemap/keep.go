package changemap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/walherd/walherd/engine/changes"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/intake"
)

// Suffix follows a segment's name in that of its map.
const Suffix = "_changes"

const (
	// maxRecord bounds what a map holds of a record that its segment cuts in
	// two: only logical messages are longer, and a range with one is not
	// covered.
	maxRecord = 4 << 20
	// ahead is how many chunks a scan may be behind the archiving.
	ahead = 4
	// putLimit bounds the storing of one map.
	putLimit = 2 * time.Minute
	// underWay is how many maps may be on their way to the storage.
	underWay = 16
)

// Keeper makes the maps of segments that are being archived, and stores them.
// It is safe for concurrent use.
type Keeper struct {
	codec  intake.Codec
	layout changes.Layout
	log    *slog.Logger

	bufs    sync.Pool
	slots   chan struct{}
	running sync.WaitGroup
}

// NewKeeper makes a Keeper that stores maps with codec. layout is that of the
// servers whose WAL comes.
func NewKeeper(codec intake.Codec, layout changes.Layout, log *slog.Logger) *Keeper {
	return &Keeper{codec: codec, layout: layout, log: log, slots: make(chan struct{}, underWay)}
}

// Scan is the scan of one segment while it is archived. The nil Scan does
// nothing.
type Scan struct {
	k      *Keeper
	name   pg.SegmentName
	chunks chan []byte
	once   sync.Once
	ended  chan struct{} // chunks is closed and read to its end

	whole bool // every chunk came
	m     *changes.Map
	err   error
}

// Begin starts the scan of the WAL file called name: nil if that is no
// segment, or k is nil. It is to be given to Keep, or to be dropped by Drop.
func (k *Keeper) Begin(name string) *Scan {
	if k == nil {
		return nil
	}
	seg, err := pg.ParseSegmentName(name)
	if err != nil {
		return nil
	}
	s := &Scan{k: k, name: seg, chunks: make(chan []byte, ahead), ended: make(chan struct{})}
	go s.run()
	return s
}

func (s *Scan) run() {
	defer close(s.ended)
	in := &chunkReader{s: s}
	s.err = service.Catch(func() (err error) {
		s.m, err = changes.Scan(in, changes.ScanOptions{Layout: s.k.layout, Timeline: s.name.Timeline, MaxRecord: maxRecord})
		return err
	})
	// Whatever has become of it, the archiving is not to wait for a reader.
	in.release()
	for buf := range s.chunks {
		s.k.put(buf)
	}
}

func (k *Keeper) put(buf []byte) { k.bufs.Put(&buf) }

// copyOf copies a chunk, which is valid until the next only.
func (k *Keeper) copyOf(chunk []byte) []byte {
	buf, ok := k.bufs.Get().(*[]byte)
	if !ok || cap(*buf) < len(chunk) {
		return bytes.Clone(chunk)
	}
	*buf = (*buf)[:len(chunk)]
	copy(*buf, chunk)
	return *buf
}

// chunkReader is the scan's input.
type chunkReader struct {
	s         *Scan
	buf, left []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		r.release()
		buf, ok := <-r.s.chunks
		if !ok {
			return 0, io.EOF
		}
		r.buf, r.left = buf, buf
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

func (r *chunkReader) release() {
	if r.buf != nil {
		r.s.k.put(r.buf)
	}
	r.buf, r.left = nil, nil
}

// Tap passes what in yields on, and has it scanned. Only one transfer of a
// segment can be tapped.
func (s *Scan) Tap(in transit.Receiver) transit.Receiver {
	if s == nil {
		return in
	}
	return &tap{Receiver: in, s: s}
}

type tap struct {
	transit.Receiver
	s *Scan
}

// Next implements transit.Receiver.
func (t *tap) Next(ctx context.Context) ([]byte, error) {
	chunk, err := t.Receiver.Next(ctx)
	switch {
	case err == nil:
		t.s.chunks <- t.s.k.copyOf(chunk)
	case errors.Is(err, io.EOF):
		t.s.whole = true
		t.s.end()
	}
	return chunk, err
}

func (s *Scan) end() { s.once.Do(func() { close(s.chunks) }) }

// Drop gives the scan up. After Keep it does nothing.
func (s *Scan) Drop() {
	if s != nil {
		s.end()
		<-s.ended
	}
}

// Keep stores the map of a segment that was stored in where, behind the caller's
// back: see Close. It waits while too many maps are under way.
func (s *Scan) Keep(ctx context.Context, where *repo.Repo) {
	if s == nil {
		return
	}
	k := s.k
	s.Drop()
	if !s.whole || where == nil {
		return // it was stored before, and the map with it
	}
	if s.err != nil {
		k.log.Warn("no change map is kept of a segment", telemetry.KeySegment, s.name, telemetry.KeyError, s.err)
		return
	}
	select {
	case k.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	ctx = context.WithoutCancel(ctx)
	k.running.Go(func() {
		defer func() { <-k.slots }()
		if err := service.Catch(func() error { return store(ctx, where, k.codec, s.name, s.m) }); err != nil {
			k.log.Warn("no change map is kept of a segment", telemetry.KeySegment, s.name, telemetry.KeyError, err)
		}
	})
}

// Close waits for the maps under way, until ctx ends. No more may come.
func (k *Keeper) Close(ctx context.Context) error {
	if k == nil {
		return nil
	}
	done := make(chan struct{})
	go func() { k.running.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("store change maps: %w", context.Cause(ctx))
	}
}

// store puts a segment's map beside it.
func store(ctx context.Context, where *repo.Repo, codec intake.Codec, name pg.SegmentName, m *changes.Map) error {
	ctx, cancel := context.WithTimeout(ctx, putLimit)
	defer cancel()
	var b bytes.Buffer
	if err := m.Write(&b); err != nil {
		return err
	}
	object := name.String() + Suffix + codec.Extension()
	_, err := intake.Store(ctx, &given{b.Bytes()}, codec, func(body io.Reader) error {
		_, err := where.PutWAL(ctx, object, body, storage.PutOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("store %s: %w", object, err)
	}
	return nil
}

// given is a transfer of bytes at hand.
type given struct{ left []byte }

// Next implements transit.Receiver.
func (g *given) Next(context.Context) ([]byte, error) {
	if len(g.left) == 0 {
		return nil, io.EOF
	}
	b := g.left
	g.left = nil
	return b, nil
}

// Close implements transit.Receiver.
func (*given) Close() {}
