// Package assemble stores backups: the handlers of part jobs, whose bytes the
// producer streams once a worker has claimed the part, and of commit jobs,
// which make a backup visible.
//
// Order of effects: every object of a backup is stored before the commit job
// exists; commit checks that each is there with its size, and all that an
// increment is built on (see secureChain), writes metadata.json and then the
// sentinel. A crash anywhere leaves objects without a sentinel,
// which no command takes for a backup and delete garbage removes.
package assemble

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/intake"
	"github.com/walherd/walherd/workers/runner"
)

var (
	// ErrBackupExists marks a backup name that is taken.
	ErrBackupExists = errors.New("a backup of this name exists already")
	// ErrIncomplete marks a commit whose objects are not all there.
	ErrIncomplete = errors.New("backup is incomplete in storage")
	// ErrProducerGone means that nobody answers for a running backup.
	ErrProducerGone = errors.New("the backup's producer does not answer")
)

// Deps is what both handlers work with.
type Deps struct {
	Repo    *repo.Repo
	Carrier transit.Carrier
	Codec   intake.Codec
	Bus     *bus.Bus
	Logger  *slog.Logger
}

// answerTimeout bounds one question to a producer.
const answerTimeout = 10 * time.Second

// say tells the producer something and returns its answer.
func (d Deps) say(ctx context.Context, run string, s messages.Say) (messages.Answer, error) {
	s.Version = messages.Version
	data, err := json.Marshal(s)
	if err != nil {
		return messages.Answer{}, fmt.Errorf("encode %s: %w", s.What, err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	reply, err := d.Bus.Request(ctx, run, data)
	if err != nil {
		return messages.Answer{}, fmt.Errorf("%w: %w", ErrProducerGone, err)
	}
	var a messages.Answer
	if err := json.Unmarshal(reply, &a); err != nil {
		return messages.Answer{}, fmt.Errorf("answer of the producer: %w", err)
	}
	return a, nil
}

func (d Deps) event(ctx context.Context, job runner.Job, e messages.Event) {
	e.Cluster, e.Worker = job.Cluster, job.Worker
	if err := runner.PublishEvent(ctx, d.Bus, e); err != nil {
		d.Logger.Warn("publish event", "event", e.What, telemetry.KeyError, err)
	}
}

// outcome makes the errors that no retry mends final.
func outcome(err error) error {
	for _, final := range []error{storage.ErrPermanent, storage.ErrName, ErrBackupExists, ErrBaseGone, transit.ErrUnknownRef, messages.ErrMalformed} {
		if errors.Is(err, final) {
			return bus.Reject(err)
		}
	}
	return err
}

// PartHandler stores one object of a backup.
type PartHandler struct{ Deps }

// Handle implements runner.Handler.
func (h *PartHandler) Handle(ctx context.Context, job runner.Job) error {
	pj, err := messages.Unpack[messages.PartJob](job.Envelope)
	if err == nil {
		err = pj.Check(job.Cluster)
	}
	if err != nil {
		return bus.Reject(err)
	}
	if pj.Copy != nil {
		err := h.copyPart(ctx, job, pj)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrProducerGone):
			return bus.Retry(2*time.Second, fmt.Errorf("copy %s of %s: %w", pj.Part, pj.Backup, err))
		case !errors.Is(err, errNoSource):
			return outcome(fmt.Errorf("copy %s of %s: %w", pj.Part, pj.Backup, err))
		}
		h.Logger.Warn("the part to copy is gone; its files are packed anew", telemetry.KeyBackup, pj.Copy.Backup, telemetry.KeyPart, pj.Copy.Object)
	}
	claim, err := h.say(ctx, pj.Run, messages.Say{What: messages.WhatClaim, Part: pj.Part, Worker: job.Worker})
	if err != nil {
		return bus.Retry(2*time.Second, fmt.Errorf("claim %s of %s: %w", pj.Part, pj.Backup, err))
	}
	if claim.Verdict != messages.VerdictGo {
		h.Logger.Debug("part not wanted", telemetry.KeyPart, pj.Part, telemetry.KeyBackup, pj.Backup, "verdict", claim.Verdict)
		return nil
	}
	if err := claim.Bytes.CheckStream(job.Cluster); err != nil {
		return bus.Reject(fmt.Errorf("store %s of %s: %w", pj.Part, pj.Backup, err))
	}
	object, size, raw, err := h.store(ctx, pj, claim)
	if err != nil {
		return outcome(fmt.Errorf("store %s of %s: %w", pj.Part, pj.Backup, err))
	}
	// Were the answer lost, the part would be asked for again and stored
	// again: harmless.
	if _, err := h.say(ctx, pj.Run, messages.Say{
		What: messages.WhatStored, Part: pj.Part, Worker: job.Worker, Attempt: claim.Attempt,
		Object: object, StoredBytes: size, RawBytes: raw,
	}); err != nil {
		return bus.Retry(2*time.Second, err)
	}
	h.event(ctx, job, messages.Event{What: messages.PartStored, Object: string(pj.Backup) + "/" + object, Bytes: size})
	return nil
}

func (h *PartHandler) store(ctx context.Context, pj messages.PartJob, claim messages.Answer) (object string, size, raw int64, err error) {
	r, err := h.Carrier.Open(ctx, claim.Bytes)
	if err != nil {
		return "", 0, 0, err
	}
	defer r.Close()
	if err := h.free(ctx, pj.Backup); err != nil {
		return "", 0, 0, err
	}
	codec := h.Codec
	if pj.Part == messages.FilesMetadata {
		codec = intake.Codec{} // documents are stored in plain
	}
	object = pj.Part + codec.Extension()
	var info storage.Info
	raw, err = intake.Store(ctx, &bounded{Receiver: r}, codec, func(body io.Reader) (err error) {
		if object == messages.FilesMetadata {
			info, err = h.Repo.PutFilesMetadata(ctx, pj.Backup, body)
		} else {
			info, err = h.Repo.PutPart(ctx, repo.PartKey(pj.Backup, object), body)
		}
		return err
	})
	return object, info.Size, raw, err
}

// free refuses a name that a backup has which started in the same segment,
// which a standby makes easy: its parts must not be overwritten.
func (h *PartHandler) free(ctx context.Context, backup pg.BackupName) error {
	switch _, err := h.Repo.Bucket().Stat(ctx, repo.SentinelKey(backup)); {
	case err == nil:
		return fmt.Errorf("%w: %s; it is left as it was (on a standby, wait for the next restartpoint)", ErrBackupExists, backup)
	case !errors.Is(err, storage.ErrNotExist):
		return err
	}
	return nil
}

// bounded refuses a part that never ends.
type bounded struct {
	transit.Receiver
	n int64
}

func (b *bounded) Next(ctx context.Context) ([]byte, error) {
	chunk, err := b.Receiver.Next(ctx)
	if b.n += int64(len(chunk)); b.n > messages.MaxObject {
		return nil, fmt.Errorf("%w: more than %d bytes", messages.ErrMalformed, int64(messages.MaxObject))
	}
	return chunk, err
}

// Settled implements runner.Handler.
func (h *PartHandler) Settled(ctx context.Context, job runner.Job, outcome error, final bool) {
	pj, err := messages.Unpack[messages.PartJob](job.Envelope)
	if err != nil || outcome == nil || pj.Check(job.Cluster) != nil {
		return
	}
	h.failed(ctx, job, pj.Run, pj.Part, pj.Backup, outcome, final)
}

// failed tells the producer, if it still is there, and everybody else when no
// try is left.
func (d Deps) failed(ctx context.Context, job runner.Job, run, part string, backup pg.BackupName, outcome error, final bool) {
	if errors.Is(outcome, ErrProducerGone) && !final {
		return
	}
	if _, err := d.say(ctx, run, messages.Say{
		What: messages.WhatFailed, Part: part, Worker: job.Worker, Error: outcome.Error(), Final: final,
	}); err != nil {
		d.Logger.Warn("tell the producer of a failure", telemetry.KeyPart, part, telemetry.KeyError, err)
	}
	if final {
		d.event(ctx, job, messages.Event{What: messages.BackupFailed, Object: string(backup), Error: outcome.Error()})
	}
}

// CommitHandler makes a backup visible.
type CommitHandler struct{ Deps }

// commitPart is what Say.Part holds for a commit.
const commitPart = "commit"

// Handle implements runner.Handler.
func (h *CommitHandler) Handle(ctx context.Context, job runner.Job) error {
	cj, err := messages.Unpack[messages.CommitJob](job.Envelope)
	if err == nil {
		err = cj.Check(job.Cluster)
	}
	if err != nil {
		return bus.Reject(err)
	}
	if err := h.commit(ctx, cj); err != nil {
		return outcome(fmt.Errorf("commit %s: %w", cj.Backup, err))
	}
	// A producer that is gone does not undo a committed backup.
	if _, err := h.say(ctx, cj.Run, messages.Say{What: messages.WhatCommitted, Part: commitPart, Worker: job.Worker}); err != nil {
		h.Logger.Warn("tell the producer of a commit", telemetry.KeyBackup, cj.Backup, telemetry.KeyError, err)
	}
	h.event(ctx, job, messages.Event{What: messages.BackupFinished, Object: string(cj.Backup)})
	return nil
}

// commit checks, then writes the documents, the sentinel last.
func (h *CommitHandler) commit(ctx context.Context, cj messages.CommitJob) error {
	switch old, _, err := h.Repo.Sentinel(ctx, cj.Backup); {
	case err == nil && bytes.Equal(old, cj.Sentinel):
		return h.confirmChain(ctx, cj) // handed out twice
	case err == nil:
		return fmt.Errorf("%w: %s", ErrBackupExists, cj.Backup)
	case !errors.Is(err, storage.ErrNotExist):
		return err
	}
	if err := h.verify(ctx, cj); err != nil {
		return err
	}
	if err := h.secureChain(ctx, cj.Sentinel); err != nil {
		return err
	}
	if _, err := h.Repo.PutMetadata(ctx, cj.Backup, cj.Metadata); err != nil {
		return err
	}
	if _, err := h.Repo.PutSentinel(ctx, cj.Backup, cj.Sentinel); err != nil {
		return err
	}
	return h.confirmChain(ctx, cj)
}

// verify holds what is in storage against what was reported stored, and
// removes what an earlier, unfinished backup of the same name left among the
// parts: a restore reads every object that it finds there.
func (h *CommitHandler) verify(ctx context.Context, cj messages.CommitJob) error {
	want := map[string]int64{}
	for _, o := range cj.Objects {
		want[o.Name] = o.Size
	}
	same := func(name string, size int64) error {
		if size != want[name] {
			return fmt.Errorf("%w: %s has %d bytes, %d were stored", ErrIncomplete, name, size, want[name])
		}
		delete(want, name)
		return nil
	}
	if _, ok := want[messages.FilesMetadata]; ok {
		info, err := h.Repo.Bucket().Stat(ctx, repo.FilesMetadataKey(cj.Backup))
		if err == nil {
			err = same(messages.FilesMetadata, info.Size)
		}
		if err != nil {
			return fmt.Errorf("check %s: %w", messages.FilesMetadata, err)
		}
	}
	for part, err := range h.Repo.Parts(ctx, cj.Backup) {
		if err != nil {
			return err
		}
		if _, ok := want[part.Name]; ok {
			if err := same(part.Name, part.Size); err != nil {
				return err
			}
			continue
		}
		h.Logger.Warn("removing what an unfinished backup of the same name left", telemetry.KeyBackup, cj.Backup, telemetry.KeyPart, part.Name)
		if err := h.Repo.Bucket().Delete(ctx, part.Key); err != nil {
			return fmt.Errorf("remove %s: %w", part.Key, err)
		}
	}
	for name := range want {
		return fmt.Errorf("%w: %s is missing", ErrIncomplete, name)
	}
	return nil
}

// Settled implements runner.Handler.
func (h *CommitHandler) Settled(ctx context.Context, job runner.Job, outcome error, final bool) {
	cj, err := messages.Unpack[messages.CommitJob](job.Envelope)
	if err != nil || outcome == nil || cj.Check(job.Cluster) != nil {
		return
	}
	h.failed(ctx, job, cj.Run, commitPart, cj.Backup, outcome, final)
}
