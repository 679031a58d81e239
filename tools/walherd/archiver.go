package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/topology"
	producer "github.com/walherd/walherd/producer/archive"
)

// archiver is archive_command's work with everything the settings ask for:
// read-ahead, and the policy by which PostgreSQL is answered.
type archiver struct {
	app    *app
	pusher *producer.Pusher
	ahead  *producer.Ahead
	spool  *producer.Spool // nil unless PostgreSQL is told "queued"
}

// archiver makes one for the WAL directory dir. resident is for a process that
// answers many asks. The caller closes it.
func (a *app) archiver(ctx context.Context, f *fleet, dir string, resident bool) (*archiver, error) {
	p := &archiver{app: a, pusher: &producer.Pusher{
		Bus: f.bus, Carrier: f.carrier, Cluster: f.cluster, Logger: a.log, Tracer: a.tracer,
		SegmentSize: a.segmentSize(), KeepExisting: a.set.Postgres.PreventWALOverwrite, Timeout: a.set.Walherd.WALPushTimeout,
	}}
	if m := a.set.Postgres.UploadWALMetadata; m != "NOMETADATA" {
		p.pusher.Metadata = messages.WALMetadata(m)
	}
	if a.set.Walherd.WALAck == producer.AckQueued {
		if err := p.acknowledgeQueued(ctx, f); err != nil {
			return nil, err
		}
	}
	p.ahead = producer.NewAhead(producer.AheadOptions{
		Push: p.pusher.Push, Dir: dir, SegmentSize: a.segmentSize(),
		Concurrency: a.set.General.UploadConcurrency, Limit: a.set.General.TotalBGUploadedLimit,
		Room: p.room(f), ReadyRename: a.set.Postgres.ReadyRename, Resident: resident, Timeout: a.set.Walherd.WALPushTimeout, Logger: a.log,
	})
	return p, nil
}

// acknowledgeQueued proves that the broker can be trusted with WAL that
// PostgreSQL no longer has, and opens this host's copy of it.
func (p *archiver) acknowledgeQueued(ctx context.Context, f *fleet) (err error) {
	w := &p.app.set.Walherd
	if f.embedded != nil {
		return errors.New("WALHERD_WAL_ACK=queued: the broker inside this command keeps nothing: set WALHERD_NATS_URL, or WALHERD_WAL_ACK=stored")
	}
	if w.SpoolDir == "" {
		return errors.New("WALHERD_WAL_ACK=queued: set WALHERD_SPOOL_DIR to a directory on a disk of this host: it keeps a copy of what is not stored yet")
	}
	risks, err := producer.ParseRisks(w.WALAckAccept)
	if err != nil {
		return err
	}
	p.spool, err = producer.OpenSpool(producer.SpoolOptions{
		Dir: w.SpoolDir, MaxBytes: int64(w.SpoolMaxBytes), Cluster: f.cluster, Logger: p.app.log,
	})
	if err != nil {
		return err
	}
	p.pusher.Ack, err = producer.ProveQueued(ctx, f.bus, p.spool, risks)
	return err
}

// reserve is how many segments of the queue read-ahead leaves to the files that
// PostgreSQL asks for: this host's and, on a broker of several, another's.
const reserve = 2

// room tells whether the broker can hold one more file beside those that are
// being shipped, and the reserve. nil where bytes are not queued.
func (p *archiver) room(f *fleet) func(ctx context.Context, shipping int) bool {
	if f.embedded != nil {
		return nil
	}
	// A chunk's headers count, too.
	segment := int64(p.app.segmentSize()) + int64(p.app.segmentSize())/64
	return func(ctx context.Context, shipping int) bool {
		s, err := f.bus.StreamState(ctx, topology.StreamWAL)
		if err != nil {
			p.app.log.Warn("look for room in the queue; nothing is shipped ahead", telemetry.KeyError, err)
			return false
		}
		return s.MaxBytes == 0 || s.MaxBytes-int64(s.Bytes) >= segment*int64(shipping+1+reserve)
	}
}

// push archives one file and says what became of it.
func (p *archiver) push(ctx context.Context, path string) error {
	got, err := p.ahead.Push(ctx, path)
	switch {
	case err != nil:
		return err
	case got.Equal:
		p.app.log.Info(fmt.Sprintf("%s is already archived with equal content, skipping", got.Name))
	case got.Queued:
		p.app.log.Info("queued: " + got.Name)
	default:
		p.app.log.Info("FILE PATH: " + cmp.Or(got.Object, got.Name))
	}
	return nil
}

// run looks after the spool in the background, in a process that lives, until
// the returned function is called.
func (p *archiver) run(ctx context.Context) (stop func()) {
	if p.spool == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.spool.Run(ctx, p.pusher); err != nil {
			p.app.log.Error("the spool is not looked after", telemetry.KeyError, err)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// settle looks after the spool once, in a process that ends.
func (p *archiver) settle(ctx context.Context) {
	if p.spool == nil {
		return
	}
	if err := p.spool.Settle(ctx, p.pusher); err != nil {
		p.app.log.Warn("the spool is not up to date", telemetry.KeyError, err)
	}
}

func (p *archiver) close() { p.ahead.Close() }

// readyCount is how many files PostgreSQL is waiting to have archived, up to
// most. A directory that is no pg_wal has none.
func readyCount(walDir string, most int) int {
	d, err := os.Open(filepath.Join(walDir, "archive_status"))
	if err != nil {
		return 0
	}
	defer d.Close()
	n := 0
	for n < most {
		names, err := d.Readdirnames(256)
		for _, name := range names {
			if strings.HasSuffix(name, ".ready") {
				n++
			}
		}
		if err != nil {
			break
		}
	}
	return min(n, most)
}

// pushWAL is one archive_command.
func (a *app) pushWAL(ctx context.Context, path string) error {
	// The one thing a typing mistake breaks; no broker is needed to see it.
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("archive %s: %w", filepath.Base(path), err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("archive %s: %w", path, err)
	}
	dir := filepath.Dir(abs)
	// A slot costs a question to the broker, and most asks are for one file.
	most := min(a.set.General.UploadConcurrency, a.set.General.TotalBGUploadedLimit)
	a.set.Walherd.WALSlots = max(1, readyCount(dir, most))
	f, err := a.connect(ctx, roleProducer, messages.KindArchive)
	if err != nil {
		return err
	}
	defer f.close(ctx, a.log)
	p, err := a.archiver(ctx, f, dir, false)
	if err != nil {
		return err
	}
	defer p.close()
	p.settle(ctx)
	defer a.missWorkers(ctx, f, a.set.Walherd.WALPushTimeout)()
	return p.push(ctx, abs)
}
