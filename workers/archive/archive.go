// Package archive stores WAL files: the handler of archive jobs.
//
// It fails by an outcome: a conflict (an object of the same name with other
// content, where that must not be replaced), an object of that name that cannot
// be read, and a permanent storage error are rejected for good, damaged bytes
// and storage trouble are tried again. The object is whole or absent in every
// case, and storing the same file twice is success.
//
// A job whose file was acknowledged to PostgreSQL from the queue is another
// matter: there may be no other copy. It is given up only where no try can
// help (a conflict, lost bytes: the event says which, and the host that keeps a
// copy acts on it), and otherwise queued anew when its tries are used up.
package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/seal"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/changemap"
	"github.com/walherd/walherd/workers/intake"
	"github.com/walherd/walherd/workers/runner"
)

// ErrConflict marks an object that exists with other content.
var ErrConflict = errors.New("already archived with other content")

// ErrUnreadable marks an object that exists, must not be replaced, and cannot
// be compared with the file: it is damaged, or was written with another key or
// a compression that this program has not.
var ErrUnreadable = errors.New("already archived as an object that cannot be read")

// Handler stores WAL files. All fields but Tries are required.
type Handler struct {
	// Choose gives the storage for one file: of several, the first that
	// takes writes now.
	Choose  func(context.Context) (*repo.Repo, error)
	Carrier transit.Carrier
	Codec   intake.Codec
	Bus     *bus.Bus
	Logger  *slog.Logger
	// Tries of one job, the runner's number. 0 is 5.
	Tries int
	// Maps, unless nil, keeps a change map beside each segment.
	Maps *changemap.Keeper
}

// stored is what became of a file.
type stored struct {
	storage string // set in any case once chosen
	in      *repo.Repo
	object  string
	bytes   int64
	equal   bool
}

// Handle implements runner.Handler.
func (h *Handler) Handle(ctx context.Context, job runner.Job) error {
	aj, err := messages.Unpack[messages.ArchiveJob](job.Envelope)
	if err == nil {
		err = aj.Check(job.Cluster)
	}
	if err != nil {
		return bus.Reject(err)
	}
	scan := h.Maps.Begin(aj.Name)
	defer scan.Drop()
	got, err := h.store(ctx, aj, scan)
	if reason(err) == messages.ReasonDamaged {
		// The bytes may be gone because another worker had the same job, or
		// the archiver asked twice: then the object is there.
		if object, ok := h.alreadyStored(ctx, aj); ok {
			got, err = stored{storage: got.storage, object: object, equal: true}, nil
		}
	}
	switch {
	case err != nil && aj.Acknowledged:
		return h.holdOn(ctx, job, aj, err)
	case errors.Is(err, storage.ErrPermanent) && h.another(ctx, got.storage):
		return bus.Retry(0, err)
	case final(err):
		return bus.Reject(err)
	case err != nil:
		return err
	}
	h.reply(ctx, aj, messages.ArchiveReply{Name: aj.Name, Final: true, Object: got.object, Equal: got.equal, StoredBytes: got.bytes})
	if err := h.Carrier.Discard(ctx, aj.Bytes); err != nil {
		h.Logger.Warn("drop the queued copy of a stored WAL file", telemetry.KeySegment, aj.Name, telemetry.KeyError, err)
	}
	h.event(ctx, job, messages.Event{What: messages.WALStored, Object: got.object, Bytes: got.bytes, File: aj.Name, SHA256: aj.Bytes.SHA256})
	scan.Keep(ctx, got.in)
	return nil
}

// Keep implements runner.Keeper: what PostgreSQL was told is archived is not
// given up because workers died with it.
func (h *Handler) Keep(job runner.Job) bool {
	aj, err := messages.Unpack[messages.ArchiveJob](job.Envelope)
	return err == nil && aj.Acknowledged
}

// alreadyStored reports whether the archived file of that name has the digest
// that the job tells.
func (h *Handler) alreadyStored(ctx context.Context, aj messages.ArchiveJob) (object string, ok bool) {
	if aj.Bytes.SHA256 == "" {
		return "", false
	}
	where, err := h.Choose(ctx)
	if err != nil {
		return "", false
	}
	key, ext, err := where.FindWAL(ctx, aj.Name, h.Codec.Compress.Method.Extension(), compress.Extensions())
	if err != nil {
		return "", false
	}
	raw, err := where.OpenObject(ctx, key, storage.Range{})
	if err != nil {
		return "", false
	}
	defer raw.Close()
	plain, err := h.Codec.Open(ctx, raw, ext)
	if err != nil {
		return "", false
	}
	defer plain.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, plain); err != nil || hex.EncodeToString(sum.Sum(nil)) != aj.Bytes.SHA256 {
		return "", false
	}
	return key[strings.LastIndexByte(key, '/')+1:], true
}

// reason is what a program can make of a failure.
func reason(err error) messages.Reason {
	switch {
	case errors.Is(err, ErrConflict):
		return messages.ReasonConflict
	case errors.Is(err, transit.ErrDamaged), errors.Is(err, transit.ErrUnknownRef):
		return messages.ReasonDamaged
	}
	return ""
}

// holdOn is the outcome of a failed try at an acknowledged job. What only
// lasts (a storage that is away, full or read-only, a key that is not there)
// must not end it, so the last try but one puts the job into the queue again
// as a new one; where that fails, the old one is held. So it is with an
// archived object that cannot be read (ErrUnreadable): once somebody has
// removed it, or given the right key, the file is stored. Damage is tried as
// often as any failure, because another replica of the broker may have the
// chunk.
func (h *Handler) holdOn(ctx context.Context, job runner.Job, aj messages.ArchiveJob, err error) error {
	tries := h.Tries
	if tries == 0 {
		tries = 5
	}
	switch {
	case errors.Is(err, ErrConflict), errors.Is(err, storage.ErrName), errors.Is(err, transit.ErrUnknownRef):
		return bus.Reject(err)
	case errors.Is(err, transit.ErrDamaged), ctx.Err() != nil:
		return err
	case job.Attempt < tries-1:
		return bus.Retry(bus.Backoff(job.Attempt+aj.Round*tries), err)
	}
	if tries < 3 {
		// There is no earlier try whose pause would keep this from turning as
		// fast as it can.
		select {
		case <-time.After(bus.Backoff(aj.Round + 1)):
		case <-ctx.Done():
			return err
		}
	}
	aj.Round++
	again, eerr := messages.Encode(job.Kind, job.Cluster, job.At, aj)
	if eerr == nil {
		_, eerr = h.Bus.Publish(ctx, messages.WorkSubject(job.Kind, job.Cluster), nil, again)
	}
	if eerr != nil {
		return bus.Hold(bus.Backoff(job.Attempt), errors.Join(err, eerr))
	}
	h.Logger.Error("an acknowledged WAL file cannot be stored, it stays queued", telemetry.KeySegment, aj.Name,
		telemetry.KeyAttempt, job.Attempt+(aj.Round-1)*tries, telemetry.KeyError, err)
	h.event(ctx, job, messages.Event{What: messages.WALFailed, Object: aj.Name, Error: err.Error(), File: aj.Name, SHA256: aj.Bytes.SHA256})
	return nil
}

// final tells the errors that no other try would mend.
func final(err error) bool {
	return slices.ContainsFunc([]error{
		ErrConflict, ErrUnreadable, storage.ErrPermanent, storage.ErrName, transit.ErrUnknownRef, seal.ErrNoPrivateKey, seal.ErrWrongKey,
	}, func(e error) bool { return errors.Is(err, e) })
}

// another reports whether a further try would go to another storage: one that
// is read-only or full is not chosen again.
func (h *Handler) another(ctx context.Context, failed string) bool {
	next, err := h.Choose(ctx)
	return err == nil && next.Name() != failed
}

// Settled implements runner.Handler: failures are told, success was told by
// Handle as soon as the object was durable.
func (h *Handler) Settled(ctx context.Context, job runner.Job, outcome error, final bool) {
	if outcome == nil {
		return
	}
	aj, err := messages.Unpack[messages.ArchiveJob](job.Envelope)
	if err != nil || aj.Check(job.Cluster) != nil {
		return // there is nobody to tell
	}
	why := reason(outcome)
	h.reply(ctx, aj, messages.ArchiveReply{Name: aj.Name, Final: final, Error: outcome.Error(), Reason: why})
	if final {
		h.event(ctx, job, messages.Event{
			What: messages.WALFailed, Object: aj.Name, Error: outcome.Error(),
			File: aj.Name, SHA256: aj.Bytes.SHA256, Reason: why,
		})
	}
}

func (h *Handler) reply(ctx context.Context, aj messages.ArchiveJob, r messages.ArchiveReply) {
	if aj.Reply == "" {
		return
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = h.Bus.Notify(ctx, aj.Reply, nil, data)
	}
	if err != nil {
		// The producer times out, PostgreSQL asks again, and equal content is
		// success.
		h.Logger.Warn("tell the outcome of an archive job", telemetry.KeySegment, aj.Name, telemetry.KeyError, err)
	}
}

func (h *Handler) event(ctx context.Context, job runner.Job, e messages.Event) {
	e.Cluster, e.Worker = job.Cluster, job.Worker
	if err := runner.PublishEvent(ctx, h.Bus, e); err != nil {
		h.Logger.Warn("publish event", "event", e.What, telemetry.KeyError, err)
	}
}

// store puts the file, or finds it there.
func (h *Handler) store(ctx context.Context, aj messages.ArchiveJob, scan *changemap.Scan) (stored, error) {
	where, err := h.Choose(ctx)
	if err != nil {
		return stored{}, err
	}
	got, err := h.storeIn(ctx, where, aj, scan)
	if err == nil {
		err = putMetadata(ctx, where, aj)
	}
	got.storage, got.in = where.Name(), where
	return got, err
}

func (h *Handler) storeIn(ctx context.Context, where *repo.Repo, aj messages.ArchiveJob, scan *changemap.Scan) (stored, error) {
	object := aj.Name + h.Codec.Extension()
	// History files are tiny and decide where a recovery goes: one is never
	// replaced by another.
	keep := aj.KeepExisting || strings.HasSuffix(aj.Name, ".history")
	if keep {
		got, err := h.compareExisting(ctx, where, aj)
		if !errors.Is(err, storage.ErrNotExist) {
			return got, err
		}
	}
	got, err := h.put(ctx, where, aj, scan, object, storage.PutOptions{IfAbsent: keep})
	if keep && errors.Is(err, storage.ErrExist) {
		// Another worker was faster with the same name.
		return h.compareExisting(ctx, where, aj)
	}
	return got, err
}

func (h *Handler) put(ctx context.Context, where *repo.Repo, aj messages.ArchiveJob, scan *changemap.Scan, object string, opt storage.PutOptions) (stored, error) {
	r, err := h.Carrier.Open(ctx, aj.Bytes)
	if err != nil {
		return stored{}, err
	}
	defer r.Close()
	var info storage.Info
	_, err = intake.Store(ctx, scan.Tap(r), h.Codec, func(body io.Reader) (err error) {
		info, err = where.PutWAL(ctx, object, body, opt)
		return err
	})
	if err != nil {
		return stored{}, fmt.Errorf("store WAL file %s: %w", aj.Name, err)
	}
	return stored{object: object, bytes: info.Size}, nil
}

// compareExisting reads what is archived under the name, with any extension,
// and compares it with the file. storage.ErrNotExist if there is nothing.
func (h *Handler) compareExisting(ctx context.Context, where *repo.Repo, aj messages.ArchiveJob) (stored, error) {
	key, ext, err := where.FindWAL(ctx, aj.Name, h.Codec.Compress.Method.Extension(), compress.Extensions())
	var unknown *repo.UnknownExtensionError
	if errors.As(err, &unknown) {
		return stored{}, unreadable(aj.Name, unknown.Key, err)
	}
	if err != nil {
		return stored{}, fmt.Errorf("look for archived %s: %w", aj.Name, err)
	}
	old, err := where.OpenObject(ctx, key, storage.Range{})
	if err != nil {
		return stored{}, fmt.Errorf("compare with archived %s: %w", key, err)
	}
	defer old.Close()
	plain, err := h.Codec.Open(ctx, old, ext)
	if undecodable(err) {
		return stored{}, unreadable(aj.Name, key, err)
	}
	if err != nil {
		return stored{}, fmt.Errorf("compare with archived %s: %w", key, err)
	}
	defer plain.Close()
	r, err := h.Carrier.Open(ctx, aj.Bytes)
	if err != nil {
		return stored{}, err
	}
	defer r.Close()
	same, err := equal(ctx, plain, r)
	if undecodable(err) {
		return stored{}, unreadable(aj.Name, key, err)
	}
	if err != nil {
		return stored{}, fmt.Errorf("compare with archived %s: %w", key, err)
	}
	if !same {
		return stored{}, fmt.Errorf("WAL file %s: %w as %s: two clusters may be archiving to one place; nothing was overwritten", aj.Name, ErrConflict, key)
	}
	return stored{object: key[strings.LastIndexByte(key, '/')+1:], equal: true}, nil
}

func unreadable(name, key string, err error) error {
	return fmt.Errorf("WAL file %s: %w, %s: nothing was overwritten (with the key or the program that wrote it, it can be compared; one that is damaged stands in the way until it is removed: st rm %s): %w",
		name, ErrUnreadable, key, key, err)
}

// undecodable tells a stored object that is bad, or not for this key, from a
// storage or a key service that fails while it is read: decoders pass on those
// errors as they are.
func undecodable(err error) bool {
	return slices.ContainsFunc([]error{compress.ErrCorrupt, seal.ErrCorrupt, seal.ErrWrongKey, seal.ErrNoPrivateKey},
		func(e error) bool { return errors.Is(err, e) })
}

// equal reads both ends to the first difference.
func equal(ctx context.Context, a io.Reader, b transit.Receiver) (bool, error) {
	var buf []byte
	for {
		chunk, err := b.Next(ctx)
		if err == io.EOF {
			var one [1]byte
			n, err := io.ReadFull(a, one[:])
			if n == 0 && err == io.EOF {
				return true, nil
			}
			if err != nil && err != io.EOF {
				return false, err
			}
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if cap(buf) < len(chunk) {
			buf = make([]byte, len(chunk))
		}
		n, err := io.ReadFull(a, buf[:len(chunk)])
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if string(buf[:n]) != string(chunk) {
			return false, nil
		}
	}
}
