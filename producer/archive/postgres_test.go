package archive

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/producer/pgtest"
)

// TestWithPostgreSQL: a real server's backlog is worked off as its archiver
// would, with a process per ask, and in the end the server itself agrees that
// all is archived.
func TestWithPostgreSQL(t *testing.T) {
	t.Parallel()
	for _, rename := range []bool{false, true} {
		t.Run(fmt.Sprint("PG_READY_RENAME ", rename), func(t *testing.T) {
			t.Parallel()
			c := pgtest.New(t, pgtest.WithSegmentSize(1), pgtest.WithArchiveCommand("false"))
			c.SQL("CREATE TABLE t (i int)")
			for range 6 {
				c.SQL("INSERT INTO t VALUES (1); SELECT pg_switch_wal()")
			}
			w := &walDir{t, c.WALDir()}
			backlog, err := listReady(w.dir)
			if err != nil || len(backlog) < 6 {
				t.Fatalf("the backlog is %v, %v", backlog, err)
			}
			p := &pusher{}
			asks := 0
			for {
				names, err := listReady(w.dir)
				if err != nil {
					t.Fatal(err)
				}
				if len(names) == 0 {
					break
				}
				a := p.ahead(w, func(o *AheadOptions) { o.ReadyRename = rename })
				mustPush(t, a, filepath.Join(w.dir, names[0]))
				a.Close()
				asks++
				// The archiver's own: durable_rename of .ready to .done.
				if err := os.Rename(readyPath(w.dir, names[0]), donePath(w.dir, names[0])); err != nil {
					t.Fatal(err)
				}
			}
			got := p.pushed()
			slices.Sort(got)
			if !slices.Equal(got, backlog) {
				t.Fatalf("pushed %v\nof        %v", got, backlog)
			}
			if rename && asks == len(backlog) {
				t.Errorf("%d asks for %d files: nothing was shipped ahead", asks, len(backlog))
			}
			if left := w.marks(); len(left) > 0 {
				t.Errorf("marks left: %v", left)
			}
			for _, name := range backlog {
				if got := len(p.content[name]); pg.SegmentSize(got) != testSegment {
					t.Errorf("%s: %d bytes were archived", name, got)
				}
			}
			// The server goes on, removes what is done, and asks for the rest.
			c.SQL("INSERT INTO t VALUES (2); SELECT pg_switch_wal(); CHECKPOINT")
			if names, err := listReady(w.dir); err != nil || len(names) == 0 || slices.Contains(backlog, names[0]) {
				t.Errorf("after another segment the server wants %v, %v", names, err)
			}
			// And it starts again over what was renamed behind its back.
			c.Restart(pgtest.Fast)
			if got := c.SQL("SELECT count(*) FROM t"); got != "7" {
				t.Errorf("%s rows", got)
			}
		})
	}
}
