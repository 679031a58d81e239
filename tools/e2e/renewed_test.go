package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/walherd/walherd/engine/restore"
	"github.com/walherd/walherd/producer/pgtest"
)

// TestScanSeesARenewedDatabase: a database made by copying another's files, under
// the number of one that was dropped, has files of the same names, whose pages
// are older than the parent backup.
func TestScanSeesARenewedDatabase(t *testing.T) {
	t.Parallel()
	c := pgtest.New(t)
	side := pgtest.TempDir(t)
	c.SQL("CREATE TABLESPACE side LOCATION '" + side + "'")
	c.SQL("CREATE DATABASE model; CREATE DATABASE d OID = 50000 STRATEGY file_copy TEMPLATE model")
	// In model only, and before the parent.
	c.SQLIn("model", "CREATE TABLE m AS SELECT g FROM generate_series(1, 1000) g; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
	c.SQLIn("model", "CREATE TABLE aside TABLESPACE side AS SELECT g FROM generate_series(1, 1000) g")
	c.Stop(pgtest.Fast)
	full := backUpCold(t, c.DataDir(), nil)
	c.Start()
	c.SQL("DROP DATABASE d")
	c.SQL("CREATE DATABASE d OID = 50000 STRATEGY file_copy TEMPLATE model")
	c.Stop(pgtest.Fast)
	increment := backUpCold(t, c.DataDir(), full)
	dir := filepath.Join(pgtest.TempDir(t), "restored")
	p, err := restore.NewChainPlan([]restore.Link{full.link, increment.link}, restore.Request{Destination: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := restore.RunChain(t.Context(), p, []restore.Source{full, increment}, restoreConfig()); err != nil {
		t.Fatal(err)
	}
	for i := range increment.entries {
		e := &increment.entries[i]
		if e.IsDir() {
			continue
		}
		want, err := os.ReadFile(e.Path(c.DataDir()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(e.Path(dir))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs (%v)", e.Name, increment.actions[i])
		}
	}
}
