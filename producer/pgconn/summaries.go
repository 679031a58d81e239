package pgconn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walherd/walherd/engine/changes"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

// ErrNoSummaries: the server cannot tell from its WAL summaries what changed.
// The error around it says why; whoever asked reads everything instead.
var ErrNoSummaries = errors.New("no WAL summaries for the range")

// firstSummaries is the version that brought summarize_wal.
const firstSummaries = 17

// The pause between two looks at what the summarizer has finished.
const (
	summaryPollMin = 20 * time.Millisecond
	summaryPollMax = 500 * time.Millisecond
)

// SummaryRange is what Summaries is asked for.
type SummaryRange struct {
	// From and To are the start LSNs of two base backups: summaries begin
	// and end at the redo points of checkpoints, and those are such.
	From, To pg.LSN
	// History of the server's timeline; that of timeline 1 has no switches.
	History wal.History
	// Wait bounds the wait for the summarizer to come to To. 0: no wait.
	Wait time.Duration
}

// Summaries gives the blocks that changed in the range, out of the summaries
// that a server with summarize_wal on keeps in pg_wal/summaries (PostgreSQL 17
// and later). The Map covers all of the range; when the server has not kept it
// all, has not come to its end within the wait, or cannot read them, the error
// wraps ErrNoSummaries. The role needs to be a superuser or to have been granted
// EXECUTE on the functions used.
//
// Summaries are not to be relied on for visibility maps; the Map is: it looks
// at the heap (see package changes).
func (c *Conn) Summaries(ctx context.Context, want SummaryRange) (*changes.Map, error) {
	doing := fmt.Sprintf("read WAL summaries from %s to %s", want.From, want.To)
	if want.To <= want.From || want.History.Timeline == 0 {
		return nil, fmt.Errorf("%s on timeline %d: not a range", doing, want.History.Timeline)
	}
	if major := c.version.Major(); major < firstSummaries {
		return nil, fmt.Errorf("%s: %w: PostgreSQL %d has none, %d was the first", doing, ErrNoSummaries, major, firstSummaries)
	}
	layout, err := c.summaryLayout(ctx)
	if err != nil {
		return nil, noSummaries(doing, err)
	}
	spans, err := c.awaitSummaries(ctx, want)
	if err != nil {
		return nil, noSummaries(doing, err)
	}
	var all *changes.Map
	for _, s := range spans {
		m, err := c.summary(ctx, layout, s)
		if err != nil {
			return nil, noSummaries(fmt.Sprintf("%s: the one from %s", doing, s), err)
		}
		if all == nil {
			all = m
		} else if err := all.Merge(m); err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
	}
	if err := all.Covers(want.From, want.To, want.History); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", doing, ErrNoSummaries, err)
	}
	return all, nil
}

// noSummaries explains a failure, which wraps ErrNoSummaries also when the server
// refuses an answer and the session lives on: a file that is damaged, or was
// removed since it was listed, or a role that may not look, is no reason for a
// host to be without backups.
func noSummaries(doing string, err error) error {
	// What is worse than ERROR ends the session.
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.SeverityUnlocalized == "ERROR" && pgErr.Code != codeQueryCanceled {
		hint := ""
		if pgErr.Code == codeInsufficientRights {
			hint = " (grant the role EXECUTE on pg_available_wal_summaries, pg_wal_summary_contents and pg_get_wal_summarizer_state)"
		}
		return fmt.Errorf("%s: %w: %w%s", doing, ErrNoSummaries, err, hint)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// summaryLayout asks how relations are cut, and whether there are summaries to
// hope for.
func (c *Conn) summaryLayout(ctx context.Context) (layout changes.Layout, err error) {
	release, err := c.acquire(ctx)
	if err != nil {
		return layout, err
	}
	defer release()
	var on bool
	err = c.conn.QueryRow(ctx, `SELECT current_setting('summarize_wal')::bool, database_block_size, blocks_per_segment FROM pg_control_init()`).
		Scan(&on, &layout.PageSize, &layout.FileBlocks)
	if err == nil && !on {
		err = fmt.Errorf("%w: the server does not make any (set summarize_wal = on)", ErrNoSummaries)
	}
	return layout, err
}

// awaitSummaries gives the summaries that make up the range, in order.
func (c *Conn) awaitSummaries(ctx context.Context, want SummaryRange) ([]changes.Span, error) {
	limit := time.NewTimer(want.Wait)
	defer limit.Stop()
	pause := summaryPollMin
	for {
		have, running, err := c.availableSummaries(ctx, want)
		if err != nil {
			return nil, err
		}
		chosen, at := chooseSummaries(have, want)
		switch {
		case at >= want.To:
			return chosen, nil
		case slices.ContainsFunc(have, func(s changes.Span) bool { return s.Start > at }):
			// Summaries are made in order: what lies before one is not made
			// any more.
			return nil, fmt.Errorf("%w: they lack WAL from %s on (removed after wal_summary_keep_time, or written while summarize_wal was off, or under wal_level = minimal)", ErrNoSummaries, at)
		case !running:
			return nil, fmt.Errorf("%w: they end at %s and the summarizer does not run (see the server's log)", ErrNoSummaries, at)
		}
		next := time.NewTimer(pause)
		pause = min(pause*2, summaryPollMax)
		select {
		case <-ctx.Done():
			next.Stop()
			return nil, context.Cause(ctx)
		case <-limit.C:
			next.Stop()
			return nil, fmt.Errorf("%w: they end at %s after a wait of %s (is the server overloaded?)", ErrNoSummaries, at, want.Wait)
		case <-next.C:
		}
	}
}

// availableSummaries lists what there is of the range and of later WAL.
func (c *Conn) availableSummaries(ctx context.Context, want SummaryRange) (have []changes.Span, running bool, err error) {
	release, err := c.acquire(ctx)
	if err != nil {
		return nil, false, err
	}
	defer release()
	// Asked first: a summary finished in between is then seen.
	if err := c.conn.QueryRow(ctx, "SELECT summarizer_pid IS NOT NULL FROM pg_get_wal_summarizer_state()").Scan(&running); err != nil {
		return nil, false, err
	}
	rows, err := c.conn.Query(ctx, "SELECT tli, start_lsn::text, end_lsn::text FROM pg_available_wal_summaries() WHERE end_lsn > $1::text::pg_lsn ORDER BY start_lsn, end_lsn", want.From.String())
	if err != nil {
		return nil, false, err
	}
	have, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s changes.Span, err error) {
		var (
			tl         int64
			start, end string
		)
		if err := row.Scan(&tl, &start, &end); err != nil {
			return s, err
		}
		s.Timeline = pg.Timeline(tl)
		if s.Start, err = pg.ParseLSN(start); err != nil {
			return s, err
		}
		s.End, err = pg.ParseLSN(end)
		return s, err
	})
	return have, running, err
}

// chooseSummaries picks, out of those ordered by start, the ones that cover the
// range from its beginning without a gap, each of the timeline the server was
// on; at is how far they come.
func chooseSummaries(have []changes.Span, want SummaryRange) (chosen []changes.Span, at pg.LSN) {
	at = want.From
	for at < want.To {
		best := -1
		for i, s := range have {
			if s.Timeline == want.History.At(at) && s.Start <= at && s.End > at && (best < 0 || s.End > have[best].End) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		s := have[best]
		for _, sw := range want.History.Switches {
			if sw.Timeline == s.Timeline {
				s.End = min(s.End, sw.LSN)
			}
		}
		chosen, at = append(chosen, have[best]), s.End
	}
	return chosen, at
}

// summary reads one summary.
func (c *Conn) summary(ctx context.Context, layout changes.Layout, s changes.Span) (*changes.Map, error) {
	m, err := changes.New(layout, s)
	if err != nil {
		return nil, err
	}
	release, err := c.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	// The free space map is not in summaries, and of no interest.
	rows, err := c.conn.Query(ctx, `
SELECT reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, is_limit_block
FROM pg_wal_summary_contents($1::int8, $2::text::pg_lsn, $3::text::pg_lsn)
WHERE relforknumber <> 1`, int64(s.Timeline), s.Start.String(), s.End.String())
	if err != nil {
		return nil, err
	}
	var (
		f     changes.Fork
		fork  int16
		block int64
		limit bool
	)
	_, err = pgx.ForEachRow(rows, []any{&f.Tablespace, &f.Database, &f.Relation, &fork, &block, &limit}, func() error {
		f.Fork = wal.Fork(fork)
		switch {
		case f.Relation == 0:
			// All relations of the database in that tablespace.
			m.MarkDatabase(changes.DatabaseDir{Tablespace: f.Tablespace, Database: f.Database})
		case !limit:
			m.Mark(f, uint32(block))
		case f.Fork != wal.VisibilityFork || block == 0:
			// Nothing tells a truncation from a creation. A visibility map's
			// limit above 0 is left out: until the minor versions of
			// 2026 it was the heap's block number, and the heap's own
			// limit says all.
			m.Limit(f, uint32(block), true)
		}
		return nil
	})
	return m, err
}
