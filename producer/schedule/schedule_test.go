package schedule_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walherd/walherd/producer/schedule"
)

func parse(t *testing.T, text string) schedule.Times {
	t.Helper()
	s, err := schedule.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParse(t *testing.T) {
	t.Parallel()
	s := parse(t, "CRON_TZ=UTC 30 3 * * 0")
	from := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) // a Sunday
	if got, want := s.Next(from), time.Date(2026, 11, 29, 3, 30, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("next is %s, want %s", got, want)
	}
	for _, bad := range []string{"", "nightly", "61 * * * *", "* * * *", "@every 6h", "0 0 30 2 *", "0 0 3 * * *"} {
		if s, err := schedule.Parse(bad); err == nil {
			t.Errorf("%q was read as %v", bad, s)
		}
	}
}

// claims is a broker's memory of what was taken.
type claims struct {
	mu    sync.Mutex
	taken map[string]bool
	// away makes so many claims fail first.
	away int
}

func (c *claims) claim(_ context.Context, name string, at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away > 0 {
		c.away--
		return errors.New("no broker")
	}
	key := fmt.Sprint(name, at.Unix())
	if c.taken[key] {
		return schedule.ErrTaken
	}
	c.taken[key] = true
	return nil
}

// done collects when work was done.
type done struct {
	mu sync.Mutex
	at []string
}

func (d *done) add() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = append(d.at, time.Now().UTC().Format("15:04:05"))
}

var quiet = slog.New(slog.DiscardHandler)

// TestOneOfThreeHosts: every time is used once, whoever does it.
func TestOneOfThreeHosts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// The bubble's clock begins at midnight UTC.
		c, d := &claims{taken: map[string]bool{}}, &done{}
		var hosts []*schedule.Scheduler
		for range 3 {
			s := schedule.New(c.claim, quiet, schedule.Work{
				Name: "backup", Times: parse(t, "CRON_TZ=UTC 0 */6 * * *"), Do: func(context.Context) error { d.add(); return nil },
			})
			if err := s.Start(context.Background()); err != nil {
				t.Fatal(err)
			}
			hosts = append(hosts, s)
		}
		time.Sleep(24*time.Hour + time.Minute)
		for _, s := range hosts {
			if err := s.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if want := []string{"06:00:00", "12:00:00", "18:00:00", "00:00:00"}; !slices.Equal(d.at, want) {
			t.Fatalf("done at %v, want %v", d.at, want)
		}
	})
}

func TestABrokerThatIsAway(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fails int
		want  []string
	}{
		"for a minute": {6, []string{"06:01:00", "12:00:00"}},
		"too long":     {100, []string{"12:00:00"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c, d := &claims{taken: map[string]bool{}, away: tc.fails}, &done{}
				s := schedule.New(c.claim, quiet, schedule.Work{
					Name: "backup", Times: parse(t, "CRON_TZ=UTC 0 */6 * * *"), Do: func(context.Context) error { d.add(); return nil },
				})
				if err := s.Start(context.Background()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(7 * time.Hour)
				c.mu.Lock()
				c.away = 0
				c.mu.Unlock()
				time.Sleep(6 * time.Hour)
				if err := s.Stop(t.Context()); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(d.at, tc.want) {
					t.Fatalf("done at %v, want %v", d.at, tc.want)
				}
			})
		})
	}
}

// TestLongAndFailingWork: what runs past its next time skips it, and a failure
// or a panic is not the end.
func TestLongAndFailingWork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, d := &claims{taken: map[string]bool{}}, &done{}
		n := 0
		s := schedule.New(c.claim, quiet, schedule.Work{Name: "backup", Times: parse(t, "CRON_TZ=UTC 0 * * * *"), Do: func(context.Context) error {
			d.add()
			switch n++; n {
			case 1:
				time.Sleep(90 * time.Minute)
			case 2:
				return errors.New("no")
			case 3:
				panic("no")
			}
			return nil
		}})
		if err := s.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5*time.Hour + 30*time.Minute)
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := []string{"01:00:00", "03:00:00", "04:00:00", "05:00:00"}; !slices.Equal(d.at, want) {
			t.Fatalf("done at %v, want %v", d.at, want)
		}
	})
}

// TestStopLetsWorkFinish: a drain waits for a running backup and begins none.
func TestStopLetsWorkFinish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &claims{taken: map[string]bool{}}
		finished := false
		s := schedule.New(c.claim, quiet, schedule.Work{Name: "backup", Times: parse(t, "CRON_TZ=UTC 0 1 * * *"), Do: func(ctx context.Context) error {
			select {
			case <-time.After(time.Hour):
				finished = true
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}})
		if err := s.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(90 * time.Minute)
		if err := s.Stop(context.Background()); err != nil || !finished {
			t.Fatalf("finished %v, %v", finished, err)
		}
	})
}
