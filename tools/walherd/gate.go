package main

import (
	"context"
	"errors"
	"time"

	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/failover"
	"github.com/walherd/walherd/workers/runner"
)

// verbFit is the subject's last token of the question among workers whether one
// can do jobs. Who can answers, all others are silent.
const verbFit = "fit"

// fitLimit is how long an answer may take.
const fitLimit = 2 * time.Second

// gate keeps this worker from jobs while its storage refuses everything and
// another worker's does not.
func (a *app) gate(f *fleet, stores *storages) *runner.Gate {
	return runner.NewGate(runner.GateOptions{
		Logger: a.log,
		Suspect: func(err error) bool {
			return errors.Is(err, storage.ErrPermanent) || errors.Is(err, failover.ErrNoneAlive)
		},
		Check: func(ctx context.Context) error { return stores.set.Try(ctx, stores.target) },
		Others: func(ctx context.Context) bool {
			ctx, cancel := context.WithTimeout(ctx, fitLimit)
			defer cancel()
			_, err := f.bus.Request(ctx, messages.APISubject(f.cluster, verbFit), nil)
			return err == nil
		},
	})
}

// fitness looks after the gate, and tells other workers that this one can do
// jobs.
func (a *app) fitness(f *fleet) service.Service {
	return newTask("fitness", a, func(ctx context.Context) error {
		stop, err := f.bus.Listen(ctx, messages.APISubject(f.cluster, verbFit), func(m bus.Incoming) {
			if f.gate.Unfit() == nil {
				_ = m.Respond(nil) // who does not hear it does its jobs itself
			}
		})
		switch {
		case err == nil:
			defer stop()
		case errors.Is(err, bus.ErrDenied):
			a.log.Debug("workers cannot ask each other", "error", err)
		default:
			return err
		}
		f.gate.Run(ctx)
		return nil
	})
}
