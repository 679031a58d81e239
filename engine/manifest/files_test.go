package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"
)

// copyFiles reads a document and writes it again as it comes.
func copyFiles(w io.Writer, r io.Reader) error {
	fw := NewFilesWriter(w)
	var database *string
	// The visitor hears of a database after its tables, the writer before:
	// the OID is looked up first.
	document, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	oids := map[string]uint32{}
	if err := ReadFiles(bytes.NewReader(document), FilesVisitor{
		Database: func(name string, oid uint32) error { oids[name] = oid; return nil },
	}); err != nil {
		return err
	}
	err = ReadFiles(bytes.NewReader(document), FilesVisitor{
		File:     fw.File,
		Tar:      fw.Tar,
		TarEntry: func(_, name string) error { return fw.TarEntry(name) },
		Table: func(db, name string, t Table) error {
			if database == nil || db != *database {
				database = &db
				if err := fw.Database(db, oids[db]); err != nil {
					return err
				}
			}
			return fw.Table(name, t)
		},
	})
	if err != nil {
		return err
	}
	return fw.Close()
}

func TestRecordedFilesMetadataComesBackByteForByte(t *testing.T) {
	t.Parallel()
	for _, backup := range []string{"full", "increment", "remote"} {
		t.Run(backup, func(t *testing.T) {
			t.Parallel()
			document := recorded(t, backup+"/files_metadata.json")
			var got bytes.Buffer
			if err := copyFiles(&got, bytes.NewReader(document)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), document) {
				i := 0
				for i < min(got.Len(), len(document)) && got.Bytes()[i] == document[i] {
					i++
				}
				t.Errorf("differs from byte %d on:\n got %.200s\nwant %.200s", i, got.Bytes()[i:], document[i:])
			}
		})
	}
}

func TestRecordedFilesMetadataHolds(t *testing.T) {
	t.Parallel()
	var files, skipped, incremented, entries, tables int
	var tars []string
	err := ReadFiles(bytes.NewReader(recorded(t, "increment/files_metadata.json")), FilesVisitor{
		File: func(name string, f File) error {
			files++
			if f.IsSkipped {
				skipped++
			}
			if f.IsIncremented {
				incremented++
			}
			if f.MTime.IsZero() || !strings.HasPrefix(name, "/") {
				return fmt.Errorf("%q: %+v", name, f)
			}
			return nil
		},
		Tar:      func(object string) error { tars = append(tars, object); return nil },
		TarEntry: func(string, string) error { entries++; return nil },
		Table:    func(string, string, Table) error { tables++; return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	document := recorded(t, "increment/files_metadata.json")
	if want := bytes.Count(document, []byte(`"MTime"`)); files != want || files == 0 {
		t.Errorf("%d files, want %d", files, want)
	}
	if want := bytes.Count(document, []byte(`"IsSkipped":true`)); skipped != want || skipped == 0 {
		t.Errorf("%d skipped, want %d", skipped, want)
	}
	if want := bytes.Count(document, []byte(`"IsIncremented":true`)); incremented != want || incremented == 0 {
		t.Errorf("%d incremented, want %d", incremented, want)
	}
	if len(tars) == 0 || entries == 0 || tables == 0 {
		t.Errorf("tars %v, %d entries, %d tables", tars, entries, tables)
	}
}

func TestFilesWriterGolden(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 16, 43, 45, 52_628_324, time.UTC)
	var got bytes.Buffer
	w := NewFilesWriter(&got)
	steps := []error{
		w.File("/base/16385/16418", File{MTime: at, CorruptBlocks: &CorruptBlocks{Count: 12, Some: []uint32{1, 3}}}),
		w.File("/base/16385/<&>", File{IsIncremented: true, MTime: at, UpdatesCount: 7}),
		w.Tar("part_001.tar.lz4"),
		w.TarEntry("/"),
		w.TarEntry(`/a"b`),
		w.Tar("part_003.tar.lz4"),
		w.Tar("backup_label.tar.lz4"),
		w.TarEntry("tablespace_map"),
		w.Database("empty", 5),
		w.Database("db1", 16385),
		w.Table("public.t1", Table{OID: 16387, RelFileNode: 16387}),
		w.Table("public.part", Table{OID: 16404, Subtables: map[string]Table{"public.part1": {OID: 16407, RelFileNode: 16408}}}),
		w.Close(),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	const want = `{"Files":{` +
		`"/base/16385/16418":{"IsIncremented":false,"IsSkipped":false,"MTime":"2026-11-22T16:43:45.052628324Z","CorruptBlocks":{"CorruptBlocksCount":12,"SomeCorruptBlocks":[1,3]},"UpdatesCount":0},` +
		`"/base/16385/<&>":{"IsIncremented":true,"IsSkipped":false,"MTime":"2026-11-22T16:43:45.052628324Z","UpdatesCount":7}},` +
		`"TarFileSets":{"part_001.tar.lz4":["/","/a\"b"],"part_003.tar.lz4":[],"backup_label.tar.lz4":["tablespace_map"]},` +
		`"DatabasesByNames":{"empty":{"oid":5},"db1":{"oid":16385,"tables_new":{"public.t1":{"oid":16387,"relfilenode":16387},` +
		`"public.part":{"oid":16404,"relfilenode":0,"subtables":{"public.part1":{"oid":16407,"relfilenode":16408}}}}}}}`
	if got.String() != want {
		t.Errorf("\n got %s\nwant %s", &got, want)
	}
}

func TestFilesWriterLeavesOutEmptySections(t *testing.T) {
	t.Parallel()
	var got bytes.Buffer
	if err := NewFilesWriter(&got).Close(); err != nil || got.String() != "{}" {
		t.Errorf("nothing: %s, %v", &got, err)
	}
	got.Reset()
	w := NewFilesWriter(&got)
	if err := errors.Join(w.Database("db", 5), w.Close(), w.Close()); err != nil || got.String() != `{"DatabasesByNames":{"db":{"oid":5}}}` {
		t.Errorf("databases only: %s, %v", &got, err)
	}
}

func TestFilesWriterRefuses(t *testing.T) {
	t.Parallel()
	for name, act := range map[string]func(*FilesWriter) error{
		"file behind a tar":     func(w *FilesWriter) error { return errors.Join(w.Tar("a"), w.File("b", File{})) },
		"tar behind a database": func(w *FilesWriter) error { return errors.Join(w.Database("a", 1), w.Tar("b")) },
		"entry of no tar":       func(w *FilesWriter) error { return w.TarEntry("a") },
		"table of no database":  func(w *FilesWriter) error { return w.Table("a", Table{}) },
		"entry behind a database": func(w *FilesWriter) error {
			return errors.Join(w.Tar("a"), w.Database("b", 1), w.TarEntry("c"))
		},
		"both incremented and skipped": func(w *FilesWriter) error {
			return w.File("a", File{IsIncremented: true, IsSkipped: true})
		},
		"anything behind the end": func(w *FilesWriter) error { return errors.Join(w.Close(), w.Database("a", 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := NewFilesWriter(io.Discard)
			if act(w) == nil {
				t.Fatal("accepted")
			}
			if w.Close() == nil {
				t.Error("Close forgot the error")
			}
		})
	}

	t.Run("failing writer", func(t *testing.T) {
		t.Parallel()
		w := NewFilesWriter(failingWriter{})
		err := w.File("a", File{})
		for range 10_000 {
			err = w.File("a", File{})
		}
		if !errors.Is(err, errDisk) || !errors.Is(w.Close(), errDisk) {
			t.Errorf("error = %v", err)
		}
	})
}

var errDisk = errors.New("disk is full")

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errDisk }

func TestModificationTimesOutOfRangeDoNotFail(t *testing.T) {
	t.Parallel()
	for _, at := range []time.Time{
		time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC),
		{},
	} {
		var doc bytes.Buffer
		w := NewFilesWriter(&doc)
		if err := errors.Join(w.File("a", File{MTime: at}), w.Close()); err != nil {
			t.Fatalf("%v: %v", at, err)
		}
		if err := ReadFiles(&doc, FilesVisitor{File: func(_ string, f File) error { return nil }}); err != nil {
			t.Errorf("%v: %v", at, err)
		}
	}
}

func TestReadFilesForms(t *testing.T) {
	t.Parallel()
	type seen struct {
		Files, Entries, Tables, Databases []string
	}
	read := func(document string) (seen, error) {
		var s seen
		err := ReadFiles(iotest.OneByteReader(strings.NewReader(document)), FilesVisitor{
			File:     func(name string, f File) error { s.Files = append(s.Files, name); return nil },
			Tar:      func(object string) error { s.Entries = append(s.Entries, object+":"); return nil },
			TarEntry: func(o, n string) error { s.Entries = append(s.Entries, n); return nil },
			Database: func(n string, oid uint32) error {
				s.Databases = append(s.Databases, fmt.Sprint(n, " ", oid))
				return nil
			},
			Table: func(d, n string, t Table) error { s.Tables = append(s.Tables, d+"."+n); return nil },
		})
		return s, err
	}
	for document, want := range map[string]seen{
		`{}`:   {},
		`null`: {},
		" {\"Files\":null,\"TarFileSets\":null,\"DatabasesByNames\":null} \n":                                                         {},
		`{"x":{"y":[[],{},"s",1,null]},"files":{"a":{"mtime":"2026-11-22T16:43:45Z","more":1}}}`:                                      {Files: []string{"a"}},
		`{"DatabasesByNames":{"d":{"tables_new":{"p.t":{"oid":2}},"tables":{"1":2},"oid":9}},"TarFileSets":{"q":null,"p":["a","b"]}}`: {Databases: []string{"d 9"}, Tables: []string{"d.p.t"}, Entries: []string{"q:", "p:", "a", "b"}},
	} {
		got, err := read(document)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", document, got, err, want)
		}
	}
	for _, document := range []string{
		`[]`, `{} {}`, `{"Files":[]}`, `{"Files":{"a":1}}`, `{"TarFileSets":{"p":{}}}`, `{"Files":{"a":{"IsIncremented":true,"IsSkipped":true}}}`,
		`{"Files":{"a":{"MTime":"yesterday"}}}`, `{"DatabasesByNames":{"d":{"oid":-1}}}`, `{"x":` + strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1) + `}`,
	} {
		if got, err := read(document); err == nil {
			t.Errorf("%.60s: read as %+v", document, got)
		}
	}
	whole := `{"Files":{"a":{"IsIncremented":false,"MTime":"2026-11-22T16:43:45Z"}},"TarFileSets":{"p":["a"]},"DatabasesByNames":{"d":{"oid":1}}}`
	for n := range whole {
		if _, err := read(whole[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut to %q: %v", whole[:n], err)
		}
	}
}

func TestReadFilesStopsAtTheVisitorsError(t *testing.T) {
	t.Parallel()
	calls := 0
	err := ReadFiles(bytes.NewReader(recorded(t, "full/files_metadata.json")), FilesVisitor{
		File: func(string, File) error { calls++; return errDisk },
	})
	if !errors.Is(err, errDisk) || calls != 1 {
		t.Errorf("%d calls, error %v", calls, err)
	}
}

func TestFilesRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.String()
		names := rapid.SliceOfNDistinct(name, 0, 5, rapid.ID)
		var first, second bytes.Buffer
		w := NewFilesWriter(&first)
		var files []File
		for _, n := range names.Draw(t, "files") {
			f := File{
				IsIncremented: rapid.Bool().Draw(t, "incremented"),
				MTime:         time.Unix(rapid.Int64Range(0, 1<<35).Draw(t, "sec"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")),
				UpdatesCount:  rapid.Uint64().Draw(t, "updates"),
			}
			files = append(files, f)
			if err := w.File(n, f); err != nil {
				t.Fatal(err)
			}
		}
		for _, tar := range names.Draw(t, "tars") {
			if err := w.Tar(tar); err != nil {
				t.Fatal(err)
			}
			for _, n := range rapid.SliceOfN(name, 0, 5).Draw(t, "entries") {
				if err := w.TarEntry(n); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, db := range names.Draw(t, "databases") {
			if err := w.Database(db, rapid.Uint32().Draw(t, "oid")); err != nil {
				t.Fatal(err)
			}
			for _, n := range rapid.SliceOfNDistinct(name, 1, 3, rapid.ID).Draw(t, "tables") {
				if err := w.Table(n, Table{OID: rapid.Uint32().Draw(t, "oid")}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		i := 0
		if err := ReadFiles(bytes.NewReader(first.Bytes()), FilesVisitor{File: func(_ string, f File) error {
			if !f.MTime.Equal(files[i].MTime) || f.UpdatesCount != files[i].UpdatesCount || f.IsIncremented != files[i].IsIncremented {
				return fmt.Errorf("read %+v, want %+v", f, files[i])
			}
			i++
			return nil
		}}); err != nil || i != len(files) {
			t.Fatalf("%d of %d files: %v", i, len(files), err)
		}
		if err := copyFiles(&second, bytes.NewReader(first.Bytes())); err != nil {
			t.Fatal(err)
		}
		if first.String() != second.String() {
			t.Fatalf("\nfirst  %s\nsecond %s", &first, &second)
		}
	})
}

func FuzzReadFiles(f *testing.F) {
	f.Add([]byte(`{"Files":{"a":{"MTime":"2026-11-22T16:43:45Z"}},"TarFileSets":{"p":["a"]},"DatabasesByNames":{"d":{"oid":1,"tables_new":{"p.t":{"oid":2,"relfilenode":3}}}}}`))
	f.Add([]byte(`{"x":[[{}]],"files":null}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		// Whatever is read can be written and read again.
		var once, twice bytes.Buffer
		if copyFiles(&once, bytes.NewReader(document)) != nil {
			return
		}
		if err := copyFiles(&twice, bytes.NewReader(once.Bytes())); err != nil {
			t.Fatalf("%s: %v", &once, err)
		}
		if once.String() != twice.String() {
			t.Fatalf("\nonce  %s\ntwice %s", &once, &twice)
		}
	})
}

func BenchmarkFilesWriter(b *testing.B) {
	w := NewFilesWriter(io.Discard)
	at := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if err := w.File("/base/16385/16418", File{MTime: at}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadFiles(b *testing.B) {
	document, err := os.ReadFile(filepath.Join("testdata", "full", "files_metadata.json"))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(document)))
	b.ReportAllocs()
	for b.Loop() {
		if err := ReadFiles(bytes.NewReader(document), FilesVisitor{File: func(string, File) error { return nil }}); err != nil {
			b.Fatal(err)
		}
	}
}
