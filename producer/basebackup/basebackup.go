// Package basebackup takes a full base backup of a local data directory: it
// opens the backup on the server, scans and plans, has workers store the parts
// through the queue, closes the backup, and asks a worker to commit it.
//
// Push returns nil when the backup is visible in storage and complete, WAL
// included where the server archives. With any error nothing is visible: the
// server has left backup mode, and objects that were stored have no sentinel.
package basebackup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/delta"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/producer/pgconn"
)

// Pusher takes backups. The fields without a zero value in their comment are
// required.
type Pusher struct {
	Bus     *bus.Bus
	Carrier transit.Carrier
	Conn    *pgconn.Conn
	Logger  *slog.Logger
	Tracer  trace.Tracer
	// Track is told the progress; nil is nobody. Scanned is called once with
	// the bytes that are to be read; nil is nobody.
	Track   Tracker
	Scanned func(bytes int64)

	Cluster messages.Cluster
	// DataDir must be the server's data directory, as seen from here.
	DataDir string
	// PGData, if not empty, must be the same directory: the PGDATA setting.
	PGData   string
	Hostname string
	// SegmentSize is what WALG_PG_WAL_SIZE says; the server must agree.
	SegmentSize pg.SegmentSize
	// Threshold closes a part above this many bytes. 0 is
	// pack.DefaultThreshold.
	Threshold int64
	// Readers is how many parts are read from disk side by side. 0 is 1.
	Readers int
	// ReadLimit bounds reading in bytes per second; 0 is unlimited.
	ReadLimit int64
	// AliveInterval is how often the session is checked; 0 is never.
	AliveInterval time.Duration
	// StopTimeout bounds closing the backup and, where the server archives,
	// the wait for the last WAL segment; 0 is unlimited.
	StopTimeout time.Duration
	// IdleTimeout fails the backup when a part makes no progress for so
	// long. 0 is 10 minutes.
	IdleTimeout time.Duration
	Permanent   bool
	UserData    manifest.UserData
	// NoFilesMetadata leaves files_metadata.json out.
	NoFilesMetadata bool
	// NoRelations leaves the names of databases and tables out of it.
	NoRelations bool
	// Parent is the backup to take an increment of; nil takes a full one.
	// Where an increment of it could not be restored rightly, a full backup
	// is taken, with a warning.
	Parent *Parent
	// Archived tells what archived WAL has changed since the parent, where
	// the server itself cannot; nil is nobody.
	Archived ArchivedChanges
	// ForceMap fails an increment rather than read all changed files.
	ForceMap bool

	// Composer says which files share a part; the zero value is Regular.
	Composer Composer
	// CopyOf is the full backup whose unchanged parts the composer Copy has
	// copied; nil, or one of another cluster, packs all anew.
	CopyOf *Parent
	// Verify checks the pages' checksums, if the cluster has them.
	// AllCorrupt keeps the numbers of all corrupt blocks instead of the first
	// verify.SomeBlocks of each file.
	Verify, AllCorrupt bool
}

// Result is a committed backup.
type Result struct {
	Name     pg.BackupName
	Sentinel *manifest.Sentinel
	Parts    int
}

// Why a backup is refused before it starts, for errors.Is.
var (
	ErrDataDirectory = errors.New("not the server's data directory")
	ErrSegmentSize   = errors.New("WAL segment size differs")
	ErrPromoted      = errors.New("timeline changed during the backup")
)

// Push takes one backup.
func (p *Pusher) Push(ctx context.Context) (Result, error) {
	ctx, span := p.Tracer.Start(ctx, "backup-push")
	defer span.End()
	res, err := p.push(ctx)
	span.SetAttributes(attribute.String(telemetry.KeyBackup, string(res.Name)))
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, "failed")
		p.event(ctx, messages.Event{What: messages.BackupFailed, Object: string(res.Name), Error: err.Error()})
	}
	return res, err
}

func (p *Pusher) push(ctx context.Context) (res Result, err error) {
	server, err := p.Conn.ServerInfo(ctx)
	if err != nil {
		return res, err
	}
	if err := p.checkServer(server); err != nil {
		return res, err
	}
	b := &backup{Pusher: p, server: server, started: time.Now()}
	if err := b.begin(ctx); err != nil {
		return Result{Name: b.name}, err
	}
	res.Name = b.name
	// The session is all that keeps the server in backup mode; whatever
	// happens, it does not outlive the backup. Its owner closes it.
	alive, stopAlive := p.Conn.AliveCheck(ctx, p.AliveInterval)
	defer stopAlive()
	b.run, err = startRun(ctx, &run{
		bus: p.Bus, carrier: p.Carrier, cluster: p.Cluster, backup: b.name, log: p.Logger,
		track: b.tracker(), idle: b.idle(),
	})
	if err != nil {
		return res, err
	}
	defer b.run.close()
	defer context.AfterFunc(alive, func() {
		if cause := context.Cause(alive); errors.Is(cause, pgconn.ErrSessionLost) {
			b.run.fail(cause)
		}
	})()
	if err := b.run.fits(b.parts); err != nil {
		return res, err
	}
	if err := b.storeParts(); err != nil {
		return res, err
	}
	stop, err := b.end(stopAlive)
	if err != nil {
		return res, err
	}
	res.Sentinel, err = b.commit(stop)
	res.Parts = len(b.objects)
	return res, err
}

func (p *Pusher) checkServer(server pgconn.ServerInfo) error {
	if err := cluster.Check(p.DataDir); err != nil {
		return err
	}
	same, err := sameDir(p.DataDir, server.DataDirectory)
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("%w: %s was named, the server at PGHOST/PGPORT uses %s", ErrDataDirectory, p.DataDir, server.DataDirectory)
	}
	if p.PGData != "" {
		if same, err := sameDir(p.PGData, p.DataDir); err != nil || !same {
			return fmt.Errorf("%w: %s was named, PGDATA says %s (unset PGDATA or make them agree)", ErrDataDirectory, p.DataDir, p.PGData)
		}
	}
	if server.SegmentSize != p.SegmentSize {
		return fmt.Errorf("%w: the server has %d MB, WALG_PG_WAL_SIZE says %d: set it to %d", ErrSegmentSize,
			server.SegmentSize>>20, p.SegmentSize>>20, server.SegmentSize>>20)
	}
	if !server.Archiving() {
		p.Logger.Warn("the server does not archive WAL: this backup can be restored only with the WAL kept otherwise", "archive_mode", server.ArchiveMode)
	}
	return nil
}

// sameDir compares two directories by what they are, not by their spelling.
func sameDir(a, b string) (bool, error) {
	ia, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	ib, err := os.Stat(b)
	if err != nil {
		return false, fmt.Errorf("the server's data directory is not on this host: %w", err)
	}
	return os.SameFile(ia, ib), nil
}

func (p *Pusher) event(ctx context.Context, e messages.Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	e.Cluster = p.Cluster
	data, err := messages.EncodeEvent(e, time.Now())
	if err == nil {
		_, err = p.Bus.Publish(ctx, messages.EventSubject(e.Cluster, e.What), nil, data)
	}
	if err != nil {
		p.Logger.Warn("publish event", "event", e.What, telemetry.KeyError, err)
	}
}

// backup is one backup under way.
type backup struct {
	*Pusher
	server  pgconn.ServerInfo
	started time.Time
	name    pg.BackupName
	start   pgconn.Start
	listing *cluster.Listing
	parts   []pack.Part
	run     *run

	databases map[string]pgconn.Database
	actions   []delta.Action // nil for a full backup
	changes   delta.ChangeMap

	copies []delta.Copy
	// ratings holds, by entry, the tuples written to its relation; nil unless
	// the composer is Rating.
	ratings []uint64

	mu           sync.Mutex
	damage       map[int32]pack.Damage
	objects      []messages.StoredObject
	tars         []tarSet // for files_metadata.json
	missing      map[int32]bool
	incremented  map[int32]bool
	uncompressed int64
	compressed   int64
}

// tarSet is what files_metadata.json says of one tar: entry numbers, or the
// names of a tar that is not made of entries.
type tarSet struct {
	object  string
	entries []int32
	names   []string
}

func (b *backup) tracker() Tracker {
	if b.Track == nil {
		return noTracker{}
	}
	return b.Track
}

func (b *backup) idle() time.Duration {
	if b.IdleTimeout == 0 {
		return 10 * time.Minute
	}
	return b.IdleTimeout
}

// begin puts the server into backup mode and plans.
func (b *backup) begin(ctx context.Context) (err error) {
	if !b.NoFilesMetadata && !b.NoRelations {
		// Before the backup starts, as the catalog is then at most newer than
		// what is named here.
		if b.databases, err = b.Conn.Databases(ctx); err != nil {
			return fmt.Errorf("list databases and tables: %w", err)
		}
	}
	b.Logger.Info("Calling pg_start_backup()")
	// The label's text is WAL-G's: the time, in Go's default form.
	b.start, err = b.Conn.StartBackup(ctx, b.started.String(), true)
	if err != nil {
		return err
	}
	if err := b.checkParent(); err != nil {
		return err
	}
	b.name = pg.FullBackupName(b.start.Segment)
	if b.Parent != nil {
		b.name = pg.IncrementName(b.start.Segment, b.Parent.Name)
	}
	b.Logger.Info(fmt.Sprintf("Started backup with name %s at LSN %s", b.name, b.start.LSN))
	b.event(ctx, messages.Event{What: messages.BackupStarted, Object: string(b.name)})
	var lost []error
	b.listing, err = cluster.Scan(ctx, b.DataDir, cluster.Options{Warn: func(w cluster.Warning) {
		switch {
		case w.Kind == cluster.CoreSymlink:
			lost = append(lost, errors.New(w.String()))
		case w.LosesData():
			b.Logger.Error(w.String())
		case w.Kind == cluster.Vanished:
			b.Logger.Debug(w.String())
		default:
			b.Logger.Warn(w.String())
		}
	}})
	if err != nil {
		return err
	}
	if len(lost) > 0 {
		// Such a backup would restore to a damaged cluster.
		return fmt.Errorf("scan %s: %w", b.DataDir, errors.Join(lost...))
	}
	if b.listing.Control == nil {
		return fmt.Errorf("scan %s: %w: global/pg_control is missing", b.DataDir, cluster.ErrNotCluster)
	}
	items, size := pack.Items(b.listing.Entries), b.listing.DataSize
	if b.Parent != nil {
		if items, size, err = b.planIncrement(ctx); err != nil {
			return err
		}
	}
	b.missing, b.incremented, b.damage = map[int32]bool{}, map[int32]bool{}, map[int32]pack.Damage{}
	if b.parts, err = b.compose(ctx, items); err != nil {
		return err
	}
	for _, c := range b.copies {
		size -= c.Part.Size // nobody reads it
	}
	if b.Verify && !b.server.DataChecksums {
		b.Logger.Warn("page checksums are not verified: the cluster has none (initdb --data-checksums, pg_checksums --enable)")
		b.Verify = false
	}
	if b.Scanned != nil {
		b.Scanned(size)
	}
	b.Logger.Debug("planned", "files", b.listing.Files, "directories", b.listing.Dirs, telemetry.KeyBytes, b.listing.DataSize, "parts", len(b.parts))
	return nil
}

// storeParts has every part stored, and then the control file: it is read
// last so that its checkpoint is not older than what the parts hold.
func (b *backup) storeParts() error {
	var limiter pack.Limiter
	if b.ReadLimit > 0 {
		limiter = rate.NewLimiter(rate.Limit(b.ReadLimit), int(b.ReadLimit)+pack.LimiterBurst)
	}
	owners := pack.SystemOwners()
	// A reader is busy until its part has been read, not until it is stored:
	// the next part is read while a worker still finishes this one.
	readers := make(chan struct{}, max(b.Readers, 1))
	copiers := make(chan struct{}, max(b.Readers, parallelCopies))
	err := service.Within(b.run.ctx, 0, func(ctx context.Context, pool *service.Scope) error {
		for _, c := range b.copies {
			select {
			case copiers <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			pool.Go(func(context.Context) error {
				return b.storePart(c.Name(), c.Part, b.source(c), copiers, owners, limiter)
			})
		}
		for _, part := range b.parts {
			select {
			case readers <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			pool.Go(func(context.Context) error {
				return b.storePart(part.Name(), part, copied{}, readers, owners, limiter)
			})
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, raw, err := cluster.ReadControl(b.run.ctx, b.listing.Root)
	if err != nil {
		return err
	}
	data, err := pack.ControlTar(*b.listing.Control, raw, owners)
	if err != nil {
		return err
	}
	got, err := b.run.store(&object{name: pack.ControlTarName, open: newMemory(data, int64(len(raw)))})
	if err != nil {
		return err
	}
	b.stored(got, tarSet{})
	return nil
}

// storePart has one part stored, or copied if from says so. Its slot among the
// readers is taken.
func (b *backup) storePart(name string, part pack.Part, from copied, readers <-chan struct{}, owners pack.OwnerNames, limiter pack.Limiter) error {
	free := sync.OnceFunc(func() { <-readers })
	defer free()
	if from.source == nil {
		b.Logger.Info(fmt.Sprintf("Starting part %d ...", part.Number))
	}
	got, err := b.run.store(&object{
		name:   name,
		size:   part.Size,
		read:   free,
		copy:   from.source,
		copied: from.report,
		open: func(alive func() error) (content, error) {
			files, err := b.opener(limiter, alive)
			if err != nil {
				return nil, err
			}
			return pack.NewStream(b.listing.Entries, part, files, pack.StreamOptions{Owners: owners, Limiter: limiter}), nil
		},
	})
	if err != nil {
		// The others wait for nothing any more.
		b.run.fail(err)
		return err
	}
	b.stored(got, tarSet{object: got.object, entries: part.Entries})
	if from.source == nil {
		b.Logger.Info(fmt.Sprintf("Finished writing part %d.", part.Number), telemetry.KeyBytes, got.size)
	} else {
		b.Logger.Info(fmt.Sprintf("Stored %s.", got.object), "from", string(from.source.Backup)+"/"+from.source.Object, telemetry.KeyBytes, got.size)
	}
	return nil
}

// stored notes an object; set names what it holds, for the list of files.
func (b *backup) stored(s stored, set tarSet) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.objects = append(b.objects, messages.StoredObject{Name: s.object, Size: s.size})
	if s.object == messages.FilesMetadata {
		return
	}
	b.uncompressed += s.EntryBytes
	b.compressed += s.size
	if set.object != "" {
		b.tars = append(b.tars, set)
	}
	for _, i := range s.Missing {
		b.missing[i] = true
	}
	for _, i := range s.Incremented {
		b.incremented[i] = true
	}
	for _, d := range s.Damage {
		b.noteDamage(d)
	}
}

// end closes the backup on the server, awaits its WAL, and stores the label.
func (b *backup) end(stopAlive func()) (pgconn.Stop, error) {
	stopAlive() // the session is used now
	ctx := b.run.ctx
	b.Logger.Info("Calling pg_stop_backup()")
	began := time.Now()
	stop, err := b.Conn.StopBackup(ctx, b.StopTimeout)
	if err != nil {
		return stop, b.notFinalized(stop, err)
	}
	wait, cancel := ctx, context.CancelFunc(func() {})
	if b.StopTimeout > 0 {
		wait, cancel = context.WithTimeoutCause(ctx, b.StopTimeout-time.Since(began),
			fmt.Errorf("WALG_STOP_BACKUP_TIMEOUT of %s is over", b.StopTimeout))
	}
	defer cancel()
	if err := b.Conn.ArchiveWait(wait, b.listing.Root, stop); err != nil {
		return stop, err
	}
	if b.start.InRecovery {
		now, err := b.Conn.Timeline(ctx)
		if err != nil {
			return stop, err
		}
		if now != b.start.Timeline {
			return stop, b.notFinalized(stop, fmt.Errorf("%w: from %d to %d", ErrPromoted, b.start.Timeline, now))
		}
	}
	return stop, b.storeLabel(stop)
}

func (b *backup) storeLabel(stop pgconn.Stop) error {
	data, err := pack.LabelTar([]byte(stop.Label), []byte(stop.TablespaceMap))
	if err != nil {
		return err
	}
	got, err := b.run.store(&object{name: pack.LabelTarName, open: newMemory(data, int64(len(stop.Label)+len(stop.TablespaceMap)))})
	if err != nil {
		return err
	}
	b.stored(got, tarSet{object: got.object, names: []string{pack.TablespaceMapName, pack.LabelName}})
	return nil
}

// commit stores the list of files and has a worker make the backup visible.
func (b *backup) commit(stop pgconn.Stop) (*manifest.Sentinel, error) {
	if err := b.storeFiles(); err != nil {
		return nil, err
	}
	s := b.sentinel(stop)
	sentinel, err := s.Encode()
	if err != nil {
		return nil, err
	}
	metadata, err := s.Metadata().Encode()
	if err != nil {
		return nil, err
	}
	err = b.run.commit(messages.CommitJob{Backup: b.name, Objects: b.objects, Metadata: metadata, Sentinel: sentinel})
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", b.name, err)
	}
	return s, nil
}

// storeFiles stores the list of files, if there is to be one.
func (b *backup) storeFiles() error {
	if b.NoFilesMetadata {
		return nil
	}
	got, err := b.run.store(&object{name: messages.FilesMetadata, open: newWritten(b.writeFiles)})
	if err == nil {
		b.stored(got, tarSet{})
	}
	return err
}

func (b *backup) sentinel(stop pgconn.Stop) *manifest.Sentinel {
	s := &manifest.Sentinel{
		LSN: &b.start.LSN, PgVersion: b.server.Version, FinishLSN: &stop.LSN, SystemIdentifier: &b.server.SystemID,
		UncompressedSize: b.uncompressed, CompressedSize: b.compressed, DataCatalogSize: b.listing.CatalogSize,
		UserData: b.UserData, FilesMetadataDisabled: b.NoFilesMetadata, StartTime: b.started, FinishTime: time.Now(),
		Hostname: b.Hostname, DataDir: b.listing.Root, IsPermanent: b.Permanent,
	}
	if p := b.Parent; p != nil {
		s.Increment = p.increment()
	}
	s.Files = b.corruptFiles()
	if len(b.listing.Tablespaces) > 0 {
		s.Spec = &manifest.TablespaceSpec{BasePrefix: filepath.Clean(b.listing.Root)}
		for _, t := range b.listing.Tablespaces {
			s.Spec.Tablespaces = append(s.Spec.Tablespaces, manifest.NewTablespace(t.OID, t.Location))
		}
	}
	return s
}

// writeFiles writes files_metadata.json, which is never held in memory.
func (b *backup) writeFiles(w io.Writer) error {
	fw := manifest.NewFilesWriter(w)
	for i := range b.listing.Entries {
		if b.missing[int32(i)] {
			continue
		}
		e := &b.listing.Entries[i]
		f := manifest.File{MTime: e.ModTime().Local(), IsIncremented: b.incremented[int32(i)], IsSkipped: b.skipped(int32(i))}
		if d := b.damage[int32(i)]; d.Corrupt > 0 {
			f.CorruptBlocks = &manifest.CorruptBlocks{Count: d.Corrupt, Some: d.Blocks}
		}
		if b.ratings != nil {
			f.UpdatesCount = b.ratings[i]
		}
		if err := fw.File(e.Name, f); err != nil {
			return err
		}
	}
	for _, t := range b.tars {
		if err := fw.Tar(t.object); err != nil {
			return err
		}
		for _, i := range t.entries {
			if err := fw.TarEntry(b.listing.Entries[i].Name); err != nil {
				return err
			}
		}
		for _, name := range t.names {
			if err := fw.TarEntry(name); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.databases)) {
		db := b.databases[name]
		if err := fw.Database(name, db.OID); err != nil {
			return err
		}
		for _, table := range slices.Sorted(maps.Keys(db.Tables)) {
			if err := fw.Table(table, manifestTable(db.Tables[table])); err != nil {
				return err
			}
		}
	}
	return fw.Close()
}

func manifestTable(t pgconn.Table) manifest.Table {
	out := manifest.Table{OID: t.OID, RelFileNode: t.RelFileNode, Owner: t.Owner}
	if len(t.Subtables) > 0 {
		out.Subtables = make(map[string]manifest.Table, len(t.Subtables))
		for name, sub := range t.Subtables {
			out.Subtables[name] = manifestTable(sub)
		}
	}
	return out
}
