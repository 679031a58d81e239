package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// TestRestoreOnlyOddTables restores tables that are more than one file under one
// plain name: partitions in another tablespace, TOAST there, an identity column,
// names that SQL has to quote, a whole schema by wildcard, in a database whose name
// has to be quoted. The server starts though the files of the other databases are
// missing, those can be dropped, and what was restored is whole.
func TestRestoreOnlyOddTables(t *testing.T) {
	t.Parallel()
	b := newBench(t, []string{"WALG_DELTA_MAX_STEPS=1"})
	space := filepath.Join(pgtest.TempDir(t), "space")
	b.c.Run("/bin/mkdir", space)
	b.c.SQL(`CREATE TABLESPACE elsewhere LOCATION '` + space + `'`)
	b.c.SQL(`CREATE DATABASE "My App"`)
	b.c.SQL(`CREATE DATABASE spaced TABLESPACE elsewhere`)
	b.c.SQLIn("spaced", "CREATE TABLE gone AS SELECT generate_series(1, 1000) x")
	b.c.SQL(`CREATE DATABASE other`)
	b.c.SQLIn("other", "CREATE TABLE gone AS SELECT generate_series(1, 1000) x")
	b.c.SQLIn("My App", `
		CREATE TABLE "Odd Table" ("Id" int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, big text) TABLESPACE elsewhere;
		ALTER TABLE "Odd Table" ALTER big SET STORAGE EXTERNAL;
		INSERT INTO "Odd Table" (big) SELECT repeat(md5(g::text), 200) FROM generate_series(1, 200) g;
		CREATE TABLE "dot.ted" AS SELECT generate_series(1, 500) x;
		CREATE TABLE parted (k int, s serial, v text, PRIMARY KEY (k)) PARTITION BY LIST (k);
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
		CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2, 3) PARTITION BY LIST (k);
		CREATE TABLE parted_2_2 PARTITION OF parted_2 FOR VALUES IN (2) TABLESPACE elsewhere;
		CREATE TABLE parted_2_3 PARTITION OF parted_2 FOR VALUES IN (3);
		CREATE INDEX ON parted (v);
		INSERT INTO parted (k, v) VALUES (1, 'one'), (2, 'two'), (3, 'three');
		CREATE SCHEMA "Sales 2026";
		CREATE TABLE "Sales 2026".a AS SELECT generate_series(1, 300) x;
		CREATE TABLE "Sales 2026"."B" AS SELECT generate_series(1, 400) x;
		CREATE MATERIALIZED VIEW "Sales 2026".v AS SELECT count(*) n FROM "Sales 2026".a;
		CREATE TABLE gone AS SELECT generate_series(1, 1000) x;`)
	b.must("backup-push", b.c.DataDir())
	b.c.SQLIn("My App", `UPDATE "Odd Table" SET big = reverse(big) WHERE "Id" < 20; INSERT INTO "dot.ted" VALUES (0)`)
	b.must("backup-push", b.c.DataDir())
	const sums = `SELECT (SELECT md5(string_agg(t::text, '' ORDER BY "Id")) FROM "Odd Table" t), (SELECT count(*) FROM "dot.ted"),
		(SELECT string_agg(p::text, '' ORDER BY k) FROM parted p), (SELECT count(*) FROM "Sales 2026".a), (SELECT sum(x) FROM "Sales 2026"."B"), (SELECT n FROM "Sales 2026".v)`
	want := b.c.SQLIn("My App", sums)
	b.archived()
	missing := map[string]string{}
	for _, db := range []string{"My App", "spaced", "other"} {
		missing[db] = b.c.SQLIn(db, "SELECT pg_relation_filepath('gone')")
	}
	config := b.config()
	for i, only := range [][]string{
		{`--restore-only=My App/Odd Table,My App/public/dot.ted,My App/parted,My App/Sales*/*`},
		{"--restore-only", `"My App"/"Odd Table","My App"/public."dot.ted"`, "--restore-only", `My App/parted,My App/Sales 2026.*`},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			b := *b
			b.t = t
			dir := filepath.Join(pgtest.TempDir(t), "restored")
			b.must(append([]string{"--config", config, "backup-fetch", dir, "LATEST", "--recover"}, only...)...)
			for db, path := range missing {
				if _, err := os.Stat(filepath.Join(dir, path)); err == nil {
					t.Errorf("%s of %s was restored", path, db)
				}
			}
			c := b.ready(dir)
			if got := c.SQLIn("My App", sums); got != want {
				t.Errorf("restored %s, want %s", got, want)
			}
			if got := c.SQLIn("My App", `INSERT INTO "Odd Table" (big) VALUES ('after') RETURNING "Id" > 200`); got != "t" {
				t.Errorf("the identity column began again: %s", got)
			}
			if got := c.SQLIn("My App", `INSERT INTO parted (k, v) VALUES (2, 'again') ON CONFLICT (k) DO UPDATE SET s = excluded.s RETURNING s > 3`); got != "t" {
				t.Errorf("the serial column began again: %s", got)
			}
			c.Run("pg_amcheck", "--install-missing", "--heapallindexed", "-d", `"My App"`, "-t", `public."Odd Table"`, "-t", "public.parted_1", "-t", "public.parted_2_2", "-t", "public.parted_2_3")
			c.SQLIn("My App", "DROP TABLE gone")
			c.SQL("DROP DATABASE spaced")
			c.SQL("DROP DATABASE other")
			c.SQL("CHECKPOINT")
			c.Restart(pgtest.Fast)
			if got := strings.Fields(c.SQL("SELECT count(*) FROM pg_database WHERE datallowconn")); got[0] != "3" {
				t.Errorf("%s databases, want postgres, template1 and My App", got)
			}
		})
	}
}
