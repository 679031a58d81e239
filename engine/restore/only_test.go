package restore

import (
	"errors"
	"strings"
	"testing"

	"github.com/walherd/walherd/engine/manifest"
)

// named is a list of the names of two databases, as walherd writes it, or
// without owners, as WAL-G does.
func named(owners bool) func(manifest.FilesVisitor) error {
	of := func(oid, node, owner uint32) manifest.Table {
		if !owners {
			owner = 0
		}
		return manifest.Table{OID: oid, RelFileNode: node, Owner: owner}
	}
	return func(v manifest.FilesVisitor) error {
		parted := of(16440, 0, 0)
		parted.Subtables = map[string]manifest.Table{"public.low": of(16441, 16441, 0)}
		for _, db := range []struct {
			name string
			oid  uint32
		}{{"app", 16390}, {"other db", 16391}} {
			for name, t := range map[string]manifest.Table{
				"pg_catalog.pg_class": of(1259, 17000, 0),
				"public.t":            of(16400, 17001, 0),
				"public.t_pkey":       of(16405, 16405, 16400),
				"public.t_id_seq":     of(16399, 16399, 16400),
				"public.t2":           of(16420, 16420, 0),
				"s.t":                 of(16430, 16430, 0),
				"public.parted":       parted,
				"public.low_pkey":     of(16442, 16442, 16441),

				"pg_toast.pg_toast_16400":       of(16402, 16402, 16400),
				"pg_toast.pg_toast_16400_index": of(16403, 16403, 16402),
			} {
				if err := v.Table(db.name, name, t); err != nil {
					return err
				}
			}
			if err := v.Database(db.name, db.oid); err != nil {
				return err
			}
		}
		return nil
	}
}

func TestOnly(t *testing.T) {
	t.Parallel()
	always := []string{
		"global/1262", "PG_VERSION", "base/1/1259", "base/5/16999", "base/16390/1249", "base/16391/1249_fsm", "base/16390/17000",
		"base/16391/17000", "base/16391/PG_VERSION", "base/16391/pg_filenode.map", "base/16395/1259", "pg_xact/0000",
	}
	// A file that no relation is known for is of a table rewritten meanwhile,
	// or of a database that is not wanted.
	never := []string{"base/16391/18000", "base/16395/18000"}
	for name, tt := range map[string]struct {
		without   bool // of owners
		list      string
		keep, not string
	}{
		"a table":      {false, "app/t", "base/16390/17001 base/16390/17001.1 base/16390/17001_vm base/16390/16405 base/16390/16399 base/16390/16402 base/16390/16403 pg_tblspc/1/PG_15_1/16390/17001 base/16390/18000", "base/16390/16420 base/16390/16430 base/16390/16441 base/16391/17001 pg_tblspc/1/PG_15_1/16391/17001 base/16390/16420_fsm base/16390/16420.3"},
		"by WAL-G":     {true, "app/t", "base/16390/17001 base/16390/16402 base/16390/16403", "base/16390/16405 base/16390/16399"},
		"partitions":   {false, "app/parted", "base/16390/16441 base/16390/16442", "base/16390/17001"},
		"a partition":  {false, "app/low", "base/16390/16441 base/16390/16442", "base/16390/17001"},
		"a schema":     {false, "app/s/*", "base/16390/16430", "base/16390/17001"},
		"dotted":       {false, "app/s.t", "base/16390/16430", "base/16390/17001"},
		"a database":   {false, `"other db"`, "base/16391/17001 base/16391/18000 base/16391/16420", "base/16390/17001"},
		"two":          {false, `app/t2,ot"her d"b/t`, "base/16390/16420 base/16391/17001 base/16391/16405 base/16391/18000", "base/16390/17001 base/16391/16420"},
		"any database": {false, "*/t2", "base/16390/16420 base/16391/16420 base/16391/18000", "base/16390/17001 base/16391/17001"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, err := ParseOnly([]string{tt.list})
			if err != nil {
				t.Fatal(err)
			}
			keep, notes, err := o.Resolve(named(!tt.without), false)
			if err != nil || (len(notes) > 0) != tt.without {
				t.Fatal(notes, err)
			}
			for _, p := range append(strings.Fields(tt.keep), always...) {
				if !keep(p) {
					t.Errorf("%s is left out", p)
				}
			}
			not := strings.Fields(tt.not)
			for _, p := range never {
				if !strings.Contains(tt.keep, p) {
					not = append(not, p)
				}
			}
			for _, p := range not {
				if keep(p) {
					t.Errorf("%s is kept", p)
				}
			}
		})
	}
}

func TestOnlyRefusals(t *testing.T) {
	t.Parallel()
	for _, list := range []string{"", "app/", "/t", "app,,x", "a/b/c/d", "app//t"} {
		if o, err := ParseOnly([]string{list}); err == nil {
			t.Errorf("%q was taken for %v", list, o)
		}
	}
	o, err := ParseOnly([]string{"app/t", "app/nothing,nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := o.Resolve(named(true), false); !errors.Is(err, ErrNoSuchRelation) || !strings.Contains(err.Error(), `"app/nothing", "nowhere"`) {
		t.Errorf("error %v", err)
	}
	if keep, notes, err := o.Resolve(named(true), true); err != nil || len(notes) != 1 || !keep("base/16390/17001") {
		t.Errorf("missing names allowed: %v, %v", notes, err)
	}
	if _, _, err := o.Resolve(func(manifest.FilesVisitor) error { return nil }, true); !errors.Is(err, ErrNoNames) {
		t.Errorf("a list without names: %v", err)
	}
}

// A full backup's tars in which nothing is wanted are not read.
func TestOnlySkipsTars(t *testing.T) {
	t.Parallel()
	c := &testChain{}
	src := c.add(t, fileList{"/": isWhole, "/base/5/1": isWhole, "/base/5/2": isWhole}, map[string][]entry{
		"part_001.tar": {dir("/"), {name: "/base/5/1", body: "one"}},
		"part_002.tar": {{name: "/base/5/2", body: "two"}},
	})
	got, err := c.run(t, Request{SkipRedundant: true, Reverse: true, Keep: func(p string) bool { return p != "base/5/2" }}, chainConfig())
	if err != nil {
		t.Fatal(err)
	}
	if got["base/5/1"] != "0600 one" || got["base/5/2"] != "" || src.opened["part_002.tar"] != 0 || src.opened["part_001.tar"] != 1 {
		t.Errorf("restored %v, opened %v", got, src.opened)
	}
}
