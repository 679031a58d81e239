package main

import (
	"fmt"
	"strings"

	"github.com/walherd/walherd/producer/pgtest"
)

// fact is one thing that must be the same after the restore.
type fact struct{ what, value string }

// note reads the facts.
func (d *demo) note() []fact {
	in := func(database, what, query string) fact {
		return fact{what, d.c.SQLIn(database, query)}
	}
	sums := func(table, column string) fact {
		return in("postgres", table, fmt.Sprintf("SELECT count(*), sum(%s) FROM %s", column, table))
	}
	facts := []fact{
		sums("pgbench_accounts", "abalance"),
		sums("pgbench_tellers", "tbalance"),
		sums("pgbench_branches", "bbalance"),
		in("postgres", "pgbench_history",
			"SELECT count(*), sum(delta), md5(string_agg(h::text, ',' ORDER BY tid, bid, aid, delta, mtime)) FROM pgbench_history h"),
		in("postgres", "the table in the tablespace", "SELECT count(*), md5(string_agg(p::text, ',' ORDER BY i)) FROM placed p"),
		in(oddDatabase, "the table with the odd name", fmt.Sprintf(
			"SELECT count(*), md5(string_agg(t::text, ',' ORDER BY %s)) FROM %s t", quoteIdent("номер один"), quoteIdent(oddTable))),
	}
	if err := balanced(facts[:4]); err != nil {
		d.t.Fatalf("read the row sums: %v", err)
	}
	return facts
}

// balanced holds pgbench's invariant: every transaction adds the same amount
// to an account, a teller and a branch, and records it.
func balanced(facts []fact) error {
	var first string
	for i, f := range facts {
		columns := strings.Split(f.value, "|")
		if len(columns) < 2 {
			return fmt.Errorf("%s: got %q", f.what, f.value)
		}
		if i == 0 {
			first = columns[1]
		}
		if columns[1] != first {
			return fmt.Errorf("%s sums up to %s, %s to %s", f.what, columns[1], facts[0].what, first)
		}
	}
	return nil
}

// differences lists what is not as noted.
func differences(noted, found []fact) []string {
	var out []string
	for i := range max(len(noted), len(found)) {
		switch {
		case i >= len(found):
			out = append(out, fmt.Sprintf("%s: was %s, is missing", noted[i].what, noted[i].value))
		case i >= len(noted):
			out = append(out, fmt.Sprintf("%s: was not there, is %s", found[i].what, found[i].value))
		case noted[i] != found[i]:
			out = append(out, fmt.Sprintf("%s: was %s, is %s", noted[i].what, noted[i].value, found[i].value))
		}
	}
	return out
}

// prove compares the restored cluster with what was noted, and lets
// PostgreSQL's own tools look for damage.
func (d *demo) prove(noted []fact, marker string) error {
	wrong := differences(noted, d.note())
	if got := d.c.SQL("SELECT text FROM marker"); got != marker {
		wrong = append(wrong, fmt.Sprintf("marker row: was %q, is %q", marker, got))
	}
	// Unlogged tables come back empty: their files are not in a backup.
	if got := d.c.SQL("SELECT count(*) FROM scratch"); got != "0" {
		wrong = append(wrong, "unlogged table: want no rows, has "+got)
	}
	if len(wrong) > 0 {
		return fmt.Errorf("compare the restored cluster:\n  %s", strings.Join(wrong, "\n  "))
	}
	for _, f := range noted {
		fmt.Fprintf(d.out, "          = %s: %s\n", f.what, f.value)
	}
	d.say("row sums are equal, the marker row is there, the unlogged table is empty")
	if segment, err := d.archived(); err != nil {
		return err
	} else if !strings.HasPrefix(segment, "00000002") {
		return fmt.Errorf("go on archiving: %s is not of timeline 2", segment)
	}
	d.say("archiving goes on, on the new timeline")
	if d.c.Major() < 14 {
		d.say("pg_amcheck skipped: it came with PostgreSQL 14")
	} else {
		out, err := d.c.RunErr("pg_amcheck", "--all", "--heapallindexed", "--install-missing")
		if err != nil || out != "" {
			return fmt.Errorf("pg_amcheck found damage: %w\n%s", err, out)
		}
		d.say("pg_amcheck --all --heapallindexed: clean")
	}
	d.c.Stop(pgtest.Fast)
	out, err := d.c.RunErr("pg_checksums", "--check", "-D", d.c.DataDir())
	if err != nil {
		return fmt.Errorf("pg_checksums found damage: %w\n%s", err, out)
	}
	blocks := ""
	for line := range strings.Lines(out) {
		if n, ok := strings.CutPrefix(line, "Blocks scanned:"); ok {
			blocks = strings.TrimSpace(n)
		}
	}
	if blocks == "" || blocks == "0" {
		return fmt.Errorf("pg_checksums scanned nothing:\n%s", out)
	}
	d.say("pg_checksums --check: %s blocks, clean", blocks)
	return nil
}
