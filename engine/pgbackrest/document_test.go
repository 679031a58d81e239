package pgbackrest

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/pg"
)

// TestRealInfo reads the info files of the real pgBackRest.
func TestRealInfo(t *testing.T) {
	t.Parallel()
	info, err := ParseBackupInfo(bytes.NewReader(fixture(t, "backup.info")))
	if err != nil {
		t.Fatal(err)
	}
	latest, _ := info.Latest()
	want := Backup{
		Label: "20261123-005539F_20261123-005543D", Type: Differential, Start: time.Unix(1795395343, 0).UTC(), Stop: time.Unix(1795395344, 0).UTC(),
		ArchiveStart: "000000010000000000000004",
	}
	if len(info.Backups) != 2 || latest != want || info.Backups[0].Type != Full {
		t.Errorf("backups %+v", info.Backups)
	}
	if _, ok := info.Find("20261123-005539F"); !ok {
		t.Error("the full backup is not found")
	}
	for name, passphrase := range map[string]string{"archive.info": "", "archive.info.aes": `geheim & "x"`} {
		a, err := repository(t, fakeStore{"archive/main/archive.info": fixture(t, name)}, passphrase).Archive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := (Database{ID: 1, SystemID: 7711164257432565222, Version: "15"}); len(a.Databases) != 1 || a.Databases[0] != want || want.Folder() != "15-1" {
			t.Errorf("%s: %+v", name, a.Databases)
		}
		if (a.passphrase != "") != (passphrase != "") {
			t.Errorf("%s: passphrase of the WAL %q", name, a.passphrase)
		}
	}
}

// TestEveryBit: no altered bit of a document passes, and no cut.
func TestEveryBit(t *testing.T) {
	t.Parallel()
	text := fixture(t, "archive.info")
	for i := range text {
		if _, err := ParseArchiveInfo(bytes.NewReader(text[:i])); err == nil && i < len(text)-1 {
			t.Errorf("cut to %d bytes: no error", i)
		}
		for bit := range 8 {
			b := bytes.Clone(text)
			b[i] ^= 1 << bit
			info, err := ParseArchiveInfo(bytes.NewReader(b))
			if err == nil && (text[i] != '\n' || len(info.Databases) != 1 || info.Databases[0].ID != 1) {
				t.Errorf("byte %d (%q) altered to %q: no error", i, text[i], b[i])
			}
			if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("byte %d altered: %v", i, err)
			}
		}
	}
}

// TestDocument writes documents of any keys and values and reads them back; a
// key that holds what looks like a value goes with the first reading.
func TestDocument(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		lines := head()
		for _, section := range []string{"a", "target:file"} {
			for range rapid.IntRange(0, 4).Draw(t, "lines") {
				key := rapid.StringMatching(`[^\[\n=][^\n=]{0,10}(=[^\n=0-9"{tfn-]{1,5})?`).Draw(t, "key")
				lines = append(lines, line{section, key, rapid.SampledFrom([]string{"{}", "1", `"a=b"`, `{"x":["=1"]}`, "true"}).Draw(t, "value")})
			}
		}
		var got []line
		_, err := parse(bytes.NewReader(document(lines)), func(section, key string, value []byte) error {
			got = append(got, line{section, key, string(value)})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range lines[2:] {
			if got[i] != want {
				t.Fatalf("read %q, want %q", got[i], want)
			}
		}
	})
}

func TestBadDocuments(t *testing.T) {
	t.Parallel()
	future := head()
	future[0].value = "6"
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"empty":           {"", ErrCorrupt},
		"other format":    {string(document(future)), ErrUnsupported},
		"no section":      {"x=1\n", ErrCorrupt},
		"no value":        {"[a]\nx\n", ErrCorrupt},
		"no JSON":         {"[a]\nx=y\n", ErrCorrupt},
		"half a section":  {"[a\n", ErrCorrupt},
		"after the end":   {string(document(head())) + "more=1\n", ErrCorrupt},
		"a line too long": {"[a]\nx=\"" + strings.Repeat("y", maxLine) + "\"\n", ErrCorrupt},
		"label":           {string(document(append(head(), line{"backup:current", "../x", "{}"}))), ErrCorrupt},
		"no times":        {string(document(append(head(), line{"backup:current", string(fullLabel), `{"backup-type":"full"}`}))), ErrCorrupt},
	} {
		if _, err := ParseBackupInfo(strings.NewReader(c.text)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, l := range map[string]line{
		"version": {"db:history", "1", `{"db-id":1,"db-version":"../15"}`},
		"id":      {"db:history", "+1", `{"db-id":1,"db-version":"15"}`},
		"nothing": {"db", "1", "1"},
	} {
		if _, err := ParseArchiveInfo(bytes.NewReader(document(append(head(), l)))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("archive.info with bad %s: %v", name, err)
		}
	}
	broken := errors.New("the network is gone")
	if _, err := ParseBackupInfo(io.MultiReader(strings.NewReader("[a]\n"), errReader{broken})); !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
		t.Errorf("failing source: %v", err)
	}
}

// TestUpgrade: after an upgrade the newest database comes first, and a known
// system identifier chooses.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	info, err := ParseArchiveInfo(bytes.NewReader(document(append(head(),
		line{"db:history", "1", `{"db-id":11,"db-version":"9.6"}`}, line{"db:history", "10", `{"db-id":12,"db-version":"16"}`}, line{"db:history", "2", `{"db-id":11,"db-version":"15"}`}))))
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[pg.SystemID]string{0: "16-10 15-2 9.6-1", 11: "15-2 9.6-1", 12: "16-10", 13: ""} {
		var got []string
		for _, d := range info.Of(id) {
			got = append(got, d.Folder())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("databases of %d: %v, want %s", id, got, want)
		}
	}
}

// FuzzParse: no panic in any of the parsers, and an error of a class.
func FuzzParse(f *testing.F) {
	f.Add(fixture(f, "backup.info"))
	f.Add(fixture(f, "archive.info"))
	f.Add(fakeRepo(f, fakeFiles(), nil)[backupFolder(fakeStanza, fullLabel)+"backup.manifest"])
	f.Fuzz(func(t *testing.T, text []byte) {
		// Most inputs fail at their checksum: mend it, so that the parsers
		// behind it see something.
		var lines []line
		_, _ = parse(bytes.NewReader(text), func(section, key string, value []byte) error {
			lines = append(lines, line{section, key, string(value)})
			return nil
		})
		for _, text := range [][]byte{text, document(append(head(), lines...))} {
			_, err1 := ParseBackupInfo(bytes.NewReader(text))
			_, err2 := ParseArchiveInfo(bytes.NewReader(text))
			m, err3 := ParseManifest(bytes.NewReader(text))
			for _, err := range []error{err1, err2, err3} {
				if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
					t.Fatal(err)
				}
			}
			if err3 != nil {
				continue
			}
			_, _ = NewPlan(m, Request{Stanza: fakeStanza, Destination: "/srv/restored"})
		}
	})
}
