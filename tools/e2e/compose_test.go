package e2e

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/producer/pgtest"
)

// list is a backup's files_metadata.json.
type list struct {
	files map[string]manifest.File
	tars  map[string][]string
}

func (b *bench) list(backup string) list {
	b.t.Helper()
	f, err := os.Open(filepath.Join(b.storage, "basebackups_005", backup, "files_metadata.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	l := list{files: map[string]manifest.File{}, tars: map[string][]string{}}
	if err := manifest.ReadFiles(f, manifest.FilesVisitor{
		File:     func(name string, f manifest.File) error { l.files[name] = f; return nil },
		TarEntry: func(tar, name string) error { l.tars[tar] = append(l.tars[tar], name); return nil },
	}); err != nil {
		b.t.Fatal(err)
	}
	return l
}

// tarOf is the tar that holds a file.
func (l list) tarOf(t testing.TB, name string) string {
	t.Helper()
	for tar, names := range l.tars {
		if slices.Contains(names, name) {
			return tar
		}
	}
	t.Fatalf("%s is in no tar", name)
	return ""
}

// checkParts demands that the folder has the tars of the list, and that no file
// is in two.
func (b *bench) checkParts(backup string) list {
	b.t.Helper()
	l := b.list(backup)
	in := map[string]string{}
	for tar, names := range l.tars {
		if _, err := os.Stat(filepath.Join(b.storage, "basebackups_005", backup, "tar_partitions", tar)); err != nil {
			b.t.Error(err)
		}
		for _, n := range names {
			if in[n] != "" {
				b.t.Errorf("%s is in %s and in %s", n, in[n], tar)
			}
			in[n] = tar
		}
	}
	for name := range l.files {
		if in[name] == "" {
			b.t.Errorf("%s is in no tar", name)
		}
	}
	return l
}

// age makes the files of a cluster look old: what was written within the last
// two seconds before a backup is not believed to be unchanged.
func age(t testing.TB, c *pgtest.Cluster) {
	t.Helper()
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	err := filepath.WalkDir(c.DataDir()+"/base", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, old, old)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestComposers takes a backup with each composer, of two databases and a
// tablespace, and restores each.
func TestComposers(t *testing.T) {
	t.Parallel()
	for name, fleetShape := range map[string]bool{"embedded": false, "fleet": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b *bench
			// Nobody but the test writes, or what is to be cold is not.
			quiet := pgtest.WithConf("autovacuum = off")
			push := func(args ...string) string {
				r := b.run(nil, append([]string{"backup-push", b.c.DataDir()}, args...)...)
				if r.code != 0 {
					t.Fatalf("backup-push %v: %+v", args, r)
				}
				return r.stderr
			}
			if fleetShape {
				f := newFleet(t, quiet)
				b = f.bench
				f.worker("a")
				push = func(args ...string) string {
					_, stderr, code := f.ask(nil, append([]string{"backup-push", b.c.DataDir()}, args...)...)
					if code != 0 {
						t.Fatalf("backup-push %v: exit code %d\n%s", args, code, stderr)
					}
					return stderr
				}
			} else {
				b = newBench(t, nil, quiet)
			}
			b.c.Run("pgbench", "-i", "-q", "-s", "1", "postgres")
			b.c.SQL("CREATE DATABASE other")
			b.c.SQLIn("other", "CREATE TABLE cold AS SELECT g FROM generate_series(1, 10000) g")
			b.c.SQLIn("other", "SELECT pg_stat_reset()")
			sums := map[string]string{}
			pushed := func(args ...string) (string, string) {
				t.Helper()
				b.c.Run("pgbench", "-n", "-t", "50", "postgres")
				b.c.SQL("CHECKPOINT")
				said := push(args...)
				backup := last(b.backups())
				sums[backup] = b.c.SQL(bankSums)
				return backup, said
			}
			path := func(db, relation string) string {
				return "/" + b.c.SQLIn(db, "SELECT pg_relation_filepath('"+relation+"')")
			}

			// Nothing to copy yet.
			first, said := pushed("--copy-composer")
			if !strings.Contains(said, "no parts are copied: there is no backup") {
				t.Errorf("the first with --copy-composer: %s", said)
			}
			b.checkParts(first)

			age(t, b.c)
			database, _ := pushed("--database-composer")
			l := b.checkParts(database)
			for tar, names := range l.tars {
				dirs := map[string]bool{}
				for _, n := range names {
					if parts := strings.Split(n, "/"); len(parts) > 3 && parts[1] == "base" {
						dirs[parts[2]] = true
					} else if _, dir := os.Stat(filepath.Join(b.c.DataDir(), n)); tar != "part_001.tar.lz4" && dir == nil && parts[0] == "" {
						dirs["elsewhere"] = true
					}
				}
				if len(dirs) > 1 {
					t.Errorf("%s mixes %v", tar, dirs)
				}
			}

			rating, _ := pushed("--rating-composer")
			l = b.checkParts(rating)
			hot, cold := path("postgres", "pgbench_accounts"), path("other", "cold")
			if l.files[hot].UpdatesCount < 50 || l.files[cold].UpdatesCount != 0 || l.tarOf(t, hot) == l.tarOf(t, cold) {
				t.Errorf("accounts: %+v in %s, cold: %+v in %s", l.files[hot], l.tarOf(t, hot), l.files[cold], l.tarOf(t, cold))
			}

			// The latest full backup has the databases apart; those that nobody
			// writes to are copied.
			age(t, b.c)
			again, _ := pushed("--database-composer")
			one, said := pushed("--copy-composer")
			l = b.checkParts(one)
			if !strings.Contains(said, "parts are copied from the last full backup") {
				t.Errorf("the one that copies: %s", said)
			}
			if tar := l.tarOf(t, cold); !strings.HasPrefix(tar, "copy_") || strings.HasPrefix(l.tarOf(t, hot), "copy_") {
				t.Errorf("cold is in %s, accounts in %s", tar, l.tarOf(t, hot))
			} else if from := b.list(again).tarOf(t, cold); !sameFile(t, b, again+"/tar_partitions/"+from, one+"/tar_partitions/"+tar) {
				t.Errorf("%s is no copy of %s", tar, from)
			}
			// A copy of a copy, of which a source is gone: it is packed anew.
			if err := os.Remove(filepath.Join(b.storage, "basebackups_005", one, "tar_partitions", l.tarOf(t, cold))); err != nil {
				t.Fatal(err)
			}
			delete(sums, one)
			two, _ := pushed("--copy-composer")
			if tar := b.checkParts(two).tarOf(t, cold); !strings.HasPrefix(tar, "copy_") {
				t.Errorf("cold is in %s", tar)
			}
			b.archived()
			for backup, want := range sums {
				if backup == first {
					continue // nothing special
				}
				dir := filepath.Join(pgtest.TempDir(t), "restored")
				b.must("backup-fetch", dir, backup)
				r := b.recover(dir, "recovery_target = 'immediate'", "recovery_target_action = 'promote'")
				if got := r.SQL(bankSums); got != want {
					t.Errorf("%s restored to %s, was %s", backup, got, want)
				}
				if got := r.SQLIn("other", "SELECT sum(g) FROM cold"); got != "50005000" {
					t.Errorf("%s: cold sums up to %s", backup, got)
				}
				checksums(t, r)
			}
		})
	}
}

func sameFile(t testing.TB, b *bench, one, other string) bool {
	t.Helper()
	var content [2]string
	for i, name := range []string{one, other} {
		data, err := os.ReadFile(filepath.Join(b.storage, "basebackups_005", name))
		if err != nil {
			t.Fatal(err)
		}
		content[i] = string(data)
	}
	return content[0] == content[1]
}

// TestPageChecksums damages pages of a running cluster.
func TestPageChecksums(t *testing.T) {
	t.Parallel()
	b := newBench(t, []string{"WALG_DELTA_MAX_STEPS=5"}, pgtest.WithConf("autovacuum = off"))
	b.c.SQL("CREATE TABLE x AS SELECT g, repeat('x', 500) t FROM generate_series(1, 1000) g")
	b.c.SQL("CREATE UNLOGGED TABLE u AS SELECT g FROM generate_series(1, 1000) g")
	b.c.SQL("CHECKPOINT")
	name := "/" + b.c.SQL("SELECT pg_relation_filepath('x')")
	damage := func(blocks ...int64) {
		f, err := os.OpenFile(b.c.DataDir()+name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, n := range blocks {
			if _, err := f.WriteAt([]byte("damage"), n*8192+8100); err != nil {
				t.Fatal(err)
			}
		}
	}
	push := func(args ...string) (list, map[string]manifest.CorruptFile, string) {
		t.Helper()
		r := b.run(nil, append([]string{"backup-push", b.c.DataDir()}, args...)...)
		if r.code != 0 {
			t.Fatalf("backup-push %v: %+v", args, r)
		}
		backup := last(b.backups())
		doc, err := os.ReadFile(filepath.Join(b.storage, "basebackups_005", backup+"_backup_stop_sentinel.json"))
		if err != nil {
			t.Fatal(err)
		}
		var s struct {
			Files map[string]manifest.CorruptFile
		}
		if err := json.Unmarshal(doc, &s); err != nil {
			t.Fatal(err)
		}
		return b.list(backup), s.Files, r.stderr
	}
	if l, files, said := push("--verify"); files != nil || l.files[name].CorruptBlocks != nil || strings.Contains(said, "WARN") {
		t.Errorf("a sound cluster: %v, %+v: %s", files, l.files[name], said)
	}
	damage(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23)
	all := []uint32{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23}
	for _, tc := range []struct {
		args []string
		want []uint32
	}{
		{[]string{"--full"}, nil},
		{[]string{"--full", "--verify"}, all[:10]},
		{[]string{"--full", "--verify", "--store-all-corrupt"}, all},
	} {
		l, files, said := push(tc.args...)
		c := l.files[name].CorruptBlocks
		switch {
		case tc.want == nil:
			if c != nil || files != nil {
				t.Errorf("%v: %+v, %v", tc.args, c, files)
			}
		case c == nil || c.Count != 12 || !slices.Equal(c.Some, tc.want) || !slices.Equal(files[name].CorruptBlocks, tc.want) || len(files) != 1:
			t.Errorf("%v: %+v, sentinel: %v", tc.args, c, files)
		case !strings.Contains(said, "corrupt pages") || !strings.Contains(said, name):
			t.Errorf("%v: %s", tc.args, said)
		}
	}
	// A page of an increment. The server has the sound page in memory.
	b.c.SQL("UPDATE x SET t = repeat('y', 500) WHERE ctid = '(30,1)'")
	b.c.SQL("CHECKPOINT")
	damage(30)
	l, files, _ := push("--verify")
	if f := l.files[name]; !f.IsIncremented || f.CorruptBlocks == nil || !slices.Equal(f.CorruptBlocks.Some, []uint32{30}) || !files[name].IsIncremented {
		t.Errorf("the increment: %+v (%+v), %v", f, f.CorruptBlocks, files)
	}
	// It restores all the same.
	b.must("backup-fetch", filepath.Join(pgtest.TempDir(t), "restored"), "LATEST")
}

func TestPageChecksumsThatAreNotThere(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil, pgtest.WithoutChecksums())
	r := b.run([]string{"WALG_VERIFY_PAGE_CHECKSUMS=true"}, "backup-push", b.c.DataDir())
	if r.code != 0 || !strings.Contains(r.stderr, "page checksums are not verified: the cluster has none") {
		t.Errorf("%+v", r)
	}
	for _, composer := range []string{"--rating-composer", "--copy-composer", "--database-composer"} {
		if r := b.run(nil, "backup-push", b.c.DataDir(), "--without-files-metadata", composer); r.code != 1 || !strings.Contains(r.stderr, "cannot be used with") {
			t.Errorf("without the list of files, %s: %+v", composer, r)
		}
	}
	if n := len(b.backups()); n != 1 {
		t.Errorf("%d backups", n)
	}
}
