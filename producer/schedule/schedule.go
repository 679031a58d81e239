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
	spec *cron.SpecSchedule
}

// Parse reads five fields (minute, hour, day of month, month, day of week) or
// one of @hourly, @daily, @weekly, @monthly. A zone goes in front:
// "CRON_TZ=UTC 0 3 * * *"; without one it is the host's. "@every" is refused:
// hosts started at different moments would never agree on its times.
//
// Where clocks are changed for summer and winter, a time that names its hours
// comes once on each day: one that the clock leaps over at the moment after the
// leap, one that the clock shows twice at the first of the two. Every hour ("*")
// is every hour that passes.
func Parse(text string) (Times, error) {
	parsed, err := cron.ParseStandard(text)
	if err != nil {
		return Times{}, fmt.Errorf("schedule %q: %w (want minute, hour, day of month, month, day of week, such as \"30 3 * * *\")", text, err)
	}
	spec, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return Times{}, fmt.Errorf("schedule %q: hosts would not agree on the times of @every; write \"0 */6 * * *\" for every six hours", text)
	}
	if spec.Next(time.Now()).IsZero() {
		return Times{}, fmt.Errorf("schedule %q: it names a day that never comes", text)
	}
	return Times{text, spec}, nil
}

// everyHour is an hour field that names them all.
const everyHour = 1<<24 - 1

// Next is the first time after t.
func (s Times) Next(t time.Time) time.Time {
	if s.spec.Hour&everyHour == everyHour {
		return s.spec.Next(t)
	}
	// The library loses what the clock leaps over and takes what it shows twice
	// for two. So it is asked in terms of the clock on the wall alone.
	where := s.spec.Location
	if where == time.Local {
		where = t.Location()
	}
	wall := *s.spec
	wall.Location = time.UTC
	for w := onWall(t.In(where)); ; {
		if w = wall.Next(w); w.IsZero() {
			return w
		}
		if at := firstShown(w, where); at.After(t) {
			return at.In(t.Location())
		}
	}
}

// onWall is what the clock on the wall shows, as if it were UTC.
func onWall(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC)
}

// firstShown is the first moment at which clocks of a place show wall, or the
// one at which they leap over it.
func firstShown(wall time.Time, where *time.Location) time.Time {
	// Off by the leap at most, and on either side of it.
	near := time.Date(wall.Year(), wall.Month(), wall.Day(), wall.Hour(), wall.Minute(), wall.Second(), wall.Nanosecond(), where)
	start, end := near.ZoneBounds()
	var found time.Time
	for _, in := range []time.Time{start.Add(-1), near, end} {
		if in.IsZero() || start.IsZero() && in.Before(near) {
			continue
		}
		_, offset := in.Zone()
		at := wall.Add(-time.Duration(offset) * time.Second).In(where)
		if onWall(at).Equal(wall) && (found.IsZero() || at.Before(found)) {
			found = at
		}
	}
	switch {
	case !found.IsZero():
		return found
	case onWall(near).After(wall):
		return start
	}
	return end
}

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
