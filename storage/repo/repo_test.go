package repo_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/storage/storagetest"
)

const (
	full      pg.BackupName = "base_000000010000000000000003"
	increment pg.BackupName = "base_000000010000000000000005_D_000000010000000000000003"
	segment                 = "000000010000000000000003"
)

type bundle struct {
	*repo.Repo
	below *storagetest.Faulty
}

func setup(t testing.TB, names ...string) *bundle {
	t.Helper()
	u := &bundle{below: storagetest.NewFaulty(mem.New())}
	u.Repo = repo.New(u.below, "default")
	for _, name := range names {
		storagetest.MustPut(t, u.below, name, []byte(name))
	}
	return u
}

// calls is what the storage was asked since n calls ago.
func (u *bundle) calls(n int) []string {
	var list []string
	for _, c := range u.below.Calls()[n:] {
		list = append(list, string(c.Op)+" "+c.Name)
	}
	return list
}

func TestKeys(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ got, want string }{
		{repo.SentinelKey(full), "basebackups_005/base_000000010000000000000003_backup_stop_sentinel.json"},
		{repo.MetadataKey(full), "basebackups_005/base_000000010000000000000003/metadata.json"},
		{repo.FilesMetadataKey(full), "basebackups_005/base_000000010000000000000003/files_metadata.json"},
		{repo.PartKey(full, "part_001.tar.lz4"), "basebackups_005/base_000000010000000000000003/tar_partitions/part_001.tar.lz4"},
		{repo.Catchups.SentinelKey(full), "catchup_005/base_000000010000000000000003_backup_stop_sentinel.json"},
		{repo.Catchups.MetadataKey(full), "catchup_005/base_000000010000000000000003/metadata.json"},
		{repo.Catchups.FilesMetadataKey(full), "catchup_005/base_000000010000000000000003/files_metadata.json"},
		{repo.Catchups.PartKey(full, "pg_control.tar.zst"), "catchup_005/base_000000010000000000000003/tar_partitions/pg_control.tar.zst"},
		{repo.WALKey(segment + ".00000028.backup.lz4"), "wal_005/000000010000000000000003.00000028.backup.lz4"},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}

// tree is a storage with two whole backups, one without a sentinel, and what
// else is found there.
func tree() []string {
	return []string{
		repo.SentinelKey(full), repo.MetadataKey(full), repo.FilesMetadataKey(full),
		repo.PartKey(full, "backup_label.tar.lz4"), repo.PartKey(full, "part_001.tar.lz4"), repo.PartKey(full, "part_003.tar.lz4"),
		repo.PartKey(full, "pg_control.tar.lz4"),
		repo.SentinelKey(increment), repo.PartKey(increment, "part_001.tar.lz4"),
		repo.PartKey("base_000000010000000000000009", "part_001.tar.lz4"),
		repo.MetadataKey("base_000000010000000000000009"),
		"basebackups_005/notes.txt", "basebackups_005/_backup_stop_sentinel.json",
		repo.Catchups.SentinelKey("base_00000001000000000000000B"), repo.Catchups.PartKey("base_00000001000000000000000B", "part_001.tar.lz4"),
		repo.WALKey(segment + ".lz4"),
	}
}

func sentinels(t *testing.T, r *repo.Repo) []pg.BackupName {
	t.Helper()
	var names []pg.BackupName
	for s, err := range r.Sentinels(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if s.Modified.IsZero() || s.Size != int64(len(r.Folder().SentinelKey(s.Name))) {
			t.Errorf("sentinel %+v has a wrong size or no time", s)
		}
		names = append(names, s.Name)
	}
	return names
}

func TestSentinels(t *testing.T) {
	t.Parallel()
	u := setup(t, tree()...)
	n := len(u.below.Calls())
	if got, want := sentinels(t, u.Repo), []pg.BackupName{full, increment}; !slices.Equal(got, want) {
		t.Errorf("backups %q, want %q", got, want)
	}
	call := u.below.Calls()[n:]
	if len(call) != 1 || call[0].Name != "basebackups_005/" || !call[0].List.Shallow {
		t.Errorf("asked for %+v, want one shallow listing", call)
	}
	if got, want := sentinels(t, u.In(repo.Catchups)), []pg.BackupName{"base_00000001000000000000000B"}; !slices.Equal(got, want) {
		t.Errorf("catch-up backups %q, want %q", got, want)
	}
	if got := sentinels(t, setup(t).Repo); len(got) != 0 {
		t.Errorf("an empty storage has backups %q", got)
	}
	u.below.Add(storagetest.Fault{Op: storagetest.List, Bytes: 4})
	var last error
	for _, err := range u.Sentinels(t.Context()) {
		last = err
	}
	if !errors.Is(last, storagetest.ErrInjected) {
		t.Errorf("a listing that breaks ends with %v", last)
	}
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 16, 34, 14, 552633870, time.UTC)
	below := mem.NewAt(func() time.Time { return at })
	for name, b := range map[string]storage.Bucket{"described": below, "not described": mute{below}} {
		r := repo.New(b, "default")
		for i, read := range []func() ([]byte, storage.Info, error){
			func() ([]byte, storage.Info, error) { return r.Sentinel(t.Context(), full) },
			func() ([]byte, storage.Info, error) { return r.Metadata(t.Context(), full) },
		} {
			key := []string{repo.SentinelKey(full), repo.MetadataKey(full)}[i]
			if err := below.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if _, _, err := read(); !errors.Is(err, storage.ErrNotExist) {
				t.Errorf("%s: missing %s: %v", name, key, err)
			}
			storagetest.MustPut(t, below, key, []byte(`{"LSN":50331688}`))
			data, info, err := read()
			if err != nil || string(data) != `{"LSN":50331688}` || info.Name != key || info.Size != 16 || !info.Modified.Equal(at) {
				t.Errorf("%s: %s: %q, %+v, %v", name, key, data, info, err)
			}
		}
	}
}

// mute is a store whose bodies do not tell their object.
type mute struct{ *mem.Bucket }

func (m mute) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	r, err := m.Bucket.Open(ctx, name, rng)
	if err != nil {
		return nil, err
	}
	return struct{ io.ReadCloser }{r}, nil
}

func TestAHugeDocumentIsRefused(t *testing.T) {
	t.Parallel()
	b := &endless{Bucket: mem.New()}
	storagetest.MustPut(t, b, repo.SentinelKey(full), nil)
	if _, _, err := repo.New(b, "default").Sentinel(t.Context(), full); err == nil {
		t.Error("a sentinel without an end was read")
	}
	if b.read > 32<<20 {
		t.Errorf("%d bytes of it were read", b.read)
	}
}

// endless is a store of objects that do not end.
type endless struct {
	*mem.Bucket
	read int64
}

func (e *endless) Open(context.Context, string, storage.Range) (io.ReadCloser, error) {
	return io.NopCloser(e), nil
}

func (e *endless) Read(p []byte) (int, error) {
	e.read += int64(len(p))
	return len(p), nil
}

func TestParts(t *testing.T) {
	t.Parallel()
	u := setup(t, tree()...)
	var names []string
	for p, err := range u.Parts(t.Context(), full) {
		if err != nil {
			t.Fatal(err)
		}
		if p.Key != repo.PartKey(full, p.Name) || p.Size != int64(len(p.Key)) || p.Modified.IsZero() {
			t.Errorf("part %+v", p)
		}
		body, err := u.OpenObject(t.Context(), p.Key, storage.Range{Offset: 16})
		if err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(body); err != nil || string(data) != p.Key[16:] {
			t.Errorf("part %s holds %q, %v", p.Name, data, err)
		}
		body.Close()
		names = append(names, p.Name)
	}
	if want := []string{"backup_label.tar.lz4", "part_001.tar.lz4", "part_003.tar.lz4", "pg_control.tar.lz4"}; !slices.Equal(names, want) {
		t.Errorf("parts %q, want %q", names, want)
	}
	for p, err := range u.Parts(t.Context(), "base_00000001000000000000000F") {
		t.Errorf("a backup that is not there has part %+v, %v", p, err)
	}
}

// A backup is made in its order, and is seen with the last step, not before.
func TestABackupAppearsWithItsSentinel(t *testing.T) {
	t.Parallel()
	u := setup(t)
	ctx := t.Context()
	steps := []func() error{
		func() error {
			_, err := u.PutPart(ctx, repo.PartKey(full, "part_001.tar.lz4"), strings.NewReader("tar"))
			return err
		},
		func() error { _, err := u.PutFilesMetadata(ctx, full, strings.NewReader("{}")); return err },
		func() error { _, err := u.PutMetadata(ctx, full, []byte("{}")); return err },
		func() error { _, err := u.PutSentinel(ctx, full, []byte("{}")); return err },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		seen := 0
		for range u.Sentinels(ctx) {
			seen++
		}
		if (seen == 1) != (i == len(steps)-1) {
			t.Errorf("after step %d there are %d backups", i, seen)
		}
	}
	want := []string{repo.FilesMetadataKey(full), repo.MetadataKey(full), repo.PartKey(full, "part_001.tar.lz4"), repo.SentinelKey(full)}
	if got := storagetest.Names(t, u.below, "", storage.ListOptions{}); !slices.Equal(got, want) {
		t.Errorf("stored %q, want %q", got, want)
	}
	r, err := u.OpenFilesMetadata(ctx, full)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); err != nil || string(data) != "{}" {
		t.Errorf("files metadata %q, %v", data, err)
	}
	if _, err := u.OpenFilesMetadata(ctx, increment); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("missing files metadata: %v", err)
	}
}

func TestNamesThatWouldLeaveTheirFolderAreRefused(t *testing.T) {
	t.Parallel()
	u := setup(t)
	ctx := t.Context()
	for _, name := range []string{"", ".", "..", "a/b", "../x", "/x", "x/"} {
		_, wal := u.PutWAL(ctx, name, strings.NewReader(""), storage.PutOptions{})
		_, _, find := u.FindWAL(ctx, name, "lz4", nil)
		_, sentinel := u.PutSentinel(ctx, pg.BackupName(name), nil)
		_, meta := u.PutMetadata(ctx, pg.BackupName(name), nil)
		_, filesMeta := u.PutFilesMetadata(ctx, pg.BackupName(name), strings.NewReader(""))
		_, part := u.PutPart(ctx, repo.PartKey(full, name), strings.NewReader(""))
		_, partOf := u.PutPart(ctx, repo.PartKey(pg.BackupName(name), "part_001.tar"), strings.NewReader(""))
		for i, err := range []error{wal, find, sentinel, meta, filesMeta, part, partOf} {
			if err == nil {
				t.Errorf("operation %d took the name %q", i, name)
			}
		}
		for range u.Parts(ctx, pg.BackupName(name)) {
		}
	}
	for _, key := range []string{repo.SentinelKey(full), repo.MetadataKey(full), "part_001.tar", "wal_005/tar_partitions/x"} {
		if _, err := u.PutPart(ctx, key, strings.NewReader("")); err == nil {
			t.Errorf("PutPart took the key %q", key)
		}
	}
	if got := u.calls(0); len(got) != 0 {
		t.Errorf("the storage was asked for %q", got)
	}
}

func TestPutWAL(t *testing.T) {
	t.Parallel()
	u := setup(t)
	once := storage.PutOptions{IfAbsent: true}
	if _, err := u.PutWAL(t.Context(), segment+".lz4", strings.NewReader("wal"), once); err != nil {
		t.Fatal(err)
	}
	if _, err := u.PutWAL(t.Context(), segment+".lz4", strings.NewReader("other"), once); !errors.Is(err, storage.ErrExist) {
		t.Errorf("the second time: %v, want ErrExist", err)
	}
	if got := storagetest.MustGet(t, u.below, "wal_005/"+segment+".lz4"); !bytes.Equal(got, []byte("wal")) {
		t.Errorf("stored %q", got)
	}
}

func TestFindWAL(t *testing.T) {
	t.Parallel()
	known := []string{"lz4", "lzma", "gz", "br", "zst"}
	for _, c := range []struct {
		about     string
		stored    []string
		name      string
		preferred string
		key, ext  string
		unknown   string
		calls     int
	}{
		{about: "preferred at the first try", stored: []string{segment + ".zst", segment + ".lz4"}, preferred: "zst", key: segment + ".zst", ext: "zst", calls: 1},
		{about: "preferred uncompressed", stored: []string{segment}, key: segment, calls: 1},
		{about: "another extension", stored: []string{segment + ".zst"}, preferred: "lz4", key: segment + ".zst", ext: "zst", calls: 2},
		{about: "WAL-G's order", stored: []string{segment, segment + ".zst", segment + ".br", segment + ".", segment + ".gz"}, preferred: "lz4", key: segment + ".gz", ext: "gz", calls: 2},
		{about: "trailing dot before br", stored: []string{segment, segment + ".", segment + ".br"}, preferred: "lz4", key: segment + ".", calls: 2},
		{about: "bare name last", stored: []string{segment, segment + ".zst"}, preferred: "lz4", key: segment + ".zst", ext: "zst", calls: 2},
		{about: "bare name", stored: []string{segment}, preferred: "lz4", key: segment, calls: 2},
		{about: "only unreadable", stored: []string{segment + ".lzo"}, preferred: "lz4", unknown: "lzo", calls: 2},
		{about: "readable behind unreadable", stored: []string{segment + ".lzo", segment}, preferred: "lz4", key: segment, calls: 2},
		{about: "preferred is unreadable", stored: []string{segment + ".lzo"}, preferred: "lzo", unknown: "lzo", calls: 1},
		{about: "neighbours are not it", stored: []string{segment + ".00000028.backup.lz4", segment + "_delta.lz4", segment + ".partial.lz4", segment + ".json", segment + ".xz", segment + ".lz4x", segment + ".lz4/x"}, preferred: "zst", calls: 2},
		{about: "history file", stored: []string{"00000002.history.lz4"}, name: "00000002.history", preferred: "zst", key: "00000002.history.lz4", ext: "lz4", calls: 2},
		{about: "nothing", preferred: "lz4", calls: 2},
	} {
		t.Run(c.about, func(t *testing.T) {
			t.Parallel()
			if c.name == "" {
				c.name = segment
			}
			u := setup(t)
			for _, s := range c.stored {
				storagetest.MustPut(t, u.below, repo.WALKey(s), nil)
			}
			n := len(u.below.Calls())
			key, ext, err := u.FindWAL(t.Context(), c.name, c.preferred, known)
			if got := u.calls(n); len(got) != c.calls {
				t.Errorf("asked %q, want %d requests", got, c.calls)
			}
			var unknown *repo.UnknownExtensionError
			switch {
			case c.key != "":
				if err != nil || key != repo.WALKey(c.key) || ext != c.ext {
					t.Errorf("found %q, %q, %v; want %q, %q", key, ext, err, c.key, c.ext)
				}
			case c.unknown != "":
				if !errors.As(err, &unknown) || unknown.Ext != c.unknown || !strings.Contains(err.Error(), c.unknown) || errors.Is(err, storage.ErrNotExist) {
					t.Errorf("%v, want the unknown extension %q", err, c.unknown)
				}
			case !errors.Is(err, storage.ErrNotExist):
				t.Errorf("%q, %v; want ErrNotExist", key, err)
			}
		})
	}
}

// Whatever is stored under a name, it is found by whoever can read it.
func TestFindWALProperty(t *testing.T) {
	t.Parallel()
	exts := []string{"lz4", "lzma", "gz", "br", "lzo", "zst", ""}
	rapid.Check(t, func(rt *rapid.T) {
		u := setup(t)
		stored := rapid.SliceOfDistinct(rapid.SampledFrom(exts), func(s string) string { return s }).Draw(rt, "stored")
		for _, ext := range stored {
			storagetest.MustPut(t, u.below, strings.TrimSuffix(repo.WALKey(segment+"."+ext), "."), nil)
		}
		known := rapid.SliceOf(rapid.SampledFrom(exts)).Draw(rt, "known")
		preferred := rapid.SampledFrom(exts).Draw(rt, "preferred")
		key, ext, err := u.FindWAL(t.Context(), segment, preferred, known)
		readable := slices.ContainsFunc(stored, func(e string) bool { return e == "" || slices.Contains(known, e) })
		if readable != (err == nil) {
			rt.Fatalf("%q, %q, %v", key, ext, err)
		}
		if err == nil {
			if _, err := u.below.Stat(t.Context(), key); err != nil || !slices.Contains(stored, ext) || ext != "" && !slices.Contains(known, ext) {
				rt.Fatalf("found %q, %q: %v", key, ext, err)
			}
		}
	})
}

func TestFindWALTellsAStorageError(t *testing.T) {
	t.Parallel()
	for _, op := range []storagetest.Op{storagetest.Stat, storagetest.List} {
		u := setup(t)
		u.below.Add(storagetest.Fault{Op: op})
		if _, _, err := u.FindWAL(t.Context(), segment, "lz4", nil); op == storagetest.List && !errors.Is(err, storagetest.ErrInjected) {
			t.Errorf("%s fails: %v", op, err)
		}
		if _, _, err := u.FindWAL(t.Context(), segment, "", nil); !errors.Is(err, storagetest.ErrInjected) || errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%s fails: %v", op, err)
		}
	}
}
