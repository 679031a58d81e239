package pgbackrest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/walherd/walherd/engine/restore"
)

// restored restores the only backup of a repository into dir.
func restored(t testing.TB, s Store, dir string) (restore.Result, error) {
	t.Helper()
	r := repository(t, s, "")
	info, err := r.Backups(t.Context())
	if err != nil {
		return restore.Result{}, err
	}
	m, err := r.Manifest(t.Context(), info, fullLabel)
	if err != nil {
		return restore.Result{}, err
	}
	p, err := NewPlan(m, Request{Stanza: fakeStanza, Destination: dir, Concurrency: 3})
	if err != nil {
		return restore.Result{}, err
	}
	return r.Restore(t.Context(), p, restore.Config{
		Attempts: 2, Backoff: func() backoff.BackOff { return &backoff.ZeroBackOff{} }, DisableFsync: true,
	})
}

// TestRestore: content, modes and times of a small backup, of which a part is
// in another backup's folder and two files are in a bundle.
func TestRestore(t *testing.T) {
	t.Parallel()
	files := fakeFiles()
	files[4].in = "20260820-101500F"
	dir := filepath.Join(t.TempDir(), "data")
	res, err := restored(t, fakeRepo(t, files, nil), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name, below := strings.CutPrefix(f.name, "pg_data/")
		path := filepath.Join(dir, name)
		if !below {
			path = filepath.Join(dir, "tablespaces", strings.TrimPrefix(name, "pg_tblspc/"))
		}
		got, err := os.ReadFile(path)
		if f.name == "pg_data/tablespace_map" {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is restored: %v", name, err)
			}
			continue
		}
		if err != nil || string(got) != f.content {
			t.Errorf("%s: %d bytes, error %v", name, len(got), err)
			continue
		}
		want := fs.FileMode(0o600)
		if f.extra != "" {
			want = 0o640
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != want || !info.ModTime().Equal(time.Unix(1795395337, 0)) {
			t.Errorf("%s: %v, error %v", name, info, err)
		}
	}
	for name, want := range map[string]fs.FileMode{".": 0o700, "base/1": 0o750, "pg_dynshmem": 0o700, "pg_wal": 0o700} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || !info.IsDir() || info.Mode().Perm() != want {
			t.Errorf("directory %s: %v, error %v", name, info, err)
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "pg_tblspc/16397")); err != nil || to != filepath.Join(dir, "tablespaces/16397") {
		t.Errorf("link of the tablespace: %q, error %v", to, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, restore.MarkerName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("marker: %v", err)
	}
	if res.Files != int64(len(files)-1) || !slices.ContainsFunc(res.Notes, func(n string) bool { return strings.Contains(n, "linked was a link to /etc/x") }) {
		t.Errorf("result %+v", res)
	}
}

// TestDamage: whatever object is cut, altered, longer or missing, the restore
// names it and leaves a directory that says it is incomplete.
func TestDamage(t *testing.T) {
	t.Parallel()
	whole := fakeRepo(t, fakeFiles(), nil)
	for name := range whole {
		if strings.HasSuffix(name, ".info") || strings.HasSuffix(name, ".manifest") || strings.HasSuffix(name, "empty.gz") {
			continue
		}
		for damage, change := range map[string]func([]byte) []byte{
			"cut":      func(b []byte) []byte { return b[:len(b)-1] },
			"altered":  func(b []byte) []byte { b[len(b)-6] ^= 4; return b },
			"replaced": func([]byte) []byte { return pack(t, "something else that is much longer than it was") },
			"missing":  func([]byte) []byte { return nil },
		} {
			if strings.HasSuffix(name, "bundle/1") && damage == "replaced" {
				continue // it is as long, and may be anything
			}
			s := fakeStore{}
			for n, b := range whole {
				s[n] = b
			}
			if s[name] = change(bytes.Clone(whole[name])); s[name] == nil {
				delete(s, name)
			}
			dir := filepath.Join(t.TempDir(), "data")
			_, err := restored(t, s, dir)
			var object *restore.ObjectError
			switch {
			case !errors.As(err, &object) || object.Object != name:
				t.Errorf("%s %s: error %v", name, damage, err)
			case damage == "missing" && !errors.Is(err, fs.ErrNotExist), damage == "replaced" && !errors.Is(err, ErrCorrupt):
				t.Errorf("%s %s: error %v", name, damage, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "global/pg_control")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s %s: pg_control is there: %v", name, damage, err)
			}
			if b, err := os.ReadFile(filepath.Join(dir, restore.MarkerName)); err != nil || !strings.Contains(string(b), "The restore failed") {
				t.Errorf("%s %s: marker %q, error %v", name, damage, b, err)
			}
		}
	}
}

// flaky fails the first reading of every object, in its middle.
type flaky struct {
	fakeStore
	seen chan map[string]bool
}

func (s flaky) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	body, err := s.fakeStore.Open(ctx, name, offset, length)
	seen := <-s.seen
	defer func() { s.seen <- seen }()
	if err == nil && !seen[name] && strings.Contains(name, "/pg_") || strings.Contains(name, "/bundle/") && !seen[name] {
		seen[name] = true
		return io.NopCloser(io.MultiReader(io.LimitReader(body, 30), errReader{errors.New("cut off")})), nil
	}
	return body, err
}

// TestAgain: an object that could not be read is read again, and files that the
// first attempt made are made anew.
func TestAgain(t *testing.T) {
	t.Parallel()
	s := flaky{fakeRepo(t, fakeFiles(), nil), make(chan map[string]bool, 1)}
	s.seen <- map[string]bool{}
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := restored(t, s, dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"small1", "small2", "PG_VERSION"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || len(b) != 3 {
			t.Errorf("%s: %q, error %v", name, b, err)
		}
	}
}

// TestManifestTricks: nothing outside of the target is touched, whatever the
// manifest says, and nothing is begun.
func TestManifestTricks(t *testing.T) {
	t.Parallel()
	file := func(name, extra string) func([]line) []line {
		return func(lines []line) []line {
			return append(lines, line{"target:file", name, `{"checksum":"` + strings.Repeat("00", sha1Len) + `","size":1,"timestamp":1` + extra + `}`})
		}
	}
	with := func(section, key, value string) func([]line) []line {
		return func(lines []line) []line { return append(lines, line{section, key, value}) }
	}
	without := func(key string) func([]line) []line {
		return func(lines []line) []line { return slices.DeleteFunc(lines, func(l line) bool { return l.key == key }) }
	}
	for name, c := range map[string]struct {
		change func([]line) []line
		want   error
	}{
		"up":                     {file("pg_data/../../evil", ""), restore.ErrArchive},
		"absolute":               {file("pg_data//etc/evil", ""), restore.ErrArchive},
		"the directory itself":   {file("pg_data", ""), restore.ErrArchive},
		"dot":                    {file("pg_data/./x", ""), restore.ErrArchive},
		"another target":         {file("pg_xlog/x", ""), ErrCorrupt},
		"another tablespace":     {file("pg_tblspc/1/x", ""), ErrCorrupt},
		"out of a tablespace":    {file("pg_tblspc/16397/../../x", ""), restore.ErrArchive},
		"through a link":         {file("pg_data/pg_tblspc/16397/x", ""), ErrCorrupt},
		"twice":                  {file("pg_data/PG_VERSION", ""), restore.ErrArchive},
		"directory up":           {with("target:path", "pg_data/../evil", "{}"), restore.ErrArchive},
		"directory elsewhere":    {with("target:path", "/evil", "{}"), ErrCorrupt},
		"reference up":           {file("pg_data/x", `,"reference":"../../other"`), ErrCorrupt},
		"negative size":          {with("target:file", "pg_data/x", `{"size":-1,"timestamp":1}`), ErrCorrupt},
		"negative offset":        {file("pg_data/x", `,"bni":1,"bno":-5`), ErrCorrupt},
		"offset that overflows":  {file("pg_data/x", `,"bni":1,"bno":9223372036854775807`), ErrCorrupt},
		"overlap in a bundle":    {file("pg_data/x", `,"bni":1,"bno":4`), ErrCorrupt},
		"nothing in a bundle":    {file("pg_data/x", `,"bni":1,"bno":1,"repo-size":0`), ErrCorrupt},
		"no checksum":            {with("target:file", "pg_data/x", `{"size":1,"timestamp":1}`), ErrCorrupt},
		"no size":                {with("target:file", "pg_data/x", `{"timestamp":1}`), ErrCorrupt},
		"mode":                   {file("pg_data/x", `,"mode":"rwx"`), ErrCorrupt},
		"set-uid mode":           {file("pg_data/x", `,"mode":"104755"`), ErrCorrupt},
		"tablespace's name":      {with("backup:target", "pg_tblspc/../x", `{"path":"/srv/y","tablespace-id":"../x","tablespace-name":"y","type":"link"}`), nil},
		"blocks":                 {file("pg_data/x", `,"bi":1,"bim":40`), ErrUnsupported},
		"raw bundles":            {with("backup", "backup-bundle-raw", "true"), ErrUnsupported},
		"compression":            {with("backup:option", "option-compress-type", `"xz"`), ErrUnsupported},
		"another backup":         {with("backup", "backup-label", `"20010101-000000F"`), ErrCorrupt},
		"no label":               {without("backup-label"), ErrCorrupt},
		"no pg_control":          {without("pg_data/global/pg_control"), restore.ErrIncomplete},
		"no backup_label":        {without("pg_data/backup_label"), restore.ErrIncomplete},
		"no data directory":      {without("pg_data"), ErrCorrupt},
		"no default mode":        {without("mode"), ErrCorrupt},
		"a control file of 1 GB": {with("target:file", "pg_data/global/pg_control", `{"checksum":"`+strings.Repeat("00", sha1Len)+`","size":1073741824,"timestamp":1}`), restore.ErrArchive},
	} {
		root := t.TempDir()
		_, err := restored(t, fakeRepo(t, fakeFiles(), c.change), filepath.Join(root, "data"))
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
		if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, error %v", name, left, err)
		}
	}
}

// A backup with files in blocks is listed with its details as any other, and only
// its restore is refused (TestManifestTricks).
func TestBlocksAreListed(t *testing.T) {
	t.Parallel()
	for _, extra := range []line{
		{"target:file", "pg_data/x", `{"bi":1,"bim":40,"checksum":"` + strings.Repeat("00", sha1Len) + `","size":1,"timestamp":1}`},
		{"backup", "backup-bundle-raw", "true"},
	} {
		r := repository(t, fakeRepo(t, fakeFiles(), func(lines []line) []line { return append(lines, extra) }), "")
		info, err := r.Backups(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if m, err := r.Manifest(t.Context(), info, fullLabel); err != nil || m.Type != Full || m.StartLSN != 0x2000028 {
			t.Errorf("%s: %+v, error %v", extra.key, m, err)
		}
	}
}

// TestDocumentsOfARepository: copies, missing backups, unfinished ones.
func TestDocumentsOfARepository(t *testing.T) {
	t.Parallel()
	s := fakeRepo(t, fakeFiles(), nil)
	r := repository(t, s, "")
	info, err := r.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Manifest(t.Context(), info, diffLabel); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown backup: %v", err)
	}
	s[backupFolder(fakeStanza, diffLabel)+"backup.manifest.copy"] = []byte("[backrest]\n")
	if _, err := r.Manifest(t.Context(), info, diffLabel); !errors.Is(err, ErrUnfinished) {
		t.Errorf("unfinished backup: %v", err)
	}
	// Either copy will do.
	s["backup/main/backup.info.copy"] = s["backup/main/backup.info"]
	for _, text := range [][]byte{nil, []byte("[backrest]\nhalf"), {}} {
		if s["backup/main/backup.info"] = text; text == nil {
			delete(s, "backup/main/backup.info")
		}
		if info, err := r.Backups(t.Context()); err != nil || len(info.Backups) != 1 {
			t.Errorf("backup.info %q with a copy: %v", text, err)
		}
	}
	s["backup/main/backup.info.copy"] = []byte("[backrest]\nhalf")
	if _, err := r.Backups(t.Context()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("both damaged: %v", err)
	}
	for _, bad := range []string{"", "..", "a/b", ".x", "ü"} {
		if _, err := New(s, Options{Stanza: bad}); err == nil {
			t.Errorf("stanza %q", bad)
		}
	}
}

func TestPassphrase(t *testing.T) {
	t.Parallel()
	sealed := fakeStore{"archive/main/archive.info": fixture(t, "archive.info.aes")}
	plain := fakeStore{"archive/main/archive.info": fixture(t, "archive.info")}
	for name, c := range map[string]struct {
		s          Store
		passphrase string
		says       string
	}{
		"missing":  {sealed, "", "set THE_SETTING"},
		"wrong":    {sealed, "nope", "check THE_SETTING"},
		"needless": {plain, "nope", "remove THE_SETTING"},
	} {
		_, err := repository(t, c.s, c.passphrase).Archive(t.Context())
		if !errors.Is(err, ErrPassphrase) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "nope") {
			t.Errorf("%s passphrase: %v", name, err)
		}
	}
	whole := sealed["archive/main/archive.info"]
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1
		_, err := repository(t, fakeStore{"archive/main/archive.info": b}, `geheim & "x"`).Archive(t.Context())
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrPassphrase) {
			t.Errorf("byte %d altered: %v", i, err)
		}
		if _, err := repository(t, fakeStore{"archive/main/archive.info": whole[:i]}, `geheim & "x"`).Archive(t.Context()); err == nil {
			t.Errorf("cut to %d bytes: no error", i)
		}
	}
}

// TestWAL: finding and checking archived files.
func TestWAL(t *testing.T) {
	t.Parallel()
	const sum = "7c4a8d09ca3762af61e59520943dc26494f8941b" // of 123456
	const one, two = "000000010000000000000001", "000000010000000000000002"
	other := strings.Repeat("ab", sha1Len)
	folder := "archive/main/15-1/0000000100000000/"
	s := fakeStore{
		folder + one + "-" + sum + ".gz":                       pack(t, "123456"),
		folder + one + ".partial-" + sum:                       []byte("123456"),
		folder + one + ".00000028.backup":                      []byte("START\n"),
		folder + two + "-" + other + ".gz":                     pack(t, "123456"),
		folder + two + "-" + other + ".lzo":                    []byte("?"),
		"archive/main/15-1/00000002.history":                   []byte("1\t0/3000000\tx\n"),
		"archive/main/16-2/" + folder[18:] + one + "-" + other: []byte("new"),
		"archive/main/archive.info": document(append(head(),
			line{"db:history", "1", `{"db-id":11,"db-version":"15"}`}, line{"db:history", "2", `{"db-id":12,"db-version":"16"}`})),
	}
	r := repository(t, s, "")
	info, err := r.Archive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{one: "123456", one + ".partial": "123456", one + ".00000028.backup": "START\n", "00000002.history": "1\t0/3000000\tx\n"} {
		o, err := r.FindWAL(t.Context(), info, 11, name)
		if err != nil {
			t.Errorf("find %s: %v", name, err)
			continue
		}
		body, err := r.OpenWAL(t.Context(), info, o)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil || string(got) != want {
			t.Errorf("%s: %q, error %v", name, got, err)
		}
	}
	if o, err := r.FindWAL(t.Context(), info, 0, one); err != nil || !strings.Contains(o.Object, "/16-2/") {
		t.Errorf("without a cluster: %+v, error %v", o, err)
	}
	if _, err := r.FindWAL(t.Context(), info, 13, one); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("WAL of another cluster: %v", err)
	}
	for _, name := range []string{"000000010000000000000003", "00000003.history", two + ".partial", two + ".00000028.backup"} {
		if _, err := r.FindWAL(t.Context(), info, 0, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("absent %s: %v", name, err)
		}
	}
	for _, name := range []string{"x", "../../backup/main/backup.info", ""} {
		if _, err := r.FindWAL(t.Context(), info, 0, name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", name, err)
		}
	}
	o, err := r.FindWAL(t.Context(), info, 11, two)
	if err != nil {
		t.Fatal(err)
	}
	body, err := r.OpenWAL(t.Context(), info, o)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); !errors.Is(err, ErrCorrupt) {
		t.Errorf("content of another SHA-1: %q, error %v", got, err)
	}
	s[folder+one+"-"+other+".gz"] = pack(t, "654321")
	if _, err := r.FindWAL(t.Context(), info, 11, one); !errors.Is(err, ErrDuplicate) {
		t.Errorf("two contents: %v", err)
	}
	var names []string
	for o, err := range r.WAL(t.Context(), info.Databases[1]) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, o.Name)
	}
	if want := []string{one, one, one + ".partial", two, "00000002.history"}; !slices.Equal(names, want) {
		t.Errorf("listed %q, want %q", names, want)
	}
}
