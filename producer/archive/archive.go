// Package archive is archive_command's side of walherd: it checks a WAL file,
// hands its bytes and an archive job to the queue, and waits for a worker's
// word that the object is durable.
//
// It returns nil only then. Every other end (no broker, no worker, a full
// queue, a conflict, a timeout) is an error, PostgreSQL keeps the file and
// asks again, and asking again for a file that is stored already is success.
//
// Two things stand beside that. Ahead ships files before they are asked for.
// And where the broker is proven durable (ProveQueued), Push may return when
// the queue holds the file, while Spool keeps a copy on this host until a
// worker has stored it.
package archive

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/transit"
)

// ErrNotArchived marks every end of Push but success.
var ErrNotArchived = errors.New("not archived")

// Pusher archives WAL files. All fields but Timeout are required.
type Pusher struct {
	Bus     *bus.Bus
	Carrier transit.Carrier
	Cluster messages.Cluster
	Logger  *slog.Logger
	Tracer  trace.Tracer
	// SegmentSize of the cluster (WALG_PG_WAL_SIZE).
	SegmentSize pg.SegmentSize
	// Ack is when a file counts as archived; the zero value is when it is
	// stored.
	Ack Ack
	// KeepExisting refuses to replace an object with other content.
	KeepExisting bool
	// Metadata asks for a JSON object beside each archived file, or for 16.
	Metadata messages.WALMetadata
	// Timeout bounds one Push, so that the archiver never hangs. 0 is 5 min.
	Timeout time.Duration
}

// Push archives the file at path under its base name.
func (p *Pusher) Push(ctx context.Context, path string) (messages.ArchiveReply, error) {
	timeout := p.Timeout
	if timeout == 0 {
		timeout = 5 * time.Minute
	}
	missed := "no worker stored it"
	if p.Ack.Queued() {
		missed = "the broker did not take it"
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%s within %s", missed, timeout))
	defer cancel()
	name := filepath.Base(path)
	ctx, span := p.Tracer.Start(ctx, "wal-push", trace.WithAttributes(attribute.String(telemetry.KeySegment, name)))
	defer span.End()
	reply, err := p.push(ctx, path, name)
	if err != nil {
		span.RecordError(err)
		return reply, fmt.Errorf("archive %s: %w: %w", name, ErrNotArchived, err)
	}
	return reply, nil
}

func (p *Pusher) push(ctx context.Context, path, name string) (messages.ArchiveReply, error) {
	size, timeline, err := p.check(ctx, path, name)
	if err != nil {
		return messages.ArchiveReply{}, err
	}
	if p.Ack.Queued() {
		return p.enqueue(ctx, path, name)
	}
	reply := messages.ReplySubject(p.Cluster, rand.Text())
	// The last failed try explains a timeout better than the timeout.
	answers := make(chan messages.ArchiveReply, 16)
	stop, err := p.Bus.Listen(ctx, reply, func(m bus.Incoming) {
		var r messages.ArchiveReply
		if err := json.Unmarshal(m.Data, &r); err != nil {
			p.Logger.Warn("unreadable outcome of an archive job", telemetry.KeyError, err)
			return
		}
		select {
		case answers <- r:
		default: // somebody has long stopped reading
		}
	})
	if err != nil {
		return messages.ArchiveReply{}, err
	}
	defer stop()
	ref, err := p.Carrier.Deposit(ctx, transit.DepositAddress{Cluster: p.Cluster, Timeline: timeline}, size,
		func() (io.ReadCloser, error) { return os.Open(path) })
	if err != nil {
		return messages.ArchiveReply{}, err
	}
	job, err := messages.Encode(messages.KindArchive, p.Cluster, time.Now(), messages.ArchiveJob{
		Name: name, Bytes: ref, KeepExisting: p.KeepExisting, Reply: reply, Metadata: p.Metadata, Created: p.created(path),
	})
	if err != nil {
		return messages.ArchiveReply{}, err
	}
	if _, err := p.Bus.Publish(ctx, messages.WorkSubject(messages.KindArchive, p.Cluster), nil, job); err != nil {
		p.discard(ctx, ref)
		return messages.ArchiveReply{}, err
	}
	var last string
	for {
		select {
		case r := <-answers:
			switch {
			case r.Error == "":
				return r, nil
			case r.Final:
				p.discard(ctx, ref)
				return r, errors.New(r.Error)
			}
			last = r.Error
			p.Logger.Warn("a try to archive failed, another follows", telemetry.KeySegment, name, telemetry.KeyError, r.Error)
		case <-ctx.Done():
			// The job and its bytes stay queued: storing it later is right too.
			err := context.Cause(ctx)
			if last != "" {
				err = fmt.Errorf("%w; the last try failed: %s", err, last)
			}
			return messages.ArchiveReply{}, err
		}
	}
}

// enqueue puts a copy into the spool, then file and job into the queue. A
// failure leaves the copy: an earlier ask for the same file may have been
// acknowledged on its account, and storing what PostgreSQL will ask for again
// does no harm.
func (p *Pusher) enqueue(ctx context.Context, path, name string) (messages.ArchiveReply, error) {
	e, err := p.Ack.spool.put(ctx, path, name)
	if err != nil {
		return messages.ArchiveReply{}, err
	}
	if err := p.send(ctx, e); err != nil {
		return messages.ArchiveReply{}, err
	}
	return messages.ArchiveReply{Name: name, Final: true, Queued: true}, nil
}

// send queues what the spool keeps: when it returns, the broker has
// acknowledged every chunk and the job.
func (p *Pusher) send(ctx context.Context, e entry) error {
	path := p.Ack.spool.path(e)
	_, seg := pg.ClassifyWALFile(e.name)
	ref, err := p.Carrier.Deposit(ctx, transit.DepositAddress{Cluster: p.Cluster, Timeline: seg.Timeline}, e.size,
		func() (io.ReadCloser, error) { return os.Open(path) })
	if err != nil {
		return err
	}
	if ref.SHA256 != e.sha256 {
		p.discard(ctx, ref)
		return fmt.Errorf("queue %s: the copy in the spool has SHA-256 %q, the file had %s: the disk below %s returns other bytes than were written",
			e.name, ref.SHA256, e.sha256, p.Ack.spool.dir)
	}
	job, err := messages.Encode(messages.KindArchive, p.Cluster, time.Now(), messages.ArchiveJob{
		Name: e.name, Bytes: ref, KeepExisting: p.KeepExisting, Acknowledged: true, Metadata: p.Metadata, Created: p.created(path),
	})
	if err != nil {
		return err
	}
	if _, err := p.Bus.Publish(ctx, messages.WorkSubject(messages.KindArchive, p.Cluster), nil, job); err != nil {
		// The broker may have the job all the same, so its bytes stay; without
		// a job they are swept.
		return err
	}
	return nil
}

// created is the time of a file, where the job is to tell it. The spool's copy
// is some moments younger than the file.
func (p *Pusher) created(path string) time.Time {
	if p.Metadata == "" {
		return time.Time{}
	}
	info, err := os.Stat(path)
	if err != nil {
		// It was read a moment ago and may be recycled by now.
		return time.Now()
	}
	return info.ModTime()
}

// discard drops the queued bytes of a job that will not be done.
func (p *Pusher) discard(ctx context.Context, ref messages.Ref) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	// A broker that lets producers only publish leaves it to the sweep.
	if err := p.Carrier.Discard(ctx, ref); err != nil && !errors.Is(err, bus.ErrDenied) {
		p.Logger.Warn("drop queued WAL", telemetry.KeyError, err)
	}
}

// check refuses a file that is not what its name says, before a byte is sent.
func (p *Pusher) check(ctx context.Context, path, name string) (size int64, tl pg.Timeline, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, 0, fmt.Errorf("%s is not a regular file", path)
	}
	kind, seg := pg.ClassifyWALFile(name)
	tl = seg.Timeline
	switch kind {
	case pg.SegmentFile, pg.PartialFile:
		header := make([]byte, wal.LongHeaderSize)
		if _, err := io.ReadFull(f, header); err != nil {
			return 0, 0, fmt.Errorf("read the header of %s: %w: it is no WAL segment", path, err)
		}
		verdict, err := wal.CheckSegment(header, seg, info.Size(), wal.Expect{SystemID: systemID(ctx, path), SegmentSize: p.SegmentSize})
		if err != nil {
			return 0, 0, err
		}
		if verdict.Newer {
			p.Logger.Warn("WAL of a PostgreSQL newer than this build knows; archived unchecked", telemetry.KeySegment, name)
		}
	case pg.OtherFile:
		p.Logger.Warn("not a file that PostgreSQL archives; archived all the same", telemetry.KeySegment, name)
	}
	return info.Size(), tl, nil
}

// systemID reads the identifier of the cluster that path is in, when it is in
// one (path is usually pg_wal/NAME below the data directory); else 0.
func systemID(ctx context.Context, path string) pg.SystemID {
	abs, err := filepath.Abs(path)
	if err != nil {
		return 0
	}
	c, _, err := cluster.ReadControl(ctx, filepath.Dir(filepath.Dir(abs)))
	if err != nil {
		return 0 // pushed from elsewhere: there is nothing to compare with
	}
	return c.SystemID
}
