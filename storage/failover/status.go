package failover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"
)

// status is one storage in the status file, in WAL-G's form. The quotient of
// the two numbers is the success rate of late.
type status struct {
	Potential float64 `json:"potential_aliveness"`
	Actual    float64 `json:"actual_aliveness"`
	// Previous is whether the storage was alive before the last operation:
	// it tells by which of two limits the rate is judged.
	Previous bool      `json:"previous_aliveness"`
	Updated  time.Time `json:"updated"`
}

// full is the potential that WAL-G writes after a check. A dead storage is
// written as a rate of 0, which is below any limit.
const full = 100

// state is a status judged at a moment.
type state int

const (
	unknown   state = iota // never checked, in doubt, or too long ago
	alive                  //
	dead                   //
	deadStale              // dead, but worth another look
)

// skew is how far in the future a status may lie. Processes of one host share
// a clock; a status further ahead was written before the clock was set back,
// and would be believed for who knows how long.
const skew = time.Minute

func (s *Set) judge(st status, now time.Time) state {
	age := now.Sub(st.Updated)
	if st.Potential <= 0 || age >= s.opt.Lifetime || age < -skew {
		return unknown
	}
	limit := s.opt.AliveLimit
	if st.Previous {
		limit = s.opt.DeadLimit
	}
	switch {
	case st.Actual/st.Potential >= limit:
		return alive
	case age >= s.opt.Recheck:
		return deadStale
	}
	return dead
}

// recall is what is known of all storages, by key: what the status file says,
// or, when the file cannot be used, what this Set found out itself.
func (s *Set) recall(ctx context.Context) map[string]status {
	file, err := s.cache.load(ctx)
	if err != nil {
		s.warn(ctx, "cannot read the status file of the storages, they are checked instead", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && !errors.Is(err, errCorrupt) || s.opt.CachePath == "" {
		return maps.Clone(s.known)
	}
	for key := range s.ahead {
		if st := s.known[key]; !st.Updated.Before(file[key].Updated) {
			file[key] = st
		}
	}
	s.known = maps.Clone(file)
	return file
}

// learn notes the outcome of a check or a failed Put that began at since;
// reason is nil for alive.
func (s *Set) learn(ctx context.Context, m *member, reason error, since time.Time) {
	now := s.opt.Now().Round(0)
	st := status{Potential: full, Actual: full, Previous: true, Updated: now}
	if reason != nil {
		st.Actual, st.Previous = 0, false
	}
	was, changed := s.change(ctx, m, st, reason, func(before status) bool {
		// A check that began before a Put failed does not outweigh it: it
		// wrote less.
		return reason != nil || !s.isDead(before, now) || !before.Updated.After(since)
	})
	if !changed || s.isDead(was, now) == (reason != nil) {
		return
	}
	if reason != nil {
		s.opt.Log.LogAttrs(ctx, slog.LevelWarn, "storage is dead",
			slog.String(keyStorage, m.Name), slog.Any(keyErr, reason))
		return
	}
	s.opt.Log.LogAttrs(ctx, slog.LevelInfo, "storage is alive again", slog.String(keyStorage, m.Name))
}

// doubt forgets that a storage is alive, so that the next choice checks it.
// What is known as dead stays dead.
func (s *Set) doubt(ctx context.Context, m *member, cause error) {
	now := s.opt.Now().Round(0)
	// Its time lets it outweigh the file, should that not be writable.
	_, changed := s.change(ctx, m, status{Updated: now}, nil, func(before status) bool {
		return !s.isDead(before, now)
	})
	if changed {
		s.opt.Log.LogAttrs(ctx, slog.LevelInfo, "storage is in doubt, it is checked before its next use",
			slog.String(keyStorage, m.Name), slog.Any(keyErr, cause))
	}
}

func (s *Set) isDead(st status, now time.Time) bool {
	is := s.judge(st, now)
	return is == dead || is == deadStale
}

// change sets a status here and in the file, if may allows that for the one
// there is; a status without potential is an entry less in the file. It tells
// what was known here before.
//
// The end of the operation's context does not stop it: that is often what
// there is to note.
func (s *Set) change(ctx context.Context, m *member, st status, reason error, may func(before status) bool) (was status, changed bool) {
	s.mu.Lock()
	was = s.known[m.key]
	if !may(was) {
		s.mu.Unlock()
		return was, false
	}
	s.known[m.key] = st
	s.reasons[m] = reason
	s.ahead[m.key]++
	s.mu.Unlock()

	after := st
	var err error
	if s.opt.CachePath != "" {
		err = s.cache.update(context.WithoutCancel(ctx), func(doc document) error {
			switch before := doc.status(m.key); {
			case !may(before):
				after = before
				return nil
			case st.Potential > 0:
				return doc.set(m.key, st)
			}
			delete(doc, m.key)
			return nil
		})
	}
	s.mu.Lock()
	if err == nil {
		s.ahead[m.key]--
		if s.known[m.key] == st { // no later change
			s.known[m.key] = after
			s.ahead[m.key] = 0
		}
		if s.ahead[m.key] <= 0 {
			delete(s.ahead, m.key)
		}
	}
	s.mu.Unlock()
	if err != nil {
		s.warn(ctx, "cannot write the status file of the storages, other commands have to check them again", err)
	}
	return was, true
}

// warn logs what is the same for each call of a long life once.
func (s *Set) warn(ctx context.Context, msg string, err error) {
	s.mu.Lock()
	again := s.warned[msg]
	s.warned[msg] = true
	s.mu.Unlock()
	if !again {
		s.opt.Log.LogAttrs(ctx, slog.LevelWarn, msg, slog.String(keyPath, s.opt.CachePath), slog.Any(keyErr, err))
	}
}

// reason tells why a storage is dead.
func (s *Set) reason(m *member, st status) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.reasons[m]; err != nil {
		return err
	}
	return fmt.Errorf("found dead by another command at %s", st.Updated.Format(time.RFC3339))
}
