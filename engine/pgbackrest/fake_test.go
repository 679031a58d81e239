package pgbackrest

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// line is a value of a document.
type line struct{ section, key, value string }

// document writes a document with its checksum.
func document(lines []line) []byte {
	var out bytes.Buffer
	sum, section := newDocumentSum(), ""
	for _, l := range lines {
		if l.section != section {
			fmt.Fprintf(&out, "\n[%s]\n", l.section)
			section = l.section
		}
		fmt.Fprintf(&out, "%s=%s\n", l.key, l.value)
		sum.add(l.section, l.key, []byte(l.value))
	}
	fmt.Fprintf(&out, "\n[backrest]\nbackrest-checksum=%q\n", sum.end())
	return bytes.TrimPrefix(out.Bytes(), []byte("\n"))
}

// head is how a document begins.
func head() []line {
	return []line{{"backrest", "backrest-format", "5"}, {"backrest", "backrest-version", `"2.45"`}}
}

// fakeStore is a Store in memory.
type fakeStore map[string][]byte

func (s fakeStore) Open(_ context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	b, ok := s[name]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
	}
	if length > 0 && offset+length > int64(len(b)) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(b[min(offset, int64(len(b))):]), errReader{io.ErrUnexpectedEOF})), nil
	}
	b = b[offset:]
	if length > 0 {
		b = b[:length]
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func (s fakeStore) List(_ context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		last := ""
		for _, name := range slices.Sorted(maps.Keys(s)) {
			rest, ok := strings.CutPrefix(name, prefix)
			if !ok {
				continue
			}
			if folder, _, deeper := strings.Cut(rest, "/"); deeper {
				name = prefix + folder + "/"
			}
			if name != last && !yield(Object{Name: name}, nil) {
				return
			}
			last = name
		}
	}
}

// fakeFile is a file of a made-up backup.
type fakeFile struct {
	name, content string
	// extra are further members: "mode":"0640"
	extra string
	// in is a backup that has it; bundled puts it into bundle 1.
	in      Label
	bundled bool
}

const (
	fakeStanza = "main"
	fullLabel  = Label("20260821-101500F")
	diffLabel  = Label("20260821-101500F_20260822-101500D")
)

// fakeFiles are a small data directory.
func fakeFiles() []fakeFile {
	return []fakeFile{
		{name: "pg_data/PG_VERSION", content: "15\n"},
		{name: "pg_data/backup_label", content: "START WAL LOCATION: 0/2000028\n"},
		{name: "pg_data/base/1/empty"},
		{name: "pg_data/global/pg_control", content: strings.Repeat("c", 8192)},
		{name: `pg_data/odd={"x":1}`, content: "odd", extra: `,"mode":"0640"`},
		{name: "pg_data/small1", content: "one", bundled: true},
		{name: "pg_data/small2", content: "two", bundled: true},
		{name: "pg_data/tablespace_map", content: "16397 /srv/space\n"},
		{name: "pg_tblspc/16397/PG_15/1/2", content: strings.Repeat("page", 5000)},
	}
}

// fakeRepo stores a backup of the files, compressed with gzip, and a list of
// backups with it. change may alter the manifest's lines.
func fakeRepo(t testing.TB, files []fakeFile, change func([]line) []line) fakeStore {
	t.Helper()
	s := fakeStore{}
	lines := append(head(),
		line{"backup", "backup-label", `"` + string(fullLabel) + `"`}, line{"backup", "backup-lsn-start", `"0/2000028"`},
		line{"backup", "backup-timestamp-start", "1795395339"}, line{"backup", "backup-timestamp-stop", "1795395342"}, line{"backup", "backup-type", `"full"`},
		line{"backup:db", "db-system-id", "7711164257432565222"}, line{"backup:db", "db-version", `"15"`},
		line{"backup:option", "option-compress-type", `"gz"`}, line{"backup:option", "option-online", "true"},
		line{"backup:target", "pg_data", `{"path":"/srv/data","type":"path"}`},
		line{"backup:target", "pg_data/linked", `{"path":"/etc/x","type":"link"}`},
		line{"backup:target", "pg_tblspc/16397", `{"path":"/srv/space","tablespace-id":"16397","tablespace-name":"sp","type":"link"}`})
	var bundle bytes.Buffer
	for _, f := range files {
		packed := pack(t, f.content)
		sum := sha1.Sum([]byte(f.content))
		value := fmt.Sprintf(`{"checksum":"%s","repo-size":%d,"size":%d,"timestamp":1795395337`, hex.EncodeToString(sum[:]), len(packed), len(f.content))
		label := fullLabel
		if f.in != "" {
			label = f.in
			value += fmt.Sprintf(`,"reference":%q`, f.in)
		}
		if f.bundled {
			bundle.WriteString("gap")
			value += fmt.Sprintf(`,"bni":1,"bno":%d`, bundle.Len())
			bundle.Write(packed)
			s[backupFolder(fakeStanza, label)+"bundle/1"] = bundle.Bytes()
		} else {
			s[backupFolder(fakeStanza, label)+f.name+".gz"] = packed
		}
		lines = append(lines, line{"target:file", f.name, value + f.extra + "}"})
	}
	lines = append(lines, line{"target:file:default", "mode", `"0600"`},
		line{"target:link", "pg_data/linked", `{"destination":"/etc/x"}`}, line{"target:link", "pg_data/pg_tblspc/16397", `{"destination":"/srv/space"}`},
		line{"target:path", "pg_data", "{}"}, line{"target:path", "pg_data/base/1", `{"mode":"0750"}`}, line{"target:path", "pg_data/pg_dynshmem", "{}"},
		line{"target:path", "pg_tblspc", "{}"}, line{"target:path", "pg_tblspc/16397", "{}"},
		line{"target:path:default", "mode", `"0700"`})
	if change != nil {
		lines = change(lines)
	}
	s[backupFolder(fakeStanza, fullLabel)+"backup.manifest"] = document(lines)
	s["backup/main/backup.info"] = document(append(head(), line{"backup:current", string(fullLabel),
		`{"backup-timestamp-start":1795395339,"backup-timestamp-stop":1795395342,"backup-type":"full","backup-archive-start":"000000010000000000000002"}`}))
	return s
}

func pack(t testing.TB, content string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func repository(t testing.TB, s Store, passphrase string) *Repository {
	t.Helper()
	r, err := New(s, Options{Stanza: fakeStanza, Passphrase: passphrase, PassphraseFrom: "THE_SETTING"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
