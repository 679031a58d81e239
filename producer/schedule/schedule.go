// Package schedule starts work at times given in cron's notation, on one host
// of several that have the same schedule: for every time one of them claims
// it, and that one does the work.
//
// A time that passes while a work of the same name still runs is skipped, and
// so is one that passes while no host is up: a missed backup is not made up
// for in the middle of the day. What cannot be claimed because the broker does
// not answer is tried again until the time is stale.
package schedule

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
)

// Times is a parsed schedule.
type Times struct {
	text string
	spec cron.Schedule
}

// Parse reads five fields (minute, hour, day of month, month, day of week) or
// one of @hourly, @daily, @weekly, @monthly. A zone goes in front:
// "CRON_TZ=UTC 0 3 * * *"; without one it is the host's. "@every" is refused:
// hosts started at different moments would never agree on its times.
func Parse(text string) (Times, error) {
	spec, err := cron.ParseStandard(text)
	if err != nil {
		return Times{}, fmt.Errorf("schedule %q: %w (want minute, hour, day of month, month, day of week, such as \"30 3 * * *\")", text, err)
	}
	if _, every := spec.(cron.ConstantDelaySchedule); every {
		return Times{}, fmt.Errorf("schedule %q: hosts would not agree on the times of @every; write \"0 */6 * * *\" for every six hours", text)
	}
	if spec.Next(time.Now()).IsZero() {
		return Times{}, fmt.Errorf("schedule %q: it names a day that never comes", text)
	}
	return Times{text, spec}, nil
}

// Next is the first time after t.
func (s Times) Next(t time.Time) time.Time { return s.spec.Next(t) }

// String gives the text back.
func (s Times) String() string { return s.text }

// Work is one thing to do on schedule.
type Work struct {
	// Name is a token of letters, digits, - and _.
	Name  string
	Times Times
	Do    func(ctx context.Context) error
}

// ErrTaken means that another host does the work of this time.
var ErrTaken = errors.New("taken by another host")

// Claim takes one time of one work for this host: of all that claim it exactly
// one gets nil, the others ErrTaken. Any other error is worth another try.
type Claim func(ctx context.Context, name string, at time.Time) error

// stale is how long after its time a work is still begun. Clocks of hosts that
// differ by more would let it begin twice, if claims are forgotten by then.
const stale = 10 * time.Minute

// pause between tries to claim.
const pause = 10 * time.Second

// Scheduler is a service.Service. Stop lets work that runs finish.
type Scheduler struct {
	service.Base
	works []Work
	claim Claim
	log   *slog.Logger
}

var _ service.Service = (*Scheduler)(nil)

// New makes a scheduler that is not started yet.
func New(claim Claim, log *slog.Logger, works ...Work) *Scheduler {
	return &Scheduler{works: works, claim: claim, log: log}
}

// Start implements service.Service.
func (s *Scheduler) Start(ctx context.Context) error {
	return s.Launch(ctx, nil, func(fetch, work context.Context) error {
		return service.Within(work, 0, func(work context.Context, scope *service.Scope) error {
			for _, w := range s.works {
				scope.Go(func(work context.Context) error {
					s.follow(fetch, work, w)
					return nil
				})
			}
			return nil
		})
	})
}

// follow waits for one time after the other.
func (s *Scheduler) follow(fetch, work context.Context, w Work) {
	for {
		at := w.Times.Next(time.Now())
		if !sleepUntil(fetch, at) || !s.take(fetch, w, at) {
			if fetch.Err() != nil {
				return
			}
			continue
		}
		s.log.Info("scheduled work begins", "work", w.Name, "time", at)
		err := service.Catch(func() error { return w.Do(work) })
		if err != nil {
			s.log.Error("scheduled work failed", "work", w.Name, "time", at, telemetry.KeyError, err)
			continue
		}
		s.log.Info("scheduled work is done", "work", w.Name, "time", at)
	}
}

// take claims a time; false if another host has it or it went by.
func (s *Scheduler) take(ctx context.Context, w Work, at time.Time) bool {
	for {
		if time.Since(at) > stale {
			s.log.Error("scheduled work is skipped: its time could not be claimed", "work", w.Name, "time", at)
			return false
		}
		err := s.claim(ctx, w.Name, at)
		switch {
		case err == nil:
			return true
		case errors.Is(err, ErrTaken):
			s.log.Debug("scheduled work is another host's", "work", w.Name, "time", at)
			return false
		}
		s.log.Warn("cannot claim scheduled work, trying again", "work", w.Name, "time", at, telemetry.KeyError, err)
		if !sleepUntil(ctx, time.Now().Add(pause)) {
			return false
		}
	}
}

// longest nap: a clock that is set, or a host that slept, is noticed after it.
const nap = time.Minute

// sleepUntil is false if ctx ended first. It looks at the clock again and
// again, because a timer counts the time a host is awake.
func sleepUntil(ctx context.Context, at time.Time) bool {
	for {
		left := time.Until(at.Round(0)) // wall clock
		if left <= 0 {
			return ctx.Err() == nil
		}
		t := time.NewTimer(min(left, nap))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false
		}
	}
}
