package assemble

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/runner"
)

// copyBeat is how often the producer of a backup hears that a copy goes on: a
// store that copies by itself tells nothing in between.
const copyBeat = 20 * time.Second

// errNoSource: what is to be copied is not there any more, so the part has to
// come from the producer.
var errNoSource = errors.New("the part to copy is gone")

// copyPart has a part of an earlier backup copied. errNoSource asks for the
// ordinary way.
func (h *PartHandler) copyPart(ctx context.Context, job runner.Job, pj messages.PartJob) error {
	from := repo.PartKey(pj.Copy.Backup, pj.Copy.Object)
	source, err := h.Repo.Bucket().Stat(ctx, from)
	switch {
	case errors.Is(err, storage.ErrNotExist):
		return errNoSource
	case err != nil:
		return err
	}
	say := messages.Say{What: messages.WhatCopying, Part: pj.Part, Worker: job.Worker}
	answer, err := h.say(ctx, pj.Run, say)
	if err != nil || answer.Verdict != messages.VerdictGo {
		return err // done already, or the backup is over
	}
	if err := h.free(ctx, pj.Backup); err != nil {
		return err
	}
	say.Attempt = answer.Attempt
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	quiet := make(chan struct{})
	go func() {
		defer close(quiet)
		h.beat(ctx, stop, pj.Run, say)
	}()
	_, ext, _ := strings.Cut(pj.Copy.Object, ".tar")
	object := pj.Part + ext
	info, err := h.Repo.CopyPart(ctx, from, repo.PartKey(pj.Backup, object))
	stop()
	<-quiet
	switch {
	case errors.Is(err, storage.ErrNotExist):
		return errNoSource
	case err != nil:
		return err
	case info.Size != source.Size:
		return fmt.Errorf("copy %s: %d bytes became %d", from, source.Size, info.Size)
	}
	// The copy's own context is over.
	stored, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	say.What, say.Object, say.StoredBytes = messages.WhatStored, object, info.Size
	if _, err := h.say(stored, pj.Run, say); err != nil {
		return err
	}
	h.event(stored, job, messages.Event{What: messages.PartStored, Object: string(pj.Backup) + "/" + object, Bytes: info.Size})
	return nil
}

// beat tells the producer that the copy goes on, and stops the copy when the
// producer has given the part to another or is over.
func (d Deps) beat(ctx context.Context, stop func(), run string, say messages.Say) {
	tick := time.NewTicker(copyBeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch a, err := d.say(ctx, run, say); {
		case ctx.Err() != nil:
			return
		case err != nil:
			d.Logger.Debug("tell the producer of a copy under way", telemetry.KeyPart, say.Part, telemetry.KeyError, err)
		case a.Verdict != messages.VerdictGo:
			stop()
			return
		}
	}
}
