package render_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/tools/walherd/render"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t
}

func sample() []render.Backup {
	return []render.Backup{
		{
			Name: "base_000000010000000000000003", Time: at("2026-11-22T16:27:54.692637563Z"),
			WALFileName: "000000010000000000000003", StorageName: "default",
			Detail: &render.Detail{
				StartTime: at("2026-11-22T16:27:52.701819Z"), FinishTime: at("2026-11-22T16:27:54.5Z"),
				Hostname: "vm", DataDir: "/var/lib/postgresql/15/main", PgVersion: 150018,
				StartLSN: 50331688, FinishLSN: 50331904, SystemIdentifier: 7711032298377616593,
				UncompressedSize: 41916481, CompressedSize: 9390590,
			},
		},
		{
			Name: "base_000000010000000000000005_D_000000010000000000000003", Time: at("2026-11-23T04:00:01Z"),
			WALFileName: "000000010000000000000005", StorageName: "storage_b",
			Detail: &render.Detail{
				Hostname: "host<1>", DataDir: "/data", PgVersion: 180001,
				StartLSN: 0x1600000028, FinishLSN: 0x1600000100, IsPermanent: true, SystemIdentifier: 1<<64 - 1,
				UncompressedSize: 1, CompressedSize: 2, UserData: json.RawMessage(`{"x": [3], "y": 4}`),
			},
		},
	}
}

// TestGolden holds the eight shapes, of one backup, of two, and in a zone.
func TestGolden(t *testing.T) {
	t.Parallel()
	lists := map[string]struct {
		list []render.Backup
		zone *time.Location
	}{
		"one":  {sample()[:1], nil},
		"two":  {sample(), nil},
		"zone": {sample()[:1], time.FixedZone("EST", -5*3600)},
	}
	for name, l := range lists {
		for shape := range 8 {
			opt := render.Options{Pretty: shape&1 != 0, JSON: shape&2 != 0, Detail: shape&4 != 0, Location: l.zone}
			file := name
			for _, part := range []struct {
				on   bool
				name string
			}{{opt.Detail, "detail"}, {opt.JSON, "json"}, {opt.Pretty, "pretty"}} {
				if part.on {
					file += "-" + part.name
				}
			}
			t.Run(file, func(t *testing.T) {
				t.Parallel()
				var got bytes.Buffer
				if err := render.Backups(&got, l.list, opt); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join("testdata", file+".golden")
				if *update {
					if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got.Bytes(), want) {
					t.Errorf("got\n%s\nwant\n%s", got.Bytes(), want)
				}
			})
		}
	}
}

// TestSamples holds output that was seen from WAL-G, letter by letter.
func TestSamples(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		opt  render.Options
		want string
	}{
		{render.Options{}, `
backup_name                   modified             wal_file_name            storage_name
base_000000010000000000000003 2026-11-22T16:27:54Z 000000010000000000000003 default
`},
		{render.Options{Pretty: true}, `
+---+-------------------------------+--------------------------------+--------------------------+--------------+
| # | BACKUP NAME                   | MODIFIED                       | WAL FILE NAME            | STORAGE NAME |
+---+-------------------------------+--------------------------------+--------------------------+--------------+
| 0 | base_000000010000000000000003 | Sunday, 22-Nov-26 16:27:54 UTC | 000000010000000000000003 | default      |
+---+-------------------------------+--------------------------------+--------------------------+--------------+
`},
		{render.Options{JSON: true}, `
[{"backup_name":"base_000000010000000000000003","time":"2026-11-22T16:27:54.692637563Z","wal_file_name":"000000010000000000000003","storage_name":"default"}]
`},
		{render.Options{JSON: true, Detail: true}, `
[{"backup_name":"base_000000010000000000000003","time":"2026-11-22T16:27:54.692637563Z","wal_file_name":"000000010000000000000003","storage_name":"default","start_time":"2026-11-22T16:27:52.701819Z","finish_time":"2026-11-22T16:27:54.5Z","date_fmt":"%Y-%m-%dT%H:%M:%S.%fZ","hostname":"vm","data_dir":"/var/lib/postgresql/15/main","pg_version":150018,"start_lsn":50331688,"finish_lsn":50331904,"is_permanent":false,"system_identifier":7711032298377616593,"uncompressed_size":41916481,"compressed_size":9390590}]
`},
	} {
		var got bytes.Buffer
		if err := render.Backups(&got, sample()[:1], c.opt); err != nil {
			t.Fatal(err)
		}
		if want := c.want[1:]; got.String() != want {
			t.Errorf("%+v: got\n%s\nwant\n%s", c.opt, got.String(), want)
		}
	}
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	for shape := range 8 {
		opt := render.Options{Pretty: shape&1 != 0, JSON: shape&2 != 0, Detail: shape&4 != 0}
		want := ""
		if opt.JSON {
			want = "[]\n"
		}
		var got bytes.Buffer
		if err := render.Backups(&got, nil, opt); err != nil || got.String() != want {
			t.Errorf("%+v: %q, %v", opt, got.String(), err)
		}
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestErrors(t *testing.T) {
	t.Parallel()
	broken := brokenWriter{errors.New("pipe is gone")}
	for shape := range 8 {
		opt := render.Options{Pretty: shape&1 != 0, JSON: shape&2 != 0, Detail: shape&4 != 0}
		if err := render.Backups(broken, sample(), opt); !errors.Is(err, broken.err) {
			t.Errorf("%+v: got %v", opt, err)
		}
	}
	list := sample()
	list[0].Detail = nil
	err := render.Backups(&bytes.Buffer{}, list, render.Options{Detail: true})
	if err == nil || !strings.Contains(err.Error(), list[0].Name) {
		t.Errorf("missing metadata: %v", err)
	}
	list = sample()
	list[1].Detail.UserData = json.RawMessage("nightly")
	if err := render.Backups(&bytes.Buffer{}, list, render.Options{Detail: true, JSON: true}); err == nil {
		t.Error("user data that is not JSON is written")
	}
}

// TestColumnsAlign: whatever the values, a column begins where its header does.
func TestColumnsAlign(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[a-z/_]{1,40}`)
		list := make([]render.Backup, rapid.IntRange(1, 5).Draw(t, "n"))
		for i := range list {
			list[i] = render.Backup{
				Name: word.Draw(t, "name"), Time: time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "time"), 0),
				WALFileName: word.Draw(t, "wal"), StorageName: word.Draw(t, "storage"),
				Detail: &render.Detail{
					Hostname: word.Draw(t, "host"), DataDir: word.Draw(t, "dir"),
					StartLSN: pg.LSN(rapid.Uint64().Draw(t, "lsn")),
				},
			}
		}
		var out bytes.Buffer
		if err := render.Backups(&out, list, render.Options{Detail: true}); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != len(list)+1 {
			t.Fatalf("%d lines for %d backups", len(lines), len(list))
		}
		for _, name := range []string{" modified ", " storage_name ", " data_dir ", " is_permanent"} {
			start := strings.Index(lines[0], name)
			for _, line := range lines[1:] {
				if line[start] != ' ' || line[start+1] == ' ' {
					t.Fatalf("column%s does not begin at %d:\n%s", name, start+1, out.String())
				}
			}
		}
	})
}
