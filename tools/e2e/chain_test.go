package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/delta"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/page"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/restore"
	"github.com/walherd/walherd/producer/pgtest"
)

// partFolder is a backup's folder of parts as a restore.Source.
type partFolder string

func (f partFolder) Parts(context.Context) (out []restore.Object, err error) {
	list, err := os.ReadDir(string(f))
	for _, e := range list {
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		out = append(out, restore.Object{Name: e.Name(), Size: info.Size()})
	}
	return out, err
}

func (f partFolder) Open(_ context.Context, name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(f), name))
}

func restoreConfig() restore.Config {
	return restore.Config{DisableFsync: true, Attempts: 1, Decompress: func(object string, stored io.Reader) (io.ReadCloser, error) {
		m, err := compress.ByExtension(strings.TrimPrefix(path.Ext(strings.TrimSuffix(object, ".tar")), "."))
		if err != nil {
			return nil, err
		}
		return compress.NewReader(stored, m, 1)
	}}
}

// TestReadsChainsThatWALGWrote restores increments that the reference took, in
// both orders, and replays the WAL from there.
func TestReadsChainsThatWALGWrote(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("testdata/expected.txt")
	if err != nil {
		t.Fatal(err)
	}
	const deltas = "../../engine/restore/testdata/walg-deltas-lz4/"
	folders := map[pg.BackupName]string{}
	for _, f := range []string{
		"testdata/walg-full-lz4/basebackups_005/base_000000010000000000000002",
		deltas + "base_000000010000000000000006_D_000000010000000000000002",
		deltas + "base_000000010000000000000008_D_000000010000000000000006",
	} {
		folders[pg.BackupName(path.Base(f))] = f
	}
	for _, tc := range []struct {
		name   string
		target pg.BackupName
		r      restore.Request
	}{
		{"first", "base_000000010000000000000006_D_000000010000000000000002", restore.Request{Reverse: true}},
		{"second", "base_000000010000000000000008_D_000000010000000000000006", restore.Request{}},
		{"second-reverse", "base_000000010000000000000008_D_000000010000000000000006", restore.Request{Reverse: true, SkipRedundant: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			links, err := restore.Chain(tc.target, func(name pg.BackupName) (*manifest.Sentinel, error) {
				doc, err := os.ReadFile(folders[name] + "_backup_stop_sentinel.json")
				if err != nil {
					return nil, err
				}
				return manifest.ParseSentinel(doc)
			}, os.IsNotExist)
			if err != nil {
				t.Fatal(err)
			}
			var sources []restore.Source
			for i := range links {
				folder := folders[links[i].Backup]
				src := partFolder(folder + "/tar_partitions")
				if links[i].Parts, err = src.Parts(t.Context()); err != nil {
					t.Fatal(err)
				}
				links[i].Files = func(v manifest.FilesVisitor) error {
					f, err := os.Open(folder + "/files_metadata.json")
					if err != nil {
						return err
					}
					defer f.Close()
					return manifest.ReadFiles(f, v)
				}
				sources = append(sources, src)
			}
			b := &bench{t: t, program: program(t), storage: filepath.Join(pgtest.TempDir(t), "storage")}
			for _, cmd := range [][]string{{"cp", "-r", "testdata/walg-full-lz4", b.storage}, {"chmod", "-R", "a+rwX", b.storage}} {
				if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("copy the fixture: %v\n%s", err, out)
				}
			}
			b.c = pgtest.New(t, pgtest.Stopped()) // for its user and environment only
			tc.r.Destination = filepath.Join(pgtest.TempDir(t), "restored")
			p, err := restore.NewChainPlan(links, tc.r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := restore.RunChain(t.Context(), p, sources, restoreConfig()); err != nil {
				t.Fatal(err)
			}
			// What follows makes a tablespace in a directory that only the
			// host of the fixtures has.
			r := b.recover(tc.r.Destination, "recovery_target_lsn = '0/A0002F8'", "recovery_target_inclusive = off", "recovery_target_action = promote")
			got := r.SQLIn("app", `select 't', count(*), md5(string_agg(id||note, ',' order by id)) from t
 union all select 'big', count(*), md5(string_agg(id||pad, ',' order by id)) from big`)
			if got != strings.TrimSpace(string(want)) {
				t.Fatalf("restored:\n%s\nwant:\n%s", got, want)
			}
			amcheck(t, r)
			checksums(t, r)
		})
	}
}

// coldBackup is a backup of a stopped server, in memory.
type coldBackup struct {
	link    restore.Link
	objects map[string][]byte
	entries []cluster.Entry
	actions []delta.Action
	control cluster.Control
	pages   int64
	parent  *coldBackup
	began   time.Time
}

// root and count are of the chain that an increment of b belongs to.
func (b *coldBackup) root() pg.BackupName {
	if i := b.link.Sentinel.Increment; i != nil {
		return i.Root
	}
	return b.link.Backup
}

func (b *coldBackup) count() int {
	if i := b.link.Sentinel.Increment; i != nil {
		return i.Count
	}
	return 0
}

func (b *coldBackup) Parts(context.Context) (out []restore.Object, err error) {
	for name, o := range b.objects {
		out = append(out, restore.Object{Name: name, Size: int64(len(o))})
	}
	return out, nil
}

func (b *coldBackup) Open(_ context.Context, name string) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b.objects[name])), nil
}

// backUpCold backs a stopped server's directory up, on parent if there is one.
func backUpCold(t testing.TB, dir string, parent *coldBackup) *coldBackup {
	t.Helper()
	control, _, err := cluster.ReadControl(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	// The server was stopped: every time can be believed.
	return backUpStill(t, dir, control.Checkpoint, time.Now().Add(time.Hour), parent, nil)
}

// backUpStill backs the directory of a server up whose files hold still, as of
// lsn. Pages of an increment are chosen by the map if there is one. Times of
// the parent's files are believed that are older than trusted.
func backUpStill(t testing.TB, dir string, lsn pg.LSN, trusted time.Time, parent *coldBackup, m delta.ChangeMap) *coldBackup {
	t.Helper()
	listing, err := cluster.Scan(t.Context(), dir, cluster.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := &coldBackup{objects: map[string][]byte{}, entries: listing.Entries, parent: parent}
	var raw []byte
	if b.control, raw, err = cluster.ReadControl(t.Context(), listing.Root); err != nil {
		t.Fatal(err)
	}
	segment := lsn.Segment(b.control.Timeline, b.control.SegmentSize)
	b.link = restore.Link{Backup: pg.FullBackupName(segment), Sentinel: &manifest.Sentinel{LSN: &lsn, FinishLSN: &lsn}}
	b.actions = make([]delta.Action, len(b.entries))
	var open pack.Opener = pack.NewFiles(listing.Root)
	if parent != nil {
		b.link.Backup = pg.IncrementName(segment, parent.link.Backup)
		b.link.Sentinel.Increment = &manifest.Increment{ParentLSN: *parent.link.Sentinel.LSN, Parent: parent.link.Backup, Root: parent.root(), Count: parent.count() + 1}
		b.actions, err = delta.Plan(b.entries, delta.Parent{Start: trusted, Files: func(visit func(string, manifest.File) error) error {
			return parent.link.Files(manifest.FilesVisitor{File: visit})
		}}, page.DefaultSize)
		if err != nil {
			t.Fatal(err)
		}
		if open, err = delta.NewOpener(delta.Options{Root: listing.Root, Actions: b.actions, Since: *parent.link.Sentinel.LSN, PageSize: page.DefaultSize, HintsLogged: b.control.DataChecksums, Changes: m}); err != nil {
			t.Fatal(err)
		}
	}
	part := pack.Part{Number: 1}
	for i := range b.entries {
		part.Entries = append(part.Entries, int32(i))
	}
	s := pack.NewStream(b.entries, part, open, pack.StreamOptions{})
	defer s.Close()
	if b.objects["part_001.tar"], err = io.ReadAll(s.Reader(t.Context())); err != nil {
		t.Fatal(err)
	}
	incremented := map[int32]bool{}
	if o, ok := open.(*delta.Opener); ok {
		for _, i := range o.Incremented() {
			incremented[i] = true
		}
		b.pages = o.Pages()
	}
	b.link.Files = func(v manifest.FilesVisitor) error {
		for i := range b.entries {
			f := manifest.File{MTime: b.entries[i].ModTime(), IsSkipped: b.actions[i] == delta.Skip, IsIncremented: incremented[int32(i)]}
			if v.File == nil {
				break
			}
			if err := v.File(b.entries[i].Name, f); err != nil {
				return err
			}
		}
		return nil
	}
	if b.objects[pack.ControlTarName], err = pack.ControlTar(*listing.Control, raw, nil); err != nil {
		t.Fatal(err)
	}
	if b.objects[pack.LabelTarName], err = pack.LabelTar([]byte("label"), nil); err != nil {
		t.Fatal(err)
	}
	if b.link.Parts, err = b.Parts(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestIncrementOfAServer holds an increment against the truth: the files of a
// server that was stopped, used, and stopped again come out of full backup and
// increment byte by byte.
func TestIncrementOfAServer(t *testing.T) {
	t.Parallel()
	c := pgtest.New(t)
	c.Run("pgbench", "-i", "-q", "-s", "3", "postgres")
	c.SQL(`CREATE TABLE cut AS SELECT generate_series(1, 50000) AS x; CREATE TABLE gone AS SELECT 1 AS x;
 CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) AS x`)
	c.Stop(pgtest.Fast)
	full := backUpCold(t, c.DataDir(), nil)
	c.Start()
	c.Run("pgbench", "-n", "-c", "2", "-t", "150", "postgres")
	c.SQL(`DELETE FROM cut WHERE x > 1000; VACUUM cut; INSERT INTO cut SELECT generate_series(1, 3000); DROP TABLE gone;
 CREATE TABLE new AS SELECT generate_series(1, 1000) AS x; INSERT INTO unlogged SELECT 1; VACUUM FREEZE pgbench_tellers; CREATE DATABASE other STRATEGY file_copy`)
	c.Stop(pgtest.Fast)
	increment := backUpCold(t, c.DataDir(), full)
	links, sources := []restore.Link{full.link, increment.link}, []restore.Source{full, increment}

	counts := map[delta.Action]int{}
	checked := 0
	for i, a := range increment.actions {
		counts[a]++
		e := increment.entries[i]
		if !delta.Paged(e.Name, e.Size, page.DefaultSize) {
			continue
		}
		b, err := os.ReadFile(e.Path(c.DataDir()))
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(b)/page.DefaultSize; n++ {
			v := page.Verify(b[n*page.DefaultSize:][:page.DefaultSize], uint32(n))
			if h := page.ParseHeader(b[n*page.DefaultSize:]); v != page.Good && h.LSN != 0 {
				t.Errorf("%s, page %d: %v", e.Name, n, v)
			}
			checked++
		}
	}
	if counts[delta.Skip] < 500 || counts[delta.Increment] < 5 || increment.pages == 0 || checked < 1000 {
		t.Errorf("actions %v, %d pages in increments, %d pages checked", counts, increment.pages, checked)
	}
	whole, small := len(full.objects["part_001.tar"]), len(increment.objects["part_001.tar"])
	t.Logf("full %d bytes, increment %d bytes, actions %v, %d pages", whole, small, counts, increment.pages)
	if small > whole/2 {
		t.Errorf("an increment of %d bytes on a backup of %d", small, whole)
	}

	for name, r := range map[string]restore.Request{"normal": {}, "reverse": {Reverse: true}} {
		r.Destination = filepath.Join(pgtest.TempDir(t), name)
		p, err := restore.NewChainPlan(links, r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := restore.RunChain(t.Context(), p, sources, restoreConfig()); err != nil {
			t.Fatal(err)
		}
		for i := range increment.entries {
			e := &increment.entries[i]
			info, err := os.Stat(e.Path(r.Destination))
			if err != nil {
				t.Error(err)
				continue
			}
			if e.IsDir() {
				continue
			}
			want, err := os.ReadFile(e.Path(c.DataDir()))
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(e.Path(r.Destination))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) || info.Mode().Perm() != e.Mode.Perm() {
				t.Errorf("%s: %s differs (%v, %v)", name, e.Name, info.Mode(), increment.actions[i])
			}
		}
		if err := os.Remove(filepath.Join(r.Destination, pack.LabelName)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("chown", "-R", "--reference="+c.DataDir(), r.Destination).CombinedOutput(); err != nil {
			t.Fatal(fmt.Errorf("%w: %s", err, out))
		}
		c.Run("pg_checksums", "--check", "-D", r.Destination)
	}
}
