package restore

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
)

// recordedDeltas begins the names of two increments on the full backup of
// recordedPath, the second on the first.
const recordedDeltas = "testdata/walg-deltas-lz4/"

var recordedChain = []string{
	recordedPath,
	recordedDeltas + "base_000000010000000000000006_D_000000010000000000000002",
	recordedDeltas + "base_000000010000000000000008_D_000000010000000000000006",
}

// recordedLinks are the backups of the recorded chain, base first, as WAL-G
// wrote them.
func recordedLinks(t testing.TB) (links []Link, sources []Source) {
	t.Helper()
	for _, dir := range recordedChain {
		document, err := os.ReadFile(dir + "_backup_stop_sentinel.json")
		if err != nil {
			t.Fatal(err)
		}
		l := Link{Backup: pg.BackupName(filepath.Base(dir))}
		if l.Sentinel, err = manifest.ParseSentinel(document); err != nil {
			t.Fatal(err)
		}
		src := &memory{objects: map[string][]byte{}}
		names, err := filepath.Glob(dir + "/tar_partitions/*")
		if err != nil || len(names) == 0 {
			t.Fatal(names, err)
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil {
				t.Fatal(err)
			}
			src.objects[filepath.Base(n)] = b
			l.Parts = append(l.Parts, Object{Name: filepath.Base(n), Size: int64(len(b))})
		}
		l.Files = func(v manifest.FilesVisitor) error {
			f, err := os.Open(dir + "/files_metadata.json")
			if err != nil {
				return err
			}
			defer f.Close()
			return manifest.ReadFiles(f, v)
		}
		links, sources = append(links, l), append(sources, src)
	}
	return links, sources
}

// naive restores a chain with the standard library and nothing shared with the
// code under test: whole files replace, increments are put on what is there,
// and what the target does not list goes.
func naive(t testing.TB, links []Link, sources []Source) map[string]string {
	t.Helper()
	type file struct {
		mode    fs.FileMode
		content []byte
	}
	files, dirs := map[string]file{}, map[string]string{}
	for i, l := range links {
		incremented, listed := map[string]bool{}, map[string]bool{}
		if err := l.Files(manifest.FilesVisitor{File: func(name string, f manifest.File) error {
			incremented[name], listed[strings.Trim(name, "/")] = f.IsIncremented, true
			return nil
		}}); err != nil {
			t.Fatal(err)
		}
		dirs = map[string]string{"pg_wal": "0700/"}
		for name, stored := range sources[i].(*memory).objects {
			r, err := decompress(name, bytes.NewReader(stored))
			if err != nil {
				t.Fatal(err)
			}
			for tr := tar.NewReader(r); ; {
				h, err := tr.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				rel := strings.Trim(h.Name, "/")
				if h.Typeflag == tar.TypeDir {
					dirs["."+strings.TrimPrefix("/"+rel, "/")] = ""
					delete(dirs, "."+rel)
					if rel == "" {
						rel = "."
					}
					dirs[rel] = fmt.Sprintf("%04o/", h.FileInfo().Mode().Perm())
					continue
				}
				b, err := io.ReadAll(tr)
				if err != nil {
					t.Fatal(err)
				}
				if incremented[h.Name] {
					old := files[rel].content
					size, n := int(binary.LittleEndian.Uint64(b[4:])), int(binary.LittleEndian.Uint32(b[12:]))
					grown := make([]byte, size)
					copy(grown, old)
					for k := range n {
						block := int(binary.LittleEndian.Uint32(b[16+4*k:]))
						if (block+1)*8192 <= size {
							copy(grown[block*8192:], b[16+4*n+8192*k:][:8192])
						}
					}
					b = grown
				}
				files[rel] = file{h.FileInfo().Mode().Perm(), b}
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 {
			continue
		}
		maps.DeleteFunc(files, func(name string, _ file) bool {
			return !listed[name] && name != controlPath && name != labelPath && name != tablespaceMapPath
		})
	}
	out := maps.Clone(dirs)
	for name, f := range files {
		out[name] = fmt.Sprintf("%04o %s", f.mode, f.content)
	}
	return out
}

// chainConfig leaves syncing to the tests of full backups, which share it.
func chainConfig() Config {
	c := config()
	c.DisableFsync = true
	return c
}

// eachWay runs a test for every way to restore a chain.
func eachWay(t *testing.T, f func(t *testing.T, r Request)) {
	for name, r := range map[string]Request{
		"normal": {}, "reverse": {Reverse: true}, "normal, skipping": {SkipRedundant: true}, "reverse, skipping": {Reverse: true, SkipRedundant: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, r)
		})
	}
}

// Every backup of the recorded chain comes out the same in every way, and as a
// restore that shares no code has it.
func TestRecordedChain(t *testing.T) {
	t.Parallel()
	links, sources := recordedLinks(t)
	for n := 1; n <= len(links); n++ {
		want := naive(t, links[:n], sources[:n])
		t.Run(string(links[n-1].Backup), func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, r Request) {
				r.Destination = filepath.Join(t.TempDir(), "data")
				p, err := NewChainPlan(links[:n], r)
				if err != nil {
					t.Fatal(err)
				}
				cfg := chainConfig()
				var log bytes.Buffer
				cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
				res, err := RunChain(t.Context(), p, sources[:n], cfg)
				if log.Len() > 0 {
					t.Error(log.String())
				}
				if err != nil {
					t.Fatal(err)
				}
				compareTrees(t, tree(t, r.Destination), want)
				files := 0
				for _, v := range want {
					if !strings.HasSuffix(strings.SplitN(v, " ", 2)[0], "/") {
						files++
					}
				}
				if res.Files != int64(files) || len(res.Notes) != 0 {
					t.Errorf("%d files, notes %v; want %d, none", res.Files, res.Notes, files)
				}
			})
		})
	}
}

func TestChainIsFound(t *testing.T) {
	t.Parallel()
	links, _ := recordedLinks(t)
	byName := map[pg.BackupName]*manifest.Sentinel{}
	for _, l := range links {
		byName[l.Backup] = l.Sentinel
	}
	errGone := errors.New("no such object")
	load := func(name pg.BackupName) (*manifest.Sentinel, error) {
		if s, ok := byName[name]; ok {
			return s, nil
		}
		return nil, errGone
	}
	isGone := func(err error) bool { return errors.Is(err, errGone) }
	got, err := Chain(links[2].Backup, load, isGone)
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	for i := range got {
		if got[i].Backup != links[i].Backup || got[i].Sentinel != links[i].Sentinel {
			t.Errorf("link %d is %s", i, got[i].Backup)
		}
	}
	if got, err = Chain(links[0].Backup, load, isGone); err != nil || len(got) != 1 {
		t.Errorf("a full backup: %v, %v", got, err)
	}
	if _, err = Chain("base_0000000100000000000000FF", load, isGone); !errors.Is(err, errGone) || errors.Is(err, ErrChain) {
		t.Errorf("no such backup: %v", err)
	}
	delete(byName, links[0].Backup)
	if _, err = Chain(links[2].Backup, load, isGone); !errors.Is(err, ErrMissingBase) || !errors.Is(err, errGone) || !strings.Contains(err.Error(), string(links[1].Backup)) {
		t.Errorf("base gone: %v", err)
	}
	if _, err = Chain(links[2].Backup, load, func(error) bool { return false }); errors.Is(err, ErrMissingBase) {
		t.Errorf("base unreadable: %v", err)
	}
	increment := func(parent pg.BackupName) *manifest.Sentinel {
		return &manifest.Sentinel{Increment: &manifest.Increment{Parent: parent, Count: 1}}
	}
	byName[links[0].Backup] = increment(links[2].Backup)
	if _, err = Chain(links[2].Backup, load, isGone); !errors.Is(err, ErrCycle) {
		t.Errorf("cycle: %v", err)
	}
	byName[links[0].Backup] = increment(links[0].Backup)
	if _, err = Chain(links[0].Backup, load, isGone); !errors.Is(err, ErrCycle) {
		t.Errorf("cycle of one: %v", err)
	}
	for _, parent := range []pg.BackupName{"", "../../etc/passwd", "base_x"} {
		byName[links[0].Backup] = increment(parent)
		if _, err = Chain(links[2].Backup, load, isGone); !errors.Is(err, ErrChain) || errors.Is(err, ErrMissingBase) {
			t.Errorf("parent %q: %v", parent, err)
		}
	}
}

func TestChainRefused(t *testing.T) {
	t.Parallel()
	links, _ := recordedLinks(t)
	file := func(i int, name string, f manifest.File) func(l []Link) {
		return func(l []Link) {
			read := l[i].Files
			l[i].Files = func(v manifest.FilesVisitor) error {
				if v.File != nil {
					if err := v.File(name, f); err != nil {
						return err
					}
				}
				return read(v)
			}
		}
	}
	hide := func(i int, hidden string) func(l []Link) {
		return func(l []Link) {
			read := l[i].Files
			l[i].Files = func(v manifest.FilesVisitor) error {
				if visit := v.File; visit != nil {
					v.File = func(name string, f manifest.File) error {
						if name == hidden {
							return nil
						}
						return visit(name, f)
					}
				}
				return read(v)
			}
		}
	}
	system := pg.SystemID(1)
	lsn := pg.LSN(5)
	late := *links[1].Sentinel.LSN + 1
	for name, tt := range map[string]struct {
		change func(l []Link)
		want   error
		says   string
	}{
		"no list of the target":     {func(l []Link) { l[2].Files = nil }, ErrFilesMetadata, "files_metadata.json"},
		"no list in between":        {func(l []Link) { l[1].Files = nil }, ErrFilesMetadata, "files_metadata.json"},
		"an empty list":             {func(l []Link) { l[2].Files = func(manifest.FilesVisitor) error { return nil } }, ErrFilesMetadata, "lists no file"},
		"another system":            {func(l []Link) { l[1].Sentinel.SystemIdentifier = &system }, ErrOtherSystem, ""},
		"another version":           {func(l []Link) { l[2].Sentinel.PgVersion = 160001 }, ErrOtherSystem, "16"},
		"no base":                   {func(l []Link) { l[0].Sentinel.Increment = l[1].Sentinel.Increment }, ErrMissingBase, ""},
		"a full backup in between":  {func(l []Link) { l[1].Sentinel.Increment = nil }, ErrChain, "full"},
		"another parent":            {func(l []Link) { l[2].Sentinel.Parent = l[0].Backup }, ErrChain, "builds on"},
		"another root":              {func(l []Link) { l[2].Sentinel.Root = l[1].Backup }, ErrChain, ""},
		"a parent replaced":         {func(l []Link) { l[0].Sentinel.LSN = &lsn }, ErrChain, "started at"},
		"a parent without LSN":      {func(l []Link) { l[0].Sentinel.LSN = nil }, ErrChain, "nowhere"},
		"a parent that ended later": {func(l []Link) { l[0].Sentinel.FinishLSN = &late }, ErrChain, "before the end"},
		"the same twice": {func(l []Link) {
			l[2].Backup, l[2].Sentinel.Parent, l[1].Sentinel.Root = l[0].Backup, l[1].Backup, l[0].Backup
		}, ErrCycle, ""},
		"no sentinel":               {func(l []Link) { l[1].Sentinel = nil }, nil, "sentinel"},
		"a part of the base lost":   {func(l []Link) { l[0].Parts = l[0].Parts[:len(l[0].Parts)-2] }, ErrIncomplete, "part_002"},
		"an increment in the base":  {file(0, "/base/16384/16385", manifest.File{IsIncremented: true}), ErrFilesMetadata, "full"},
		"a file of nobody":          {file(2, "/base/1/99999", manifest.File{IsSkipped: true}), ErrFilesMetadata, "base/1/99999"},
		"a file listed twice":       {file(2, "/base/1/1259", manifest.File{IsSkipped: true}), ErrFilesMetadata, "twice"},
		"an increment of nothing":   {hide(0, "/base/16384/16385"), ErrFilesMetadata, "base/16384/16385"},
		"not listed in between":     {hide(1, "/base/16384/16385"), ErrFilesMetadata, "base/16384/16385"},
		"neither label nor control": {func(l []Link) { l[2].Parts = l[2].Parts[1:2] }, ErrIncomplete, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			changed := slices.Clone(links)
			for i := range changed {
				s := *changed[i].Sentinel
				if s.Increment != nil {
					inc := *s.Increment
					s.Increment = &inc
				}
				changed[i].Sentinel = &s
			}
			tt.change(changed)
			dest := filepath.Join(t.TempDir(), "data")
			_, err := NewChainPlan(changed, Request{Destination: dest})
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %v saying %q", err, tt.want, tt.says)
			}
		})
	}
	if _, err := NewChainPlan(nil, Request{}); !errors.Is(err, ErrChain) {
		t.Errorf("no backups: %v", err)
	}
	if _, err := NewChainPlan(links, Request{Destination: "relative"}); err == nil {
		t.Error("a relative destination was accepted")
	}
}

// testChain is a chain made by hand: what each backup's tars and lists say.
type testChain struct {
	links   []Link
	sources []Source
}

// add puts a backup on top. parts are its data parts; of the entries, those with
// a kind are listed as they say.
func (c *testChain) add(t testing.TB, files map[string]manifest.File, parts map[string][]entry) *memory {
	t.Helper()
	n := len(c.links)
	lsn := pg.LSN(100 * (n + 1))
	finish := lsn + 50
	name := pg.BackupName(fmt.Sprintf("base_%024X", n+1))
	l := Link{Backup: name, Sentinel: &manifest.Sentinel{LSN: &lsn, FinishLSN: &finish}}
	if n > 0 {
		parent := c.links[n-1]
		l.Sentinel.Increment = &manifest.Increment{ParentLSN: *parent.Sentinel.LSN, Parent: parent.Backup, Root: c.links[0].Backup, Count: n}
	}
	src := &memory{objects: map[string][]byte{
		"backup_label.tar": tarOf(t, entry{name: "backup_label", body: fmt.Sprintf("label %d", n)}, entry{name: "tablespace_map"}),
		"pg_control.tar":   tarOf(t, entry{name: "/global/pg_control", body: fmt.Sprintf("control %d", n)}),
	}}
	for name, entries := range parts {
		src.objects[name] = tarOf(t, entries...)
	}
	objects, err := src.Parts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.Parts = objects
	l.Files = func(v manifest.FilesVisitor) error {
		for _, name := range slices.Sorted(maps.Keys(files)) { // as one document has it
			if v.File != nil {
				if err := v.File(name, files[name]); err != nil {
					return err
				}
			}
		}
		for object, entries := range parts {
			if v.Tar != nil {
				if err := v.Tar(object); err != nil {
					return err
				}
			}
			for _, e := range entries {
				if v.TarEntry != nil {
					if err := v.TarEntry(object, e.name); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}
	c.links, c.sources = append(c.links, l), append(c.sources, src)
	return src
}

func (c *testChain) run(t testing.TB, r Request, cfg Config) (map[string]string, error) {
	t.Helper()
	if r.Destination == "" {
		r.Destination = filepath.Join(t.TempDir(), "data")
	}
	r.PageSize = testPage
	p, err := NewChainPlan(c.links, r)
	if err != nil {
		return nil, err
	}
	if _, err := RunChain(t.Context(), p, c.sources, cfg); err != nil {
		expectUnfinished(t, r.Destination, "failed")
		return nil, err
	}
	return tree(t, r.Destination), nil
}

const testPage = 1024

// pages is a page for each letter; '.' is a page of zeros.
func pages(letters string) string {
	var b strings.Builder
	for _, l := range []byte(letters) {
		if l == '.' {
			l = 0
		}
		b.Write(bytes.Repeat([]byte{l}, testPage))
	}
	return b.String()
}

// inc is an increment of a file that is n pages long now; letters are the pages
// with these numbers.
func inc(n int, numbers []uint32, letters string) string {
	b := binary.LittleEndian.AppendUint64([]byte("wi1U"), uint64(n*testPage))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(numbers)))
	for _, k := range numbers {
		b = binary.LittleEndian.AppendUint32(b, k)
	}
	return string(b) + pages(letters)
}

var (
	isWhole   = manifest.File{}
	isSkipped = manifest.File{IsSkipped: true}
	isInc     = manifest.File{IsIncremented: true}
)

type fileList = map[string]manifest.File

// smallChain has one of each: see the comments.
func smallChain(t testing.TB) *testChain {
	c := &testChain{}
	c.add(t, fileList{"/base/5/1": isWhole, "/base/5/2": isWhole, "/base/5/3": isWhole, "/base/5/4": isWhole, "/gone/5": isWhole, "/base/5/6": isWhole, "/gone": isWhole, "/base/5/7": isWhole, "/backup_label": isWhole, "/" + scratchName: isWhole},
		map[string][]entry{
			"part_001.tar": {dir("/"), dir("/base"), dir("/base/5"), dir("/gone"), {name: "/base/5/1", body: pages("aaaa")}, {name: "/base/5/2", body: pages("aaaa")}},
			"part_002.tar": {{name: "/base/5/3", body: pages("a")}, {name: "/base/5/4", body: "old"}, {name: "/gone/5", body: "gone"}},
			"part_003.tar": {{name: "/base/5/6", body: pages("aaaaaa")}, {name: "/base/5/7", body: pages("a")[:500]}, {name: "/backup_label", body: "stale"}, {name: "/" + scratchName, body: "of an earlier restore"}},
		})
	c.add(t, fileList{"/base/5/1": isInc, "/base/5/2": isInc, "/base/5/3": isSkipped, "/base/5/4": isWhole, "/base/5/6": isInc, "/base/5": isWhole, "/base/5/7": isInc, "/base/5/8": isWhole},
		map[string][]entry{
			"part_001.tar": {dir("/base/5"), {name: "/base/5/1", body: inc(4, []uint32{1}, "b")}, {name: "/base/5/2", body: inc(4, []uint32{0, 1, 2, 3}, "bb.b")}},
			"part_002.tar": {{name: "/base/5/4", body: "newer"}, {name: "/base/5/6", body: inc(2, []uint32{1}, "b")}, {name: "/base/5/7", body: inc(2, []uint32{1}, "b")}, {name: "/base/5/8", body: "eight"}},
		})
	c.add(t, fileList{"/": isWhole, "/base": isWhole, "/base/5": isWhole, "/base/5/1": isInc, "/base/5/2": isSkipped, "/base/5/3": isSkipped, "/base/5/4": isSkipped, "/base/5/6": isInc, "/base/5/7": isSkipped, "/base/5/9": isWhole, "/" + scratchName: isSkipped},
		map[string][]entry{
			"part_001.tar": {dir("/"), dir("/base"), {name: "/base/5", kind: tar.TypeDir, mode: 0o750}, {name: "/base/5/9", body: "new"}},
			"part_002.tar": {{name: "/base/5/1", body: inc(5, []uint32{0, 2, 4}, "c.c"), mode: 0o640}, {name: "/base/5/6", body: inc(6, []uint32{0, 4}, "cc")}},
		})
	return c
}

var smallTree = map[string]string{
	".": "0700/", "base": "0700/", "base/5": "0750/", "global": "0700/", "pg_wal": "0700/",
	// Page 2 is zero in the newest backup, and stays so; the mode is the newest.
	"base/5/1": "0640 " + pages("cb.ac"),
	"base/5/2": "0600 " + pages("bb.b"), // all pages from the middle, one of them zero
	"base/5/3": "0600 " + pages("a"),
	"base/5/4": "0600 newer",
	// Cut in the middle and grown again: the base's pages do not come back.
	"base/5/6": "0600 " + pages("cb..c."),
	// No whole number of pages in the base.
	"base/5/7": "0600 " + pages("a")[:500] + pages(".")[:524] + pages("b"),
	"base/5/9": "0600 new",
	// Of the target; base/5/8, gone/5 and gone are deleted.
	"backup_label": "0600 label 2", "tablespace_map": "0600 ", "global/pg_control": "0600 control 2",
}

func TestSmallChain(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, r Request) {
		c := smallChain(t)
		got, err := c.run(t, r, chainConfig())
		if err != nil {
			t.Fatal(err)
		}
		compareTrees(t, got, smallTree)
		for i, src := range c.sources[:2] {
			opened := src.(*memory).opened
			if opened["backup_label.tar"] != 0 || opened["pg_control.tar"] != 0 {
				t.Errorf("label or control of base %d was read", i)
			}
		}
	})
}

// A tar that holds nothing needed is not read, unless its list is wrong or there
// is none.
func TestRedundantTars(t *testing.T) {
	t.Parallel()
	make := func(t *testing.T) (*testChain, *memory, *memory) {
		c := &testChain{}
		base := c.add(t, fileList{"/base/5/1": isWhole, "/base/5/2": isWhole, "/base/5/3": isWhole},
			map[string][]entry{
				"part_001.tar": {{name: "/base/5/1", body: pages("aa")}},
				"part_002.tar": {{name: "/base/5/2", body: pages("aa")}},
				"part_003.tar": {{name: "/base/5/3", body: "x"}}})
		middle := c.add(t, fileList{"/base/5/1": isInc, "/base/5/2": isInc}, map[string][]entry{
			"part_001.tar": {{name: "/base/5/1", body: inc(2, []uint32{0}, "b")}},
			"part_002.tar": {{name: "/base/5/2", body: inc(2, []uint32{0}, "b")}}})
		c.add(t, fileList{"/base/5/1": isInc, "/base/5/2": isInc},
			map[string][]entry{"part_001.tar": {{name: "/base/5/1", body: inc(2, []uint32{0, 1}, "c.")}, {name: "/base/5/2", body: inc(1, []uint32{0}, "c")}}})
		return c, base, middle
	}
	want := map[string]string{
		".": "0700/", "base": "0700/", "base/5": "0700/", "global": "0700/", "pg_wal": "0700/", "base/5/1": "0600 " + pages("c."), "base/5/2": "0600 " + pages("c"),
		"backup_label": "0600 label 2", "tablespace_map": "0600 ", "global/pg_control": "0600 control 2",
	}
	for name, tt := range map[string]struct {
		r            Request
		base, middle int // objects read
	}{
		"reverse":           {Request{Reverse: true, SkipRedundant: true}, 0, 0},
		"reverse, all tars": {Request{Reverse: true}, 0, 0}, // nothing is wanted any more
		"normal":            {Request{SkipRedundant: true}, 2, 2},
		"normal, all tars":  {Request{}, 3, 2},
	} {
		c, base, middle := make(t)
		got, err := c.run(t, tt.r, chainConfig())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		compareTrees(t, got, want)
		if len(base.opened) != tt.base || len(middle.opened) != tt.middle {
			t.Errorf("%s: read %v and %v", name, base.opened, middle.opened)
		}
	}
	// Lists that do not say where a file is.
	eachWay(t, func(t *testing.T, r Request) {
		c := smallChain(t)
		for i := range c.links {
			files := c.links[i].Files
			c.links[i].Files = func(v manifest.FilesVisitor) error {
				if tell := v.TarEntry; tell != nil {
					v.TarEntry = func(object, name string) error { return tell(object, "/gone/5") }
				}
				return files(v)
			}
		}
		got, err := c.run(t, r, chainConfig())
		if err != nil {
			t.Fatal(err)
		}
		compareTrees(t, got, smallTree)
	})
}

// What a base or an increment lacks is noticed before the directory can start.
func TestDamagedChains(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		step   int
		object string
		put    []entry
		want   error
		says   string
	}{
		"a file lost":           {0, "part_002.tar", []entry{{name: "/base/5/4", body: "old"}}, ErrIncomplete, "base/5/3"},
		"an increment lost":     {1, "part_002.tar", []entry{{name: "/base/5/4", body: "newer"}, {name: "/base/5/7", body: inc(2, []uint32{1}, "b")}}, ErrIncomplete, "base/5/6"},
		"an increment twice":    {1, "part_003.tar", []entry{{name: "/base/5/6", body: inc(2, []uint32{1}, "b")}}, ErrArchive, "twice"},
		"twice in a tar":        {2, "part_002.tar", []entry{{name: "/base/5/1", body: inc(4, nil, "")}, {name: "base/5/1", body: inc(4, nil, "")}, {name: "/base/5/6", body: inc(6, nil, "")}}, ErrArchive, "twice"},
		"a file, no increment":  {2, "part_002.tar", []entry{{name: "/base/5/1", body: pages("c")}, {name: "/base/5/6", body: inc(6, nil, "")}}, ErrArchive, "increment"},
		"an increment too long": {2, "part_002.tar", []entry{{name: "/base/5/1", body: inc(4, nil, "c")}, {name: "/base/5/6", body: inc(6, nil, "")}}, ErrArchive, "increment"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, r Request) {
				c := smallChain(t)
				b := tarOf(t, tt.put...)
				src := c.sources[tt.step].(*memory)
				if _, ok := src.objects[tt.object]; !ok {
					c.links[tt.step].Parts = append(c.links[tt.step].Parts, Object{Name: tt.object, Size: int64(len(b))})
				}
				src.objects[tt.object] = b
				_, err := c.run(t, r, chainConfig())
				if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.says) {
					t.Errorf("error %v, want %v saying %q", err, tt.want, tt.says)
				}
			})
		})
	}
}

// Objects that arrive altered or cut and then well leave no trace of the first
// reading, in either order.
func TestChainRetries(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, r Request) {
		c := smallChain(t)
		for _, src := range c.sources {
			m := src.(*memory)
			m.open = func(_ context.Context, name string, n int, stored []byte) (io.ReadCloser, error) {
				switch n {
				case 1: // pages of something else, and then the end is missing
					bad := bytes.Clone(stored)
					for i := range bad {
						if i%512 != 0 && bad[i] >= 'a' && bad[i] <= 'c' && bad[i-1] == bad[i] && bad[(i+1)%len(bad)] == bad[i] {
							bad[i] = 'X'
						}
					}
					return io.NopCloser(bytes.NewReader(bad[:len(bad)-1024])), nil
				case 2:
					return failingAfter(stored[:len(stored)/2], errNetwork), nil
				}
				return io.NopCloser(bytes.NewReader(stored)), nil
			}
		}
		got, err := c.run(t, r, chainConfig())
		if err != nil {
			t.Fatal(err)
		}
		compareTrees(t, got, smallTree)
	})
}

func TestChainMask(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, r Request) {
		var err error
		if r.Keep, err = MaskFilter("base/5/[16]"); err != nil {
			t.Fatal(err)
		}
		got, err := smallChain(t).run(t, r, chainConfig())
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{}
		for _, name := range []string{".", "base", "base/5", "pg_wal", "base/5/1", "base/5/6"} {
			want[name] = smallTree[name]
		}
		compareTrees(t, got, want)
	})
}

func TestChainOnAFullBackupWithoutList(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, r Request) {
		c := smallChain(t)
		c.links[0].Files = nil
		got, err := c.run(t, r, chainConfig())
		if err != nil {
			t.Fatal(err)
		}
		compareTrees(t, got, smallTree)
	})
}

func TestChainInTablespace(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, r Request) {
		const file = "/pg_tblspc/77/PG_15/5/1"
		c := &testChain{}
		c.add(t, fileList{file: isWhole, "/pg_tblspc/66/PG_15/5/1": isWhole}, map[string][]entry{
			"part_001.tar": {{name: file, body: pages("aa")}, {name: "/pg_tblspc/66/PG_15/5/1", body: "dropped"}}})
		c.add(t, fileList{file: isInc}, map[string][]entry{"part_001.tar": {{name: file, body: inc(2, []uint32{1}, "b")}}})
		c.links[0].Sentinel.Spec = spec("/old", "66", "/t66", "77", "/t77")
		c.links[1].Sentinel.Spec = spec("/old", "77", "/t77")
		space := filepath.Join(t.TempDir(), "space")
		r.Spec = spec("/d", "77", space)
		got, err := c.run(t, r, chainConfig())
		if err != nil {
			t.Fatal(err)
		}
		if got["pg_tblspc/77"] != "-> "+space || got["pg_tblspc/66"] != "" {
			t.Errorf("links: %v", got)
		}
		if got := tree(t, space)["PG_15/5/1"]; got != "0600 "+pages("ab") {
			t.Errorf("%d bytes in the tablespace", len(got))
		}
	})
}

// A file whose own mode forbids writing takes increments all the same.
func TestChainReadOnlyFile(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, r Request) {
		c := &testChain{}
		c.add(t, fileList{"/base/5/1": isWhole}, map[string][]entry{"part_001.tar": {{name: "/base/5/1", body: pages("aa"), mode: 0o400}}})
		c.add(t, fileList{"/base/5/1": isInc}, map[string][]entry{"part_001.tar": {{name: "/base/5/1", body: inc(2, []uint32{1}, "b"), mode: 0o400}}})
		got, err := c.run(t, r, chainConfig())
		if err != nil {
			t.Fatal(err)
		}
		if got["base/5/1"] != "0400 "+pages("ab") {
			t.Errorf("%.20q", got["base/5/1"])
		}
	})
}

func TestSourcesMustFit(t *testing.T) {
	t.Parallel()
	c := smallChain(t)
	dest := filepath.Join(t.TempDir(), "data")
	p, err := NewChainPlan(c.links, Request{Destination: dest})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), p, c.sources[0], chainConfig()); err == nil {
		t.Error("a chain ran from one source")
	}
	if _, err := os.Lstat(dest); err == nil {
		t.Error("the destination was made")
	}
}

// Whatever happens to the files of a cluster between backups, all ways to
// restore agree with a model.
func TestAnyChain(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		c := &testChain{}
		disk := map[string]string{}
		for step := range rapid.IntRange(1, 4).Draw(rt, "backups") {
			list, parts := fileList{}, map[string][]entry{"part_001.tar": nil}
			for k := range 4 {
				name := fmt.Sprintf("/base/5/%d", k)
				old, exists := disk[name]
				letters := rapid.StringMatching(`[a-c.]{0,5}`).Draw(rt, "letters")
				kind := rapid.SampledFrom([]manifest.File{isWhole, isInc, isInc, isSkipped}).Draw(rt, "kind")
				if rapid.IntRange(0, 5).Draw(rt, "drop") == 0 {
					delete(disk, name)
					continue
				}
				if !exists || step == 0 {
					kind = isWhole
				}
				e := entry{name: name}
				switch kind {
				case isWhole:
					disk[name] = letters
					e.body = pages(letters)
				case isInc:
					now := []byte(letters)
					var numbers []uint32
					var changed string
					for i := range now {
						// As a scan chooses: what changed, and zeros; or more.
						if i >= len(old) || now[i] != old[i] || now[i] == '.' || rapid.Bool().Draw(rt, "more") {
							numbers, changed = append(numbers, uint32(i)), changed+string(now[i])
						}
					}
					disk[name] = letters
					e.body = inc(len(now), numbers, changed)
				}
				list[name] = kind
				if kind != isSkipped {
					part := rapid.SampledFrom([]string{"part_001.tar", "part_002.tar"}).Draw(rt, "part")
					parts[part] = append(parts[part], e)
				}
			}
			list["/"] = isWhole
			parts["part_001.tar"] = append(parts["part_001.tar"], dir("/"))
			c.add(t, list, parts)
		}
		skip := rapid.Bool().Draw(rt, "skip redundant")
		for _, r := range []Request{{SkipRedundant: skip}, {Reverse: true, SkipRedundant: !skip}} {
			root, err := os.MkdirTemp(t.TempDir(), "")
			if err != nil {
				rt.Fatal(err)
			}
			r.Destination = filepath.Join(root, "data")
			cfg := chainConfig()
			var log bytes.Buffer
			cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
			got, err := c.run(t, r, cfg)
			if err != nil {
				rt.Fatal(err)
			}
			if log.Len() > 0 {
				rt.Fatalf("%+v: the lists are right, and yet: %s", r, log.String())
			}
			if err := os.RemoveAll(root); err != nil {
				rt.Fatal(err)
			}
			for k := range 4 {
				name := fmt.Sprintf("base/5/%d", k)
				letters, exists := disk["/"+name]
				want := ""
				if exists {
					want = "0600 " + pages(letters)
				}
				if got[name] != want {
					rt.Fatalf("%+v: %s is %d bytes, want %d", r, name, len(got[name]), len(want))
				}
			}
		}
	})
}

func TestIndex(t *testing.T) {
	t.Parallel()
	x := newIndex()
	const n = 5000
	for i := range n {
		for again := range 2 {
			if fresh, err := x.add(fmt.Sprintf("base/5/%d", i)); err != nil || fresh != (again == 0) {
				t.Fatal(i, fresh, err)
			}
		}
	}
	for i := range n {
		name := fmt.Sprintf("base/5/%d", i)
		if got, ok := x.find(name); !ok || got != i || x.name(i) != name {
			t.Fatalf("%s is number %d", name, got)
		}
	}
	if _, ok := x.find("base/5/x"); ok || x.len() != n {
		t.Fatal("found what is not there")
	}
	if fileKey("/base/5/\xff\xfe") != "base/5/\uFFFD\uFFFD" || fileKey("/") != "." || fileKey("base/") != "base" {
		t.Error("keys")
	}
}

// BenchmarkPlanChain tells what a plan of a million files takes.
func BenchmarkPlanChain(b *testing.B) {
	const n = 1_000_000
	c := &testChain{}
	for step := range 3 {
		c.add(b, nil, map[string][]entry{"part_001.tar": nil})
		kind := isSkipped
		if step == 0 {
			kind = isWhole
		}
		c.links[step].Files = func(v manifest.FilesVisitor) error {
			for i := range n {
				f := kind
				if step > 0 && i%10 == 0 {
					f = isInc
				}
				if err := v.File(fmt.Sprintf("/base/16384/%d", 100000+i), f); err != nil {
					return err
				}
			}
			return nil
		}
	}
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		p, err := NewChainPlan(c.links, Request{Destination: "/d"})
		if err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "heap-B/file")
		runtime.KeepAlive(p)
	}
}
