package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// foreignRepo is a cluster that pgBackRest archives and backs up, into two
// repositories: 1 is plain, 2 is encrypted and bundles small files.
type foreignRepo struct {
	*bench
	dir, stanza string
	// spaceOID is the cluster's tablespace.
	spaceOID string
}

const foreignPass = `geheim & "x" ü`

// newForeignRepo skips where pgBackRest is missing or does not know the server.
func newForeignRepo(t *testing.T) *foreignRepo {
	t.Helper()
	if _, err := exec.LookPath("pgbackrest"); err != nil {
		t.Skip("pgbackrest is not installed (make deps installs Debian's)")
	}
	f := &foreignRepo{dir: pgtest.TempDir(t), stanza: "demo-1.x"}
	f.bench = &bench{t: t, program: program(t)}
	f.c = pgtest.New(t, pgtest.WithOwnSystemID(), pgtest.WithArchiveCommand("pgbackrest --config="+f.dir+"/conf --stanza="+f.stanza+" archive-push %p"))
	f.compress("lz4")
	for _, d := range []string{"repo1", "repo2", "log", "lock", "spool", "space", "outside"} {
		f.c.Run("/bin/mkdir", filepath.Join(f.dir, d))
	}
	if _, err := f.backrestErr("stanza-create"); err != nil {
		if strings.Contains(err.Error(), "unexpected control version") {
			t.Skipf("this pgbackrest does not know PostgreSQL %d", f.c.Major())
		}
		t.Fatal(err)
	}
	// What is odd in a data directory: a tablespace, an empty directory, modes,
	// names, links to a file and to a directory elsewhere.
	f.c.SQL(`CREATE TABLESPACE "odd space" LOCATION '` + f.dir + `/space'`)
	f.c.SQL(`CREATE TABLE spaced (x) TABLESPACE "odd space" AS SELECT generate_series(1, 10000)`)
	f.c.SQL("CREATE UNLOGGED TABLE unlogged AS SELECT 1")
	f.c.Run("/bin/sh", "-c", `set -e
mkdir -m 750 "$1/empty dir" "$2/outside/dir"
echo odd > "$1/odd={\"x\":1} ü"; chmod 640 "$1/odd={\"x\":1} ü"
echo file > "$2/outside/file"; echo in > "$2/outside/dir/in"
ln -s "$2/outside/file" "$1/linked.file"; ln -s "$2/outside/dir" "$1/linked.dir"
touch -d '2001-02-03 04:05:06 UTC' "$2/outside/file"`, "sh", f.c.DataDir(), f.dir)
	f.spaceOID = f.c.SQL("SELECT oid FROM pg_tablespace WHERE spcname = 'odd space'")
	return f
}

// compress has the next WAL and backups compressed with a method.
func (f *foreignRepo) compress(method string) {
	f.t.Helper()
	conf := fmt.Sprintf(`[global]
repo1-path=%[1]s/repo1
repo2-path=%[1]s/repo2
repo2-cipher-type=aes-256-cbc
repo2-cipher-pass=%[2]s
repo2-bundle=y
repo1-retention-full=9
repo2-retention-full=9
compress-type=%[3]s
log-path=%[1]s/log
lock-path=%[1]s/lock
spool-path=%[1]s/spool
log-level-file=off
log-level-console=warn
start-fast=y
process-max=2
[%[4]s]
pg1-path=%[5]s
pg1-socket-path=%[6]s
pg1-port=%[7]d
pg1-user=postgres
`, f.dir, foreignPass, method, f.stanza, f.c.DataDir(), f.c.SocketDir(), f.c.Port())
	// Replaced at once: the archiver may be reading it.
	next := filepath.Join(f.dir, "conf.next")
	err := os.WriteFile(next, []byte(conf), 0o644)
	if err := errors.Join(err, os.Rename(next, filepath.Join(f.dir, "conf"))); err != nil {
		f.t.Fatal(err)
	}
}

func (f *foreignRepo) backrestErr(args ...string) (string, error) {
	cmd := f.c.Command(context.Background(), "pgbackrest", append([]string{"--config=" + f.dir + "/conf", "--stanza=" + f.stanza}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("pgbackrest %v: %w\n%s", args, err, out)
	}
	return string(out), err
}

// backup takes a backup and returns its name.
func (f *foreignRepo) backup(repo int, kind string) string {
	f.t.Helper()
	if _, err := f.backrestErr("backup", "--type="+kind, "--repo="+strconv.Itoa(repo)); err != nil {
		f.t.Fatal(err)
	}
	list := f.list(repo)
	return list[len(list)-1].Name
}

type foreignBackup struct {
	Name string `json:"backup_name"`
	WAL  string `json:"wal_file_name"`
}

func (f *foreignRepo) list(repo int) (list []foreignBackup) {
	f.t.Helper()
	if err := json.Unmarshal([]byte(f.walherd(repo, "backup-list", "--json")), &list); err != nil {
		f.t.Fatal(err)
	}
	return list
}

// settings are what walherd needs to read a repository.
func (f *foreignRepo) settings(repo int) []string {
	env := []string{"WALG_FILE_PREFIX=" + f.dir + "/repo" + strconv.Itoa(repo), "PGBACKREST_STANZA=" + f.stanza}
	if repo == 2 {
		env = append(env, "PGBACKREST_REPO1_CIPHER_PASS="+foreignPass)
	}
	return env
}

func (f *foreignRepo) walherd(repo int, args ...string) string {
	f.t.Helper()
	r := f.run(f.settings(repo), append([]string{"pgbackrest"}, args...)...)
	if r.code != 0 {
		f.t.Fatalf("walherd pgbackrest %v: exit code %d\n%s", args, r.code, r.stderr)
	}
	return r.stdout
}

// fetch restores with walherd into dir, and returns the directory.
func (f *foreignRepo) fetch(repo int, name, dir string) string {
	f.t.Helper()
	to := filepath.Join(dir, "data")
	spec, err := json.Marshal(map[string]any{
		"base_prefix": to, "tablespaces": []string{f.spaceOID},
		f.spaceOID: map[string]string{"loc": filepath.Join(dir, "space"), "link": "pg_tblspc/" + f.spaceOID},
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "spec.json"), spec, 0o644)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	f.walherd(repo, "backup-fetch", to, name, "--restore-spec", filepath.Join(dir, "spec.json"))
	return to
}

// treeEntry is what must be the same in two trees.
type treeEntry struct {
	mode     fs.FileMode
	modified int64 // of a file, in seconds
	sum      string
}

// tree lists a restored data directory and its tablespace.
func tree(t *testing.T, data, space, oid string) map[string]treeEntry {
	t.Helper()
	out := map[string]treeEntry{}
	for root, under := range map[string]string{data: ".", space: "pg_tblspc/" + oid} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, path)
			name := filepath.Join(under, rel)
			e := treeEntry{mode: info.Mode()}
			switch {
			case err != nil:
				return err
			case d.IsDir():
			case d.Type() == fs.ModeSymlink:
				if under == "." && name == "pg_tblspc/"+oid {
					return nil // its place differs, and its content comes from space
				}
				e.sum, err = os.Readlink(path)
			default:
				var b []byte
				b, err = os.ReadFile(path)
				sum := sha256.Sum256(b)
				e.modified, e.sum = info.ModTime().Unix(), hex.EncodeToString(sum[:])
			}
			out[name] = e
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestPgBackRest restores what the real pgBackRest stored, in each compression,
// plain and encrypted, full and building on others, and compares with what it
// restores itself.
func TestPgBackRest(t *testing.T) {
	t.Parallel()
	f := newForeignRepo(t)
	type made struct {
		repo        int
		method      string
		kind, label string
	}
	var backups []made
	for i, b := range []made{
		{1, "lz4", "full", ""}, {1, "lz4", "diff", ""}, {2, "zst", "full", ""}, {2, "zst", "incr", ""},
		{1, "gz", "full", ""}, {2, "bz2", "full", ""}, {1, "none", "full", ""},
	} {
		if i > 3 && os.Getenv("SLOW_TESTS") == "" {
			break // the package's own tests read these
		}
		f.compress(b.method)
		f.c.SQL(fmt.Sprintf("CREATE TABLE t%d AS SELECT generate_series(1, 1000) AS x; DELETE FROM spaced WHERE x = %d", i, i+1))
		b.label = f.backup(b.repo, b.kind)
		backups = append(backups, b)
	}
	f.c.SQL("CREATE TABLE last AS SELECT 42 AS x")
	f.archived()
	want := f.c.SQL("SELECT sum(x), count(*) FROM spaced")
	autoConf, err := os.ReadFile(filepath.Join(f.c.DataDir(), "postgresql.auto.conf"))
	if err != nil {
		t.Fatal(err)
	}

	t.Run("trees", func(t *testing.T) {
		for _, b := range backups {
			t.Run(b.method+" "+b.kind, func(t *testing.T) {
				t.Parallel()
				ours, theirs := pgtest.TempDir(t), pgtest.TempDir(t)
				f.fetch(b.repo, b.label, ours)
				f.c.Run("/bin/mkdir", "-m", "700", theirs+"/data", theirs+"/space")
				if _, err := f.backrestErr("restore", "--repo="+strconv.Itoa(b.repo), "--set="+b.label, "--pg1-path="+theirs+"/data",
					"--tablespace-map="+f.spaceOID+"="+theirs+"/space", "--lock-path="+theirs+"/lock"); err != nil {
					t.Fatal(err)
				}
				got, want := tree(t, ours+"/data", ours+"/space", f.spaceOID), tree(t, theirs+"/data", theirs+"/space", f.spaceOID)
				// What pgBackRest writes for the recovery.
				if b, err := os.ReadFile(ours + "/data/postgresql.auto.conf"); err != nil || !bytes.Equal(b, autoConf) {
					t.Errorf("postgresql.auto.conf is not the cluster's: %v\n%s", err, b)
				}
				for _, name := range []string{"recovery.signal", "postgresql.auto.conf"} {
					if _, ok := want[name]; !ok {
						t.Errorf("pgBackRest did not restore %s", name)
					}
					delete(want, name)
					delete(got, name)
				}
				for name, e := range want {
					if got[name] != e {
						t.Errorf("%s: %+v, pgBackRest has %+v", name, got[name], e)
					}
					delete(got, name)
				}
				for name := range got {
					t.Errorf("%s: pgBackRest does not restore it", name)
				}
				for _, name := range []string{"linked.file", "linked.dir/in", "empty dir", `odd={"x":1} ü`, "pg_tblspc/" + f.spaceOID} {
					if _, ok := want[name]; !ok {
						t.Errorf("the test lacks %s", name)
					}
				}
			})
		}
	})

	t.Run("recovery", func(t *testing.T) {
		t.Parallel()
		b := backups[3]
		dir := f.fetch(b.repo, b.label, pgtest.TempDir(t))
		r := pgtest.Open(t, dir, pgtest.Stopped(), pgtest.WithConf("archive_mode = off"))
		r.Recover(fmt.Sprintf(`env %s %s pgbackrest wal-fetch %%f "%%p"`, shellWords(f.settings(b.repo)), f.program))
		r.Start()
		r.Await("SELECT pg_is_in_recovery()", "f")
		if got := r.SQL("SELECT sum(x), count(*) FROM spaced"); got != want {
			t.Errorf("the tablespace's table: %s, want %s", got, want)
		}
		if got := r.SQL("SELECT x FROM last"); got != "42" {
			t.Errorf("what came last: %q", got)
		}
		checksums(t, r)
	})

	t.Run("reading", func(t *testing.T) {
		t.Parallel()
		f.lists(t)
		f.wal(t)
		f.refusals(t, backups[2].label)
	})
}

// lists looks at each shape of backup-list and wal-show.
func (f *foreignRepo) lists(t *testing.T) {
	list := f.list(1)
	if len(list) < 2 || len(list[0].WAL) != 24 {
		t.Errorf("backups of repository 1: %+v", list)
	}
	if got := f.walherd(1, "backup-list"); !strings.HasPrefix(got, "backup_name ") || strings.Count(got, "\n") != len(list)+1 {
		t.Errorf("plain list: %s", got)
	}
	if got := f.walherd(1, "backup-list", "--pretty"); !strings.Contains(got, "| BACKUP NAME ") {
		t.Errorf("pretty list: %s", got)
	}
	fields := strings.Fields(f.walherd(2, "backup-list", "--detail"))
	if want := strings.Fields("name modified wal_file_name type start_time finish_time pg_version start_lsn finish_lsn"); !slices.Equal(fields[:9], want) || fields[12] != "full" || fields[21] != "incr" {
		t.Errorf("detailed list: %q", fields)
	}
	var detailed []map[string]any
	d := json.NewDecoder(strings.NewReader(f.walherd(2, "backup-list", "--detail", "--json")))
	d.UseNumber()
	if err := d.Decode(&detailed); err != nil {
		t.Fatal(err)
	}
	if id := f.c.SQL("SELECT system_identifier FROM pg_control_system()"); fmt.Sprint(detailed[0]["SystemIdentifier"]) != id || detailed[1]["Type"] != "incr" {
		t.Errorf("detailed JSON: %v", detailed)
	}
	if got := f.walherd(1, "wal-show"); !strings.Contains(got, "| TLI | PARENT TLI | SWITCHPOINT LSN |") || !strings.Contains(got, "| OK ") || strings.Contains(got, "BACKUPS") {
		t.Errorf("wal-show: %s", got)
	}
	var timelines []struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal([]byte(f.walherd(2, "wal-show", "--detailed-json")), &timelines); err != nil || len(timelines) != 1 || timelines[0].Status != "OK" {
		t.Errorf("wal-show's JSON: %+v, error %v", timelines, err)
	}
	r := f.run(append(f.settings(1), "PGBACKREST_STANZA=other"), "pgbackrest", "backup-list", "--json")
	if r.code != 0 || r.stdout != "" || !strings.Contains(r.stderr, "No backups found") {
		t.Errorf("backup-list of no stanza: %+v", r)
	}
}

// wal fetches files of every kind, and what is not there.
func (f *foreignRepo) wal(t *testing.T) {
	dir := pgtest.TempDir(t)
	first := f.list(1)[0].WAL
	for repo := 1; repo <= 2; repo++ {
		to := filepath.Join(dir, "segment"+strconv.Itoa(repo))
		f.walherd(repo, "wal-fetch", first, to)
		got, err := os.ReadFile(to)
		if err != nil || len(got) != 16<<20 {
			t.Fatalf("segment of %d bytes, error %v", len(got), err)
		}
		theirs := to + ".theirs"
		if _, err := f.backrestErr("--repo="+strconv.Itoa(repo), "archive-get", first, theirs); err != nil {
			t.Fatal(err)
		}
		if want, err := os.ReadFile(theirs); err != nil || !bytes.Equal(got, want) {
			t.Errorf("repository %d: the segment differs from pgBackRest's, error %v", repo, err)
		}
		found, err := filepath.Glob(f.dir + "/repo1/archive/" + f.stanza + "/*/*/*.backup")
		if err != nil || len(found) == 0 {
			t.Fatalf("no backup history file: %v", err)
		}
		f.walherd(repo, "wal-fetch", filepath.Base(found[0]), to+".backup")
		want, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(to + ".backup"); err != nil || !bytes.Equal(got, want) {
			t.Errorf("repository %d: backup history file %q, error %v", repo, got, err)
		}
		for _, name := range []string{"00000001000000FF00000001", "00000009.history", "000000010000000000000001.partial"} {
			to := filepath.Join(dir, "absent")
			if r := f.run(f.settings(repo), "pgbackrest", "wal-fetch", name, to); r.code != 74 {
				t.Errorf("absent %s: %+v", name, r)
			}
			if _, err := os.Lstat(to); err == nil {
				t.Errorf("absent %s left a file", name)
			}
		}
	}
	// That the stanza is missing is not the end of the archive.
	if r := f.run(append(f.settings(1), "PGBACKREST_STANZA=other"), "pgbackrest", "wal-fetch", first, dir+"/other"); r.code != 1 {
		t.Errorf("wal-fetch of no stanza: %+v", r)
	}
	if r := f.run(f.settings(1), "pgbackrest", "wal-fetch", first, dir+"/segment1"); r.code != 1 {
		t.Errorf("wal-fetch over a file: %+v", r)
	}
}

// refusals are what cannot be restored, each with an error that says why.
func (f *foreignRepo) refusals(t *testing.T, encrypted string) {
	dir := pgtest.TempDir(t)
	plain, sealed := f.settings(1), f.settings(2)
	for name, c := range map[string]struct {
		env  []string
		args []string
		says string
	}{
		"no passphrase":       {sealed[:2], []string{"backup-fetch", dir + "/a", "LATEST"}, "set PGBACKREST_REPO1_CIPHER_PASS"},
		"wrong passphrase":    {append(sealed[:2:2], "PGBACKREST_REPO1_CIPHER_PASS=x"), []string{"backup-fetch", dir + "/b", encrypted}, "check PGBACKREST_REPO1_CIPHER_PASS"},
		"passphrase of plain": {append(plain, "PGBACKREST_REPO1_CIPHER_PASS=x"), []string{"backup-fetch", dir + "/c", "LATEST"}, "remove PGBACKREST_REPO1_CIPHER_PASS"},
		"unknown backup":      {plain, []string{"backup-fetch", dir + "/d", "20010101-000000F"}, "20010101-000000F"},
		"no backup's name":    {plain, []string{"backup-fetch", dir + "/e", "../x"}, "is no name of a pgBackRest backup"},
		"missing stanza":      {append(plain, "PGBACKREST_STANZA=other"), []string{"backup-fetch", dir + "/f", "LATEST"}, "backup/other/backup.info"},
		"stanza's name":       {append(plain, "PGBACKREST_STANZA=../x"), []string{"backup-list"}, "is no name of a stanza"},
		"destination":         {plain, []string{"backup-fetch", f.c.DataDir(), "LATEST"}, "is not empty"},
	} {
		r := f.run(c.env, append([]string{"pgbackrest"}, c.args...)...)
		if r.code != 1 || !strings.Contains(r.stderr, c.says) {
			t.Errorf("%s: exit code %d, want 1 and %q\n%s", name, r.code, c.says, r.stderr)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("refused restores left %v, error %v", left, err)
	}
}
