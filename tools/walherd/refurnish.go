package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

const (
	// furnishEvery is how often a long-running process looks whether the broker
	// still has what it works with, beside every time that it connects anew.
	furnishEvery = time.Minute
	// furnishAgain is the pause after a look that failed: nodes elect leaders.
	furnishAgain = 2 * time.Second
	// furnishLimit bounds one look.
	furnishLimit = 20 * time.Second
)

// refurnish makes anew what the broker loses while this process lives. A broker
// of one node forgets what it had in memory at every start, and without the
// stream of chunks no backup can be taken; one whose store is gone has nothing at
// all, and without its streams nothing is archived.
//
// patience is how long others are given to do it first: workers know how many
// copies there shall be, a database host may not.
func (a *app) refurnish(f *fleet, patience time.Duration) service.Service {
	return newTask("keep the broker set up", a, func(ctx context.Context) error {
		told := ""
		for pause := furnishEvery; ; {
			select {
			case <-f.bus.Back():
			case <-time.After(pause):
			case <-ctx.Done():
				return nil
			}
			if !a.await(ctx, patience) {
				return nil
			}
			look, cancel := context.WithTimeout(ctx, furnishLimit)
			made, err := topology.Repair(look, f.bus, a.topology(f.cluster))
			cancel()
			a.tellLost(made)
			pause = furnishEvery
			switch {
			case err == nil || ctx.Err() != nil:
				told = ""
			case errors.Is(err, bus.ErrDenied) && patience > 0:
				return nil // it is not this process's to set up
			case errors.Is(err, bus.ErrDenied):
				err = fmt.Errorf("%w; run `%s queue setup` as a user who may create streams", err, a.name)
				if err.Error() != told {
					a.log.Error("the broker lost what walherd works with, and this process may not make it", telemetry.KeyError, err)
				}
				told = err.Error()
			default:
				pause = furnishAgain
				if err.Error() != told {
					a.log.Warn("cannot look whether the broker is set up, trying again", telemetry.KeyError, err)
				}
				told = err.Error()
			}
		}
	})
}

// await is false if ctx ends first.
func (a *app) await(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// tellLost says what it means that streams had to be made anew.
func (a *app) tellLost(made []string) {
	switch {
	case len(made) == 0:
	case slices.Contains(made, topology.StreamWork), slices.Contains(made, topology.StreamWAL):
		a.log.Error("THE BROKER LOST ITS STORE: the queue was made anew and is empty. What was queued and not stored is gone from it: "+
			"PostgreSQL sends again what it was not told is archived, an agent what its spool holds, a backup under way starts over or fails. "+
			"Run wal-verify, and take a backup if it finds a gap", "streams", made)
	default:
		a.log.Warn("the broker had lost streams, they were made anew", "streams", made)
	}
}
