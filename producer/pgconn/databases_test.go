package pgconn_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgconn"
	"github.com/walherd/walherd/producer/pgtest"
)

func TestDatabases(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	pgt.SQL(`CREATE DATABASE shop; CREATE DATABASE closed; CREATE DATABASE sealed ALLOW_CONNECTIONS false;
		CREATE ROLE lister LOGIN; REVOKE CONNECT ON DATABASE closed FROM PUBLIC`)
	pgt.SQLIn("shop", `
		CREATE SCHEMA s;
		CREATE TABLE s.plain (id int PRIMARY KEY, note text, n serial, i int GENERATED ALWAYS AS IDENTITY);
		CREATE SEQUENCE s.alone;
		CREATE VIEW s.seen AS SELECT 1;
		CREATE TABLE s.moved (i int);
		TRUNCATE s.moved; -- its file gets another number than its oid
		CREATE TABLE parted (k int) PARTITION BY RANGE (k);
		CREATE INDEX parted_k ON parted (k);
		CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (k);
		CREATE TABLE parted_low_1 PARTITION OF parted_low FOR VALUES FROM (0) TO (5);
		CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (10) TO (20);
		CREATE TABLE mother (); CREATE TABLE father ();
		CREATE TABLE child () INHERITS (mother, father)`)
	var log buffer
	c := connectLogged(t, pgt.ConnString()+" user=lister", log.logger())
	dbs, err := c.Databases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sealed", "closed", "template0"} {
		if _, ok := dbs[name]; ok {
			t.Errorf("database %s is listed", name)
		}
	}
	if got := log.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "database=closed") || strings.Contains(got, "sealed") {
		t.Errorf("want one warning, for closed; log: %s", got)
	}
	for _, name := range []string{"postgres", "template1", "shop"} {
		if got := pgt.SQL("SELECT oid FROM pg_database WHERE datname = '" + name + "'"); got != uitoa(uint64(dbs[name].OID)) {
			t.Errorf("oid of %s: got %d, want %s", name, dbs[name].OID, got)
		}
	}
	shop := dbs["shop"].Tables
	number := func(query string) uint32 {
		t.Helper()
		n, err := strconv.ParseUint(pgt.SQLIn("shop", query), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(n)
	}
	check := func(where map[string]pgconn.Table, name string, subtables ...string) pgconn.Table {
		t.Helper()
		got, ok := where[name]
		if !ok {
			t.Errorf("%s is missing", name)
			return got
		}
		want := pgconn.Table{
			OID:         number("SELECT '" + name + "'::regclass::oid"),
			RelFileNode: number("SELECT coalesce(pg_relation_filenode('" + name + "'), 0)"),
		}
		if got.OID != want.OID || got.RelFileNode != want.RelFileNode {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
		for _, sub := range subtables {
			if s, ok := got.Subtables[sub]; !ok || s.Subtables != nil {
				t.Errorf("%s has no plain subtable %s: %v", name, sub, got.Subtables)
			}
		}
		if len(got.Subtables) != len(subtables) {
			t.Errorf("%s: subtables %v, want %v", name, got.Subtables, subtables)
		}
		return got
	}
	check(shop, "s.plain")
	check(shop, "s.plain_pkey")
	if m := check(shop, "s.moved"); m.OID == m.RelFileNode {
		t.Errorf("s.moved: %+v, the test wants a file number of its own", m)
	}
	if c := check(shop, "pg_catalog.pg_class"); c.RelFileNode == 0 {
		t.Errorf("mapped catalog: %+v", c)
	}
	check(shop, "pg_toast.pg_toast_"+uitoa(uint64(shop["s.plain"].OID)))
	plain := shop["s.plain"].OID
	toast := "pg_toast.pg_toast_" + uitoa(uint64(plain))
	for name, owner := range map[string]uint32{
		"s.plain": 0, "s.plain_pkey": plain, "s.plain_n_seq": plain, "s.plain_i_seq": plain, "s.alone": 0,
		toast: plain, toast + "_index": shop[toast].OID,
	} {
		if got := check(shop, name); got.Owner != owner {
			t.Errorf("%s belongs to %d, want %d", name, got.Owner, owner)
		}
	}
	p := check(shop, "public.parted", "public.parted_low", "public.parted_low_1", "public.parted_high")
	if p.RelFileNode != 0 || p.Subtables["public.parted_low"].RelFileNode != 0 {
		t.Errorf("partitioned tables have files: %+v", p)
	}
	check(p.Subtables, "public.parted_low_1")
	check(shop, "public.parted_k", "public.parted_low_k_idx", "public.parted_low_1_k_idx", "public.parted_high_k_idx")
	check(shop, "public.mother", "public.child")
	check(shop, "public.father", "public.child")
	if got := shop["public.parted_k"].Subtables["public.parted_low_1_k_idx"].Owner; got != p.Subtables["public.parted_low_1"].OID {
		t.Errorf("the index of a partition belongs to %d", got)
	}
	for _, name := range []string{"public.parted_low", "public.parted_low_1", "public.child", "s.seen"} {
		if _, ok := shop[name]; ok {
			t.Errorf("%s is top-level", name)
		}
	}
	// Nothing with files is lost.
	count := number("SELECT count(*) FROM pg_class WHERE pg_relation_filenode(oid) IS NOT NULL")
	have := map[uint32]bool{}
	for _, t := range shop {
		for _, s := range t.Subtables {
			have[s.RelFileNode] = true
		}
		have[t.RelFileNode] = true
	}
	delete(have, 0)
	if uint32(len(have)) != count {
		t.Errorf("%d files listed, the catalog has %d", len(have), count)
	}
}

func TestDatabasesOfAStoppedServer(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	c := connect(t, pgt.ConnString())
	pgt.Stop(pgtest.Immediate)
	if dbs, err := c.Databases(t.Context()); err == nil {
		t.Errorf("got %v", dbs)
	}
}
