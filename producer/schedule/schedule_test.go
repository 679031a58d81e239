package schedule_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

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

// TestClocksThatAreChanged: what a schedule means on the days on which clocks are
// set forth and back.
func TestClocksThatAreChanged(t *testing.T) {
	t.Parallel()
	for text, tc := range map[string]struct{ from, to, want string }{
		// Berlin leaps from 02:00 to 03:00 on March 29, and shows 02:00 to 03:00
		// twice on October 25.
		"CRON_TZ=Europe/Berlin 30 2 * * *":        {"2026-03-28T00:00Z", "2026-03-31T00:00Z", "28T01:30 29T01:00 30T00:30"},
		"CRON_TZ=Europe/Berlin 0,15,30 2,3 * * *": {"2026-03-28T12:00Z", "2026-03-29T12:00Z", "29T01:00 29T01:15 29T01:30"},
		"CRON_TZ=Europe/Berlin 30 2 * * 0":        {"2026-03-28T00:00Z", "2026-04-06T00:00Z", "29T01:00 05T00:30"},
		"CRON_TZ=Europe/Berlin 0 1-5 * * *":       {"2026-10-24T12:00Z", "2026-10-25T12:00Z", "24T23:00 25T00:00 25T02:00 25T03:00 25T04:00"},
		"CRON_TZ=Europe/Berlin 30 2,3 * * *":      {"2026-10-24T12:00Z", "2026-10-25T12:00Z", "25T00:30 25T02:30"},
		"CRON_TZ=Europe/Berlin 0 * * 10 *":        {"2026-10-24T23:30Z", "2026-10-25T02:30Z", "25T00:00 25T01:00 25T02:00"},
		"CRON_TZ=Europe/Berlin 30 * * 3 *":        {"2026-03-29T00:00Z", "2026-03-29T02:45Z", "29T00:30 29T01:30 29T02:30"},
		// Half an hour, at two in the morning.
		"CRON_TZ=Australia/Lord_Howe 15 2 * * *":   {"2026-10-02T00:00Z", "2026-10-05T00:00Z", "02T15:45 03T15:30 04T15:15"},
		"CRON_TZ=Australia/Lord_Howe 45 1 4,5 4 *": {"2026-04-03T00:00Z", "2026-04-05T12:00Z", "03T14:45 04T14:45"},
		// Midnight itself does not come there on April 24.
		"CRON_TZ=Africa/Cairo 0 0 * * *": {"2026-04-22T00:00Z", "2026-04-25T12:00Z", "22T22:00 23T22:00 24T21:00"},
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			const layout = "2006-01-02T15:04Z07:00"
			at, err := time.Parse(layout, tc.from)
			if err != nil {
				t.Fatal(err)
			}
			to, err := time.Parse(layout, tc.to)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for s := parse(t, text); ; {
				if at = s.Next(at); at.After(to) {
					break
				}
				got = append(got, at.UTC().Format("02T15:04"))
			}
			if strings.Join(got, " ") != tc.want {
				t.Fatalf("got  %s\nwant %s", strings.Join(got, " "), tc.want)
			}
		})
	}
}

// TestEveryDayOnce: of a time of day there is one on every day, wherever, and
// asking from any moment before it gives that one.
func TestEveryDayOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		zone := rapid.SampledFrom([]string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "America/Sao_Paulo", "UTC", "Asia/Kathmandu"}).Draw(t, "zone")
		hour, minute := rapid.IntRange(0, 23).Draw(t, "hour"), rapid.IntRange(0, 59).Draw(t, "minute")
		s, err := schedule.Parse(fmt.Sprintf("CRON_TZ=%s %d %d * * *", zone, minute, hour))
		if err != nil {
			t.Fatal(err)
		}
		where, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		day := rapid.IntRange(0, 20*365).Draw(t, "day")
		from := time.Date(2010, 1, 1+day, 12, 0, 0, 0, where)
		at := from
		for i := range 200 {
			next := s.Next(at)
			if between := at.Add(time.Duration(rapid.Int64Range(0, int64(next.Sub(at))-1).Draw(t, "between"))); !s.Next(between).Equal(next) {
				t.Fatalf("after %s comes %s, after %s %s", at, next, between, s.Next(between))
			}
			first := 0
			if hour < 12 || hour == 12 && minute == 0 {
				first = 1
			}
			if want := time.Date(2010, 1, 1+day+first+i, 12, 0, 0, 0, where); next.In(where).YearDay() != want.YearDay() {
				t.Fatalf("after %s comes %s, not on %s", at, next.In(where), want.Format(time.DateOnly))
			}
			at = next
		}
	})
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
