package settings_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"pgregory.net/rapid"

	"github.com/walherd/walherd/tools/walherd/settings"
)

// testBundle is the arguments of one Load.
type testBundle struct {
	flags map[string]string
	env   []string
	home  string
	files map[string]string
}

func (b testBundle) load() (*settings.Settings, []settings.Warning, error) {
	return settings.Load(b.flags, b.env, b.home, func(path string) ([]byte, error) {
		data, ok := b.files[path]
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		}
		return []byte(data), nil
	})
}

func (b testBundle) mustLoad(t *testing.T) (*settings.Settings, []settings.Warning) {
	t.Helper()
	s, warnings, err := b.load()
	if err != nil {
		t.Fatal(err)
	}
	return s, warnings
}

// wantError holds that err says each of the words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error lacks %q: %v", w, err)
		}
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	s, warnings := testBundle{}.mustLoad(t)
	if len(warnings) != 0 {
		t.Errorf("warnings: %v", warnings)
	}
	for _, c := range []struct{ got, want any }{
		{s.General.CompressionMethod, "lz4"},
		{s.General.UploadConcurrency, 16},
		{s.General.TarSizeThreshold, settings.ByteSize(1<<30 - 1)},
		{s.General.TotalBGUploadedLimit, 32},
		{s.Postgres.AliveCheckInterval, time.Minute},
		{s.Postgres.StopBackupTimeout, time.Duration(0)},
		{s.Postgres.WALSize, 16},
		{s.Postgres.AppName, "wal-g"},
		{s.Postgres.SlotName, "walg"},
		{s.S3.SkipValidation, true},
		{s.S3.UploadConcurrency, 16},
		{s.Failover.CheckSize, settings.ByteSize(1 << 20)},
		{s.Walherd.Cluster, "default"},
		{s.Walherd.WALAck, "stored"},
		{s.Walherd.Window, settings.ByteSize(32 << 20)},
		{s.Walherd.WALPushTimeout, 5 * time.Minute},
		{s.Walherd.PartTimeout, 10 * time.Minute},
		{s.Walherd.AckWait, 30 * time.Second},
	} {
		if c.got != c.want {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
	if _, err := s.Later(); err != nil {
		t.Errorf("defaults are refused: %v", err)
	}
	if env := s.Environ(); len(env) != 0 {
		t.Errorf("defaults are exported: %v", env)
	}
}

// TestPrecedence goes through every set of the three sources.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	for set := range 8 {
		b := testBundle{flags: map[string]string{}, files: map[string]string{}}
		want, kind := 10, settings.FromDefault
		if set&1 != 0 {
			b.flags["config"] = "/c.yaml"
			b.files["/c.yaml"] = "WALG_DOWNLOAD_CONCURRENCY: 3\n"
			want, kind = 3, settings.FromFile
		}
		if set&2 != 0 {
			b.env = []string{"WALG_DOWNLOAD_CONCURRENCY=4"}
			want, kind = 4, settings.FromEnvironment
		}
		if set&4 != 0 {
			b.flags["walg-download-concurrency"] = "5"
			want, kind = 5, settings.FromFlag
		}
		s, _ := b.mustLoad(t)
		if got := s.General.DownloadConcurrency; got != want {
			t.Errorf("sources %03b: got %d, want %d", set, got, want)
		}
		if got := s.Origin("WALG_DOWNLOAD_CONCURRENCY").Kind; got != kind {
			t.Errorf("sources %03b: origin %v, want %v", set, got, kind)
		}
	}
}

func TestFormats(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"c.json": `{"walg_file_prefix": "/store", "WALG_UPLOAD_CONCURRENCY": 7, "WALG_TAR_DISABLE_FSYNC": true,
			"WALG_TAR_SIZE_THRESHOLD": "5mb", "WALG_ALIVE_CHECK_INTERVAL": "10s", "PGDATA": null}`,
		"c.yaml": "walg_file_prefix: /store\nWALG_UPLOAD_CONCURRENCY: 7\nWALG_TAR_DISABLE_FSYNC: true\n" +
			"WALG_TAR_SIZE_THRESHOLD: 5242880\nWALG_ALIVE_CHECK_INTERVAL: 10s\nPGDATA:\n",
		"c.YML": "base: &p /store\nWalg_File_Prefix: *p\nWALG_UPLOAD_CONCURRENCY: \"7\"\nWALG_TAR_DISABLE_FSYNC: 't'\n" +
			"WALG_TAR_SIZE_THRESHOLD: 5M\nWALG_ALIVE_CHECK_INTERVAL: 10s\n",
		"c.toml": "walg_file_prefix = \"/store\"\nWALG_UPLOAD_CONCURRENCY = 7\nWALG_TAR_DISABLE_FSYNC = true\n" +
			"WALG_TAR_SIZE_THRESHOLD = \"5120kb\"\nWALG_ALIVE_CHECK_INTERVAL = '10s'\n",
		"c.env": "# comment\nwalg_file_prefix=/store\nexport WALG_UPLOAD_CONCURRENCY=7\nWALG_TAR_DISABLE_FSYNC=1\n" +
			"WALG_TAR_SIZE_THRESHOLD=5242880\r\nWALG_ALIVE_CHECK_INTERVAL='10s'\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := testBundle{
				flags: map[string]string{"config": "/etc/" + name},
				files: map[string]string{"/etc/" + name: text},
			}.mustLoad(t)
			if s.File.Prefix != "/store" || s.General.UploadConcurrency != 7 || !s.General.TarDisableFsync ||
				s.General.TarSizeThreshold != 5<<20 || s.Postgres.AliveCheckInterval != 10*time.Second || s.Postgres.Data != "" {
				t.Errorf("got %+v", s)
			}
			if s.General.ConfigPath != "/etc/"+name {
				t.Errorf("ConfigPath %q", s.General.ConfigPath)
			}
		})
	}
}

func TestConfigFileErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, file, text string
		words            []string
	}{
		{"unknown format", "/c.ini", "", []string{"/c.ini", `".ini"`, ".yaml"}},
		{"no extension", "/c", "", []string{"/c", `""`}},
		{"json syntax", "/c.json", "{\n\"PGHOST\": \"a\",\n\"PGPORT\" 1}", []string{"/c.json", "line 3"}},
		{"json cut off", "/c.json", "{\n\"PGHOST\": \"a\",\n", []string{"/c.json", "line 2", "unexpected EOF"}},
		{"json list", "/c.json", "[]", []string{"/c.json", "line 1", "want an object"}},
		{"json empty", "/c.json", "", []string{"/c.json"}},
		{"json two", "/c.json", "{}\n{}", []string{"/c.json", "line 2"}},
		{"json nested", "/c.json", "{\n\"PGHOST\": {\"a\": 1}}", []string{"/c.json", "PGHOST", "line 2", "map or list"}},
		{"json type", "/c.json", "{\n\n\"walg_upload_concurrency\": \"many\"}", []string{"/c.json", "line 3", "WALG_UPLOAD_CONCURRENCY", "many", "number"}},
		{"yaml syntax", "/c.yaml", "PGHOST: a\n  PGPORT: b: c\n", []string{"/c.yaml", "line 2"}},
		{"yaml list", "/c.yaml", "- a\n", []string{"/c.yaml", "line 1", "want a map"}},
		{"yaml nested", "/c.yaml", "\nPGHOST: [a]\n", []string{"/c.yaml", "PGHOST", "line 2"}},
		{"yaml merge", "/c.yaml", "a: &a {PGHOST: b}\n<<: *a\n", []string{"line 2", "merge"}},
		{"yaml type", "/c.yml", "PGHOST: a\nWALG_ALIVE_CHECK_INTERVAL: 60\n", []string{"/c.yml line 2", "WALG_ALIVE_CHECK_INTERVAL", "30s"}},
		{"yaml bool", "/c.yaml", "WALG_DIRECT_IO: maybe\n", []string{"line 1", "WALG_DIRECT_IO", "true or false"}},
		{"yaml twice", "/c.yaml", "PGHOST: a\npghost: b\n", []string{"pghost (line 2)", "PGHOST (line 1)"}},
		{"toml syntax", "/c.toml", "PGHOST = \"a\"\nPGPORT = \n", []string{"/c.toml", "line 2"}},
		{"toml type", "/c.toml", "WALG_UPLOAD_QUEUE = 1.5\n", []string{"/c.toml", "WALG_UPLOAD_QUEUE", "1.5"}},
		{"toml date", "/c.toml", "PGHOST = 2020-01-01\n", []string{"/c.toml", "PGHOST"}},
		{"toml table", "/c.toml", "[PGHOST]\na = 1\n", []string{"/c.toml", "PGHOST"}},
		{"dotenv", "/c.env", "PGPASSWORD=sesame\n%\n", []string{"/c.env"}},
		{"size", "/c.yaml", "WALG_TAR_SIZE_THRESHOLD: 1 parsec\n", []string{"WALG_TAR_SIZE_THRESHOLD", "kb"}},
		{"size overflow", "/c.yaml", "WALG_TAR_SIZE_THRESHOLD: 9999999999gb\n", []string{"WALG_TAR_SIZE_THRESHOLD", "64 bits"}},
		{"failover text", "/c.yaml", "WALG_FAILOVER_STORAGES: b\n", []string{"WALG_FAILOVER_STORAGES", "map"}},
		{"nul", "/c.json", `{"PGHOST": "a\u0000b"}`, []string{"PGHOST", "/c.json"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := testBundle{flags: map[string]string{"config": c.file}, files: map[string]string{c.file: c.text}}.load()
			wantError(t, err, c.words...)
			if strings.Contains(err.Error(), "sesame") {
				t.Errorf("error shows a secret: %v", err)
			}
		})
	}
}

func TestConfigFileChoice(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"/flag.json":             `{"PGHOST": "flag"}`,
		"/env.json":              `{"PGHOST": "env"}`,
		"/home/p/.walg.json":     `{"PGHOST": "home"}`,
		"/home/two/.walg.toml":   ``,
		"/home/two/.walg.yaml":   ``,
		"/home/bare/.walg":       `{"PGHOST": "bare"}`,
		"/home/dotenv/.walg.env": `PGHOST=dotenv`,
	}
	env := []string{"WALG_CONFIG_PATH=/env.json"}
	for _, c := range []struct {
		name string
		b    testBundle
		want string
	}{
		{"flag first", testBundle{flags: map[string]string{"config": "/flag.json"}, env: env, home: "/home/p"}, "flag"},
		{"long flag", testBundle{flags: map[string]string{"walg-config-path": "/flag.json"}, env: env, home: "/home/p"}, "flag"},
		{"environment", testBundle{env: env, home: "/home/p"}, "env"},
		{"home", testBundle{home: "/home/p"}, "home"},
		{"empty variable", testBundle{env: []string{"WALG_CONFIG_PATH="}, home: "/home/p"}, "home"},
		{"dotenv", testBundle{home: "/home/dotenv"}, "dotenv"},
		{"no extension", testBundle{home: "/home/bare"}, ""},
		{"none", testBundle{home: "/home/none"}, ""},
		{"no home", testBundle{}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.b.files = files
			s, _ := c.b.mustLoad(t)
			if s.Postgres.Host != c.want {
				t.Errorf("read %q, want %q", s.Postgres.Host, c.want)
			}
		})
	}
	_, _, err := testBundle{home: "/home/two", files: files}.load()
	wantError(t, err, "/home/two/.walg.yaml and /home/two/.walg.toml", "--config")
	_, _, err = testBundle{flags: map[string]string{"config": "/gone.json"}}.load()
	wantError(t, err, "/gone.json", "--config")
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("cause is lost: %v", err)
	}
	_, _, err = testBundle{env: []string{"WALG_CONFIG_PATH=/gone.json"}}.load()
	wantError(t, err, "/gone.json", "WALG_CONFIG_PATH")
	_, _, err = settings.Load(nil, nil, "/home/locked", func(path string) ([]byte, error) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrPermission}
	})
	wantError(t, err, "/home/locked/.walg.json", "--config")
}

func TestValuesAreTrimmed(t *testing.T) {
	t.Parallel()
	s, _ := testBundle{env: []string{
		"WALG_FILE_PREFIX=/store\r\n", "WALG_UPLOAD_CONCURRENCY= 3 \n", "WALG_DISK_RATE_LIMIT=", "PGUSER=", "PGPASSWORD= x ",
	}}.mustLoad(t)
	if s.File.Prefix != "/store" || s.General.UploadConcurrency != 3 || s.General.DiskRateLimit != 0 {
		t.Errorf("got %q, %d, %d", s.File.Prefix, s.General.UploadConcurrency, s.General.DiskRateLimit)
	}
	if s.Postgres.Password != " x " {
		t.Errorf("blanks of a password are lost: %q", s.Postgres.Password)
	}
}

func TestAliases(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"WALHERD_NATS_URL", "NATS_URL"} {
		s, _ := testBundle{env: []string{name + "=nats://h"}}.mustLoad(t)
		if s.Walherd.NATSURL != "nats://h" {
			t.Errorf("%s is not read", name)
		}
	}
	for _, name := range []string{"S3_SSE", "WALG_S3_SSE", "WALE_S3_SSE"} {
		s, warnings := testBundle{env: []string{name + "=AES256"}}.mustLoad(t)
		if s.S3.SSE != "AES256" || len(warnings) != 0 {
			t.Errorf("%s: %q, %v", name, s.S3.SSE, warnings)
		}
		s, _ = testBundle{flags: map[string]string{strings.ToLower(strings.ReplaceAll(name, "_", "-")): "AES256"}}.mustLoad(t)
		if s.S3.SSE != "AES256" {
			t.Errorf("flag of %s is not read", name)
		}
	}
	// Bare before WALG_ before WALE_, and a disagreement is told.
	s, warnings := testBundle{env: []string{"WALE_S3_SSE=c", "WALG_S3_SSE=b", "S3_SSE=a"}}.mustLoad(t)
	if s.S3.SSE != "a" || len(warnings) != 2 {
		t.Errorf("got %q, %v", s.S3.SSE, warnings)
	}
	// A stronger source wins, whatever the form of the name.
	s, _ = testBundle{env: []string{"S3_SSE=env"}, flags: map[string]string{"wale-s3-sse": "flag"}}.mustLoad(t)
	if s.S3.SSE != "flag" {
		t.Errorf("got %q", s.S3.SSE)
	}
	s, _ = testBundle{env: []string{"UPLOAD_CONCURRENCY=4"}}.mustLoad(t)
	if s.S3.UploadConcurrency != 4 || s.General.UploadConcurrency != 16 {
		t.Errorf("got %d and %d", s.S3.UploadConcurrency, s.General.UploadConcurrency)
	}
}

func TestUnknownNamesWarn(t *testing.T) {
	t.Parallel()
	_, warnings := testBundle{
		env:   []string{"WALG_UPLOAD_CONCURENCY=1", "WALE_ZZZZZZZZZZZZ=1", "WALHERD_CLUSTR=x", "OTHER_UPLOAD=1", "ENVCONFIG_X=1"},
		flags: map[string]string{"config": "/c.yaml"},
		files: map[string]string{"/c.yaml": "WALG_FILE_PREFIX: /s\nPGHOTS: a\nWALG_CONFIG_PATH: /x\nnested: {a: 1}\n"},
	}.mustLoad(t)
	var text []string
	for _, w := range warnings {
		text = append(text, w.String())
	}
	want := []string{
		"PGHOTS: unknown key in /c.yaml (line 2); did you mean PGHOST?",
		"WALG_CONFIG_PATH: has no effect inside a config file (/c.yaml (line 3))",
		"nested: unknown key in /c.yaml (line 4)",
		"WALE_ZZZZZZZZZZZZ: unknown environment variable",
		"WALG_UPLOAD_CONCURENCY: unknown environment variable; did you mean WALG_UPLOAD_CONCURRENCY?",
		"WALHERD_CLUSTR: unknown environment variable; did you mean WALHERD_CLUSTER?",
	}
	if !slices.Equal(text, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(text, "\n"), strings.Join(want, "\n"))
	}
	_, _, err := testBundle{flags: map[string]string{"walg-nonsense": "1"}}.load()
	wantError(t, err, "--walg-nonsense")
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ kv, words string }{
		{"WALG_UPLOAD_CONCURRENCY=0", "expected to be positive"},
		{"WALG_UPLOAD_DISK_CONCURRENCY=-1", "expected to be positive"},
		{"WALG_TAR_SIZE_THRESHOLD=0", "expected to be positive"},
		{"WALG_LOG_LEVEL=debug", "NORMAL, DEVEL, ERROR"},
		{"WALG_COMPRESSION_METHOD=gzip", "lz4"},
		{"WALG_ZSTD_LEVEL=best", "WALG_COMPRESSION_METHOD=zstd"},
		{"WALG_PG_WAL_SIZE=17", "power of two"},
		{"WALG_PG_WAL_SIZE=2048", "at most 1024"},
		{"WALG_PG_WAL_SIZE=0", "expected to be positive"},
		{"WALG_PG_BLOCK_SIZE=9000", "power of two"},
		{"WALG_DELTA_ORIGIN=BOGUS", "LATEST_FULL"},
		{"WALG_UPLOAD_WAL_METADATA=WRONG", "INDIVIDUAL"},
		{"WALG_ALIVE_CHECK_INTERVAL=-1s", "at least 0s"},
		{"WALG_STOP_BACKUP_TIMEOUT=soon", "duration"},
		{"WALG_SLOTNAME=a-b", "letters"},
		{"WALG_SLOTNAME=" + strings.Repeat("a", 64), "1 to 63"},
		{"WALG_TARGET_STORAGE=b", "unknown storage"},
		{"WALHERD_CLUSTER=a.b", "letters"},
		{"WALHERD_CLUSTER=a\nb", "letters"},
		{"WALHERD_WAL_ACK=maybe", "stored, queued"},
		{"WALHERD_WORKER_SLOTS=0", "positive"},
		{"WALHERD_ACK_WAIT=1ms", "at least 1s"},
		{"WALHERD_WINDOW=1gb", "at most 67108864"},
		{"WALHERD_WINDOW=1", "at least 1048576"},
		{"WALHERD_REPLICAS=7", "at most 5"},
		{"WALHERD_REPLICAS=2", "1, 3 or 5"},
		{"PROFILE_SAMPLING_RATIO=1.5", "at most 1"},
		{"HTTP_EXPOSE_PPROF=true", "HTTP_LISTEN"},
		{"WALG_FAILOVER_STORAGES_CACHE_EMA_ALIVE_LIMIT=0.5", "below"},
	} {
		name, _, _ := strings.Cut(c.kv, "=")
		t.Run(c.kv, func(t *testing.T) {
			t.Parallel()
			_, _, err := testBundle{env: []string{c.kv}}.load()
			if name == "HTTP_EXPOSE_PPROF" {
				name = "HTTP_LISTEN"
			}
			wantError(t, err, name, c.words)
		})
	}
	// Everything wrong is told at once.
	_, _, err := testBundle{env: []string{"WALG_UPLOAD_CONCURRENCY=0", "WALHERD_REPLICAS=0"}}.load()
	wantError(t, err, "WALG_UPLOAD_CONCURRENCY", "WALHERD_REPLICAS")

	s, warnings := testBundle{env: []string{
		"WALG_ALIVE_CHECK_INTERVAL=0", "WALG_STOP_BACKUP_TIMEOUT=0", "WALG_DOWNLOAD_CONCURRENCY=0",
		"WALG_COMPRESSION_METHOD=zstd", "WALG_ZSTD_LEVEL=best", "WALG_TARGET_STORAGE=default", "WALG_SERIALIZER_TYPE=regular",
	}}.mustLoad(t)
	if s.Postgres.AliveCheckInterval != 0 || s.General.DownloadConcurrency != 1 || len(warnings) != 2 {
		t.Errorf("got %v, %d, %v", s.Postgres.AliveCheckInterval, s.General.DownloadConcurrency, warnings)
	}
}

func TestValidateBackup(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		env   []string
		words string
	}{
		{[]string{"WALG_WITHOUT_FILES_METADATA=1", "WALG_USE_RATING_COMPOSER=1"}, "RATING"},
		{[]string{"WALG_WITHOUT_FILES_METADATA=1", "WALG_USE_COPY_COMPOSER=1"}, "COPY"},
		{[]string{"WALG_WITHOUT_FILES_METADATA=1", "WALG_USE_DATABASE_COMPOSER=1"}, "DATABASE"},
		{[]string{"WALG_WITHOUT_FILES_METADATA=1", "WALG_DELTA_MAX_STEPS=1"}, ""}, // it is full
		{[]string{"WALG_WITHOUT_FILES_METADATA=1", "WALG_DELTA_FROM_USER_DATA=1"}, "FROM_USER_DATA"},
		{[]string{"WALG_WITHOUT_FILES_METADATA=1", "WALG_DELTA_FROM_NAME=x"}, "FROM_NAME"},
		{[]string{"WALG_DELTA_FROM_USER_DATA=1", "WALG_DELTA_FROM_NAME=x"}, "exclude"},
		{[]string{"WALG_SENTINEL_USER_DATA=nightly"}, "JSON"},
		{[]string{`WALG_SENTINEL_USER_DATA="nightly"`, "WALG_DELTA_MAX_STEPS=3"}, ""},
		{[]string{"WALG_WITHOUT_FILES_METADATA=1"}, ""},
	} {
		// Load itself must not fail: archiving goes on.
		s, _ := testBundle{env: c.env}.mustLoad(t)
		if err := s.ValidateBackup(); c.words != "" {
			wantError(t, err, c.words)
		} else if err != nil {
			t.Errorf("%v: %v", c.env, err)
		}
	}
}

func TestStorage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		env  []string
		want settings.Storage
	}{
		{[]string{"WALG_FILE_PREFIX=/a/b"}, settings.Storage{Kind: settings.KindFile, Location: "/a/b"}},
		{[]string{"WALE_FILE_PREFIX=file://localhost/a"}, settings.Storage{Kind: settings.KindFile, Location: "/a"}},
		{[]string{"WALG_FILE_PREFIX=file:///a", "WALG_STORAGE_PREFIX=/x/y/"}, settings.Storage{Kind: settings.KindFile, Location: "/a", Prefix: "x/y"}},
	} {
		s, _ := testBundle{env: c.env}.mustLoad(t)
		got, err := s.Storage()
		if err != nil || got != c.want {
			t.Errorf("%v: got %+v, %v", c.env, got, err)
		}
	}
	s, _ := testBundle{env: []string{"WALG_FILE_PREFIX=/s", "WALG_SSH_PREFIX=ssh://h/p", "WALE_S3_PREFIX=s3://bucket/p", "WALG_S3_PREFIX=s3://bucket/p"}}.mustLoad(t)
	if got := fmt.Sprint(s.Unused()); !strings.Contains(got, "WALG_FILE_PREFIX: is not used, because WALG_S3_PREFIX") || strings.Count(got, "is not used") != 2 {
		t.Errorf("warnings of three storages: %s", got)
	}
	s, _ = testBundle{}.mustLoad(t)
	if got := s.Unused(); len(got) != 0 {
		t.Errorf("warnings of none: %v", got)
	}
	_, err := s.Storage()
	if !errors.Is(err, settings.ErrNoStorage) {
		t.Errorf("got %v", err)
	}
	wantError(t, err, "failed to find any configured storage", "WALG_FILE_PREFIX")
	s, _ = testBundle{env: []string{"WALG_FILE_PREFIX=file://localhost"}}.mustLoad(t)
	_, err = s.Storage()
	wantError(t, err, "WALG_FILE_PREFIX", "no directory")
}

// TestRefused: nothing is stored while a setting asks for what walherd does
// not do yet, under whatever name and from whatever source.
func TestRefused(t *testing.T) {
	t.Parallel()
	refused := 0
	for _, f := range settings.Fields() {
		if !f.Refused {
			continue
		}
		refused++
		value := "x"
		switch {
		case f.LaterIf != nil:
			value = f.LaterIf[0]
		case f.Enum != nil:
			value = f.Enum[len(f.Enum)-1]
		case f.Type == "duration":
			value = "1h"
		case f.Type == "map":
			value = `{"B": {"WALG_FILE_PREFIX": "/b"}}`
		}
		for _, name := range append([]string{f.Setting}, f.Aliases...) {
			flag := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
			for _, b := range []testBundle{
				{env: []string{name + "=" + value}},
				{flags: map[string]string{flag: value}},
				{home: "/h", files: map[string]string{"/h/.walg.toml": fmt.Sprintf("%s = %q", name, value)}},
			} {
				b.env = append(b.env, "WALG_FILE_PREFIX=/a")
				s, _ := b.mustLoad(t)
				if _, err := s.Storage(); err == nil {
					t.Errorf("%s=%s is not refused", name, value)
				} else if !strings.Contains(err.Error(), f.Setting) {
					t.Errorf("%s: error does not name the setting: %v", name, err)
				} else if f.Secret && strings.Contains(err.Error(), "= x") {
					t.Errorf("%s: error shows the value: %v", name, err)
				}
			}
		}
	}
	if refused == 0 {
		t.Error("no setting is refused: WALG_OSS_PREFIX names a storage that this build has not")
	}
	// The default, written out, changes nothing.
	s, _ := testBundle{env: []string{"WALG_FILE_PREFIX=/a", "WALG_COMPRESSION_METHOD=zstd", "WALHERD_WAL_ACK=stored",
		"WALG_LIBSODIUM_KEY_TRANSFORM=none", "WALG_ENVELOPE_CACHE_EXPIRATION=0h", "AWS_REGION=eu", "AWS_SECRET_ACCESS_KEY=k"}}.mustLoad(t)
	if _, err := s.Storage(); err != nil {
		t.Error(err)
	}
}

func TestLaterWarns(t *testing.T) {
	t.Parallel()
	s, _ := testBundle{env: []string{"WALG_DELTA_MAX_STEPS=3", "WALG_USE_WAL_DELTA=true", "WALG_PREFETCH_DIR=/p", "WALG_USE_RATING_COMPOSER=true",
		"WALG_USE_COPY_COMPOSER=false", "WALG_DELTA_ORIGIN=LATEST", "WALG_UPLOAD_WAL_METADATA=NOMETADATA",
		"WALG_DIRECT_IO=true", "WALG_DAEMON_WAL_UPLOAD_TIMEOUT=1m", "WALG_FAILOVER_STORAGES_CHECK_SIZE=1024kb", "AWS_REGION=eu"}}.mustLoad(t)
	warnings, err := s.Later()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, w := range warnings {
		names = append(names, w.Setting)
	}
	want := []string{"WALG_DIRECT_IO"}
	if !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
}

func TestFailoverStorages(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"/c.yaml": "WALG_FAILOVER_STORAGES:\n  Storage_B:\n    walg_file_prefix: /b\n    SSH_PORT: 23\n",
		"/c.toml": "[WALG_FAILOVER_STORAGES.Storage_B]\nwalg_file_prefix = \"/b\"\nSSH_PORT = 23\n",
		"/c.json": `{"WALG_FAILOVER_STORAGES": {"Storage_B": {"walg_file_prefix": "/b", "SSH_PORT": 23}}}`,
	} {
		b := testBundle{flags: map[string]string{"config": name, "walg-target-storage": "storage_b"}, files: map[string]string{name: text}}
		s, _ := b.mustLoad(t)
		want := settings.StorageMap{"Storage_B": {"WALG_FILE_PREFIX": "/b", "SSH_PORT": "23"}}
		if !reflect.DeepEqual(s.Failover.Storages, want) {
			t.Errorf("%s: got %v", name, s.Failover.Storages)
		}
		if env := strings.Join(s.Environ(), " "); strings.Contains(env, "FAILOVER") {
			t.Errorf("nested settings are exported: %s", env)
		}
	}
	_, _, err := testBundle{home: "/h", files: map[string]string{"/h/.walg.yaml": "WALG_FAILOVER_STORAGES: {default: {PGHOST: a}}"}}.load()
	wantError(t, err, "WALG_FAILOVER_STORAGES", `"default"`)
	_, _, err = testBundle{home: "/h", files: map[string]string{"/h/.walg.yaml": "WALG_FAILOVER_STORAGES: {B: {}, b: {}}"}}.load()
	wantError(t, err, "WALG_FAILOVER_STORAGES", "twice")

	s, _ := testBundle{home: "/h", files: map[string]string{"/h/.walg.yaml": "WALG_STATSD_EXTRA_TAGS: {host: a, n: 1}"}}.mustLoad(t)
	if !reflect.DeepEqual(s.Monitoring.StatsdExtraTags, settings.TagMap{"host": "a", "n": "1"}) {
		t.Errorf("got %v", s.Monitoring.StatsdExtraTags)
	}
}

func TestEnviron(t *testing.T) {
	t.Parallel()
	s, _ := testBundle{
		flags: map[string]string{"pghost": "flag"},
		env:   []string{"PGHOST=env", "PGUSER=env", "AWS_ACCESS_KEY=alias"},
		home:  "/h", files: map[string]string{"/h/.walg.json": `{"pgport": 5433, "PGUSER": "file"}`},
	}.mustLoad(t)
	want := []string{"PGHOST=flag", "PGPORT=5433", "AWS_ACCESS_KEY_ID=alias"}
	if got := s.Environ(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestEffectiveHidesSecrets(t *testing.T) {
	t.Parallel()
	env := []string{"NATS_URL=nats://bob:sesame@a:4222,tls://sesame@b,c:4222", "OTEL_EXPORTER_OTLP_ENDPOINT=http://u:sesame@o/v1"}
	for _, f := range settings.Fields() {
		if f.Secret && f.Type == "text" {
			env = append(env, f.Setting+"=sesame")
		}
	}
	s, _ := testBundle{env: env}.mustLoad(t)
	seen := map[string]string{}
	for _, v := range s.Effective() {
		if strings.Contains(v.Text, "sesame") {
			t.Errorf("%s shows its secret: %s", v.Setting, v.Text)
		}
		seen[v.Setting] = v.Text
	}
	if got, want := seen["WALHERD_NATS_URL"], "nats://***@a:4222,tls://***@b,c:4222"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if seen["WALG_COMPRESSION_METHOD"] != "lz4" || seen["PGPASSWORD"] != "***" {
		t.Errorf("got %v", seen)
	}
}

// TestFieldTags holds what the tags of every field must be.
func TestFieldTags(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, f := range settings.Fields() {
		if f.Setting == "" || f.Desc == "" || f.Group == "" {
			t.Errorf("incomplete field: %+v", f)
		}
		if strings.HasSuffix(f.Desc, ".") || strings.Contains(f.Desc, "\n") {
			t.Errorf("%s: the description is a clause without a full stop: %q", f.Setting, f.Desc)
		}
		// decode relies on it.
		if f.Default == "" && f.Type != "text" && f.Type != "map" {
			t.Errorf("%s: a %s needs a default", f.Setting, f.Type)
		}
		if (f.Min != "" || f.Max != "") && f.Type != "number" && f.Type != "size" && f.Type != "duration" {
			t.Errorf("%s: a %s has no bounds", f.Setting, f.Type)
		}
		if f.Refused && f.Later == "" {
			t.Errorf("%s is refused for no feature", f.Setting)
		}
		for _, name := range append([]string{f.Setting}, f.Aliases...) {
			if name != strings.ToUpper(name) {
				t.Errorf("%s is not upper case", name)
			}
			if other, twice := seen[name]; twice {
				t.Errorf("%s names %s and %s", name, other, f.Setting)
			}
			seen[name] = f.Setting
		}
		for _, word := range []string{"PASSWORD", "SECRET", "TOKEN", "PASSPHRASE"} {
			if strings.Contains(f.Setting, word) && !f.Secret && f.Setting != "S3_USE_YC_SESSION_TOKEN" && f.Setting != "AWS_WEB_IDENTITY_TOKEN_FILE" {
				t.Errorf("%s looks like a secret and is not tagged", f.Setting)
			}
		}
	}
}

// TestEverySettingIsRead gives every setting some value by its flag and holds
// that it arrives: a tag that envconfig does not see would stay silent.
func TestEverySettingIsRead(t *testing.T) {
	t.Parallel()
	for _, f := range settings.Fields() {
		if f.Setting == "WALG_CONFIG_PATH" {
			continue
		}
		value := ""
		switch {
		case f.Enum != nil:
			value = f.Enum[len(f.Enum)-1]
		case f.Type == "yes/no":
			value = "true"
			if f.Default == "true" {
				value = "false"
			}
		case f.Type == "duration":
			value = "77s"
		case f.Type == "map":
			value = `{"a": {"b": "c"}}`
		case f.Max == "1":
			value = "0.9"
		case strings.HasPrefix(f.Setting, "WALG_PG_"):
			value = "1024"
		case f.Type == "size":
			value = "7mb"
			if n, err := strconv.ParseInt(f.Min, 10, 64); err == nil && n > 7<<20 {
				value = "700mb"
			}
		case f.Type == "number":
			value = "3"
		default:
			value = "v"
		}
		b := testBundle{flags: map[string]string{f.Flag(): value}}
		base := testBundle{flags: map[string]string{}}
		if f.Setting == "WALG_TARGET_STORAGE" {
			b.flags[f.Flag()] = "default"
		}
		for _, extra := range []testBundle{b, base} {
			if f.Setting == "WALG_ZSTD_LEVEL" {
				extra.flags["walg-compression-method"] = "zstd"
			}
			if strings.HasPrefix(f.Setting, "HTTP_EXPOSE") {
				extra.flags["http-listen"] = ":1"
			}
		}
		got, _ := b.mustLoad(t)
		want, _ := base.mustLoad(t)
		if reflect.DeepEqual(stripped(got), stripped(want)) {
			t.Errorf("%s=%s changes nothing", f.Setting, value)
		}
	}
}

// stripped is the exported groups of s.
func stripped(s *settings.Settings) []any {
	return []any{s.General, s.Walherd, s.Postgres, s.Encryption, s.File, s.S3, s.Stores, s.Failover, s.Monitoring}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	var md, flags bytes.Buffer
	if err := errors.Join(settings.Describe(&md), settings.DescribeFlags(&flags)); err != nil {
		t.Fatal(err)
	}
	for _, f := range settings.Fields() {
		i := strings.Index(md.String(), "| `"+f.Setting+"` |")
		if i < 0 {
			t.Errorf("%s is not in the tables", f.Setting)
			continue
		}
		line, _, _ := strings.Cut(md.String()[i:], "\n")
		for _, part := range append([]string{f.Default, strings.ReplaceAll(f.Desc, "|", `\|`), f.Later}, f.Aliases...) {
			if !strings.Contains(line, part) {
				t.Errorf("row of %s lacks %q: %s", f.Setting, part, line)
			}
		}
		if !strings.Contains(flags.String(), "  --"+f.Flag()+" (") {
			t.Errorf("--%s is not listed", f.Flag())
		}
	}
	for _, line := range strings.Split(md.String(), "\n") {
		if n := strings.Count(strings.ReplaceAll(line, `\|`, ""), "|"); strings.HasPrefix(line, "|") && n != 5 {
			t.Errorf("row has %d bars: %s", n, line)
		}
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	fs := pflag.NewFlagSet("walherd", pflag.ContinueOnError)
	config := fs.String("config", "", "config file")
	own := fs.Int("http-listen", 0, "a command's own flag of that name")
	fs.Bool("json", false, "")
	settings.RegisterFlags(fs)
	if err := fs.Parse([]string{"--config=/c.json", "--walg-file-prefix", "/s", "--wale-s3-sse=x", "--json", "--pghost="}); err != nil {
		t.Fatal(err)
	}
	if *config != "/c.json" || *own != 0 {
		t.Errorf("own flags are lost: %q, %d", *config, *own)
	}
	want := map[string]string{"config": "/c.json", "walg-file-prefix": "/s", "wale-s3-sse": "x", "pghost": ""}
	if got := settings.FlagValues(fs); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if usage := fs.FlagUsages(); strings.Contains(usage, "walg-file-prefix") {
		t.Errorf("flags are not hidden:\n%s", usage)
	}
	if f := fs.Lookup("walg-pgp-key"); f == nil || f.Value.Type() != "string" {
		t.Errorf("got %+v", f)
	}
}

// TestLoadIsPure: what the process environment holds does not matter.
func TestLoadIsPure(t *testing.T) {
	t.Setenv("WALG_UPLOAD_CONCURRENCY", "99")
	t.Setenv("WALG_DIRECT_IO", "nonsense")
	t.Setenv("WALG_FILE_PREFIX", "/other")
	t.Setenv("WALG_FAILOVER_STORAGES", "{}")
	before := os.Environ()
	s, warnings := testBundle{env: []string{"WALG_DISK_RATE_LIMIT=5"}}.mustLoad(t)
	if s.General.UploadConcurrency != 16 || s.General.DirectIO || s.File.Prefix != "" || s.General.DiskRateLimit != 5 || len(warnings) != 0 {
		t.Errorf("got %+v, %v", s.General, warnings)
	}
	if after := os.Environ(); !slices.Equal(before, after) {
		t.Errorf("environment changed: %v", after)
	}
}

// TestLoadConcurrently: parallel calls do not see one another's values.
func TestLoadConcurrently(t *testing.T) {
	t.Parallel()
	for i := 1; i <= 32; i++ {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			for range 20 {
				s, _ := testBundle{env: []string{fmt.Sprintf("WALG_UPLOAD_QUEUE=%d", i)}}.mustLoad(t)
				if s.General.UploadQueue != i {
					t.Fatalf("got %d, want %d", s.General.UploadQueue, i)
				}
			}
		})
	}
}

// TestLoadProcess runs in a process of its own, since LoadProcess changes the
// environment.
func TestLoadProcess(t *testing.T) {
	t.Parallel()
	if os.Getenv("SETTINGS_TEST_CHILD") != "" {
		s, warnings, err := settings.LoadProcess(map[string]string{"pghost": "flag"})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Printf("%s|%s|%s|%s|%d\n", os.Getenv("PGHOST"), os.Getenv("PGPORT"), os.Getenv("PGUSER"), s.Postgres.AppName, len(warnings))
		os.Exit(0)
	}
	config := filepath.Join(t.TempDir(), "c.json")
	if err := os.WriteFile(config, []byte(`{"PGHOST": "file", "PGPORT": 5433, "PGUSER": "file"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestLoadProcess$")
	child.Env = []string{"SETTINGS_TEST_CHILD=1", "WALG_CONFIG_PATH=" + config, "PGUSER=env"}
	out, err := child.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, want := string(out), "flag|5433|env|wal-g|0\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestByteSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]settings.ByteSize{
		"0": 0, "17": 17, "17b": 17, "1k": 1024, "1KB": 1024, "3 mb": 3 << 20, "2G": 2 << 30, "-1": -1,
	} {
		var got settings.ByteSize
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "kb", "1tb", "1kk", "1.5mb", "0x10", "1 2", "9223372036854775808", "8589934592gb"} {
		var got settings.ByteSize
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<32).Draw(t, "n")
		unit := rapid.SampledFrom([]string{"", "kb", "mb", "gb"}).Draw(t, "unit")
		var got settings.ByteSize
		if err := got.UnmarshalText(fmt.Appendf(nil, "%d%s", n, unit)); err != nil {
			t.Fatal(err)
		}
		shift := map[string]int{"": 0, "kb": 10, "mb": 20, "gb": 30}[unit]
		if int64(got)>>shift != n {
			t.Fatalf("%d%s is %d", n, unit, got)
		}
	})
}

// FuzzConfigFile: no file crashes the reader, and no error of a file that does
// not parse shows what the file holds.
func FuzzConfigFile(f *testing.F) {
	f.Add("json", `{"PGPASSWORD": "sesame", "PGPORT": 1}`)
	f.Add("yaml", "PGPASSWORD: sesame\nPGPORT: [1\n")
	f.Add("toml", "PGPASSWORD = \"sesame\"\n[a]\nb = 1979-05-27\n")
	f.Add("env", "PGPASSWORD=sesame\n\"\n")
	f.Add("yaml", "? [a]\n: b\n")
	f.Add("yaml", "a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, ext, text string) {
		path := "/c." + ext
		s, _, err := testBundle{flags: map[string]string{"config": path}, files: map[string]string{path: text}}.load()
		if err == nil && s == nil {
			t.Fatal("neither settings nor error")
		}
		if err != nil && s == nil && strings.Contains(text, "PASSWORD=sesame") && strings.Contains(err.Error(), "sesame") {
			t.Fatalf("secret in %v", err)
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	env := []string{"WALG_FILE_PREFIX=/a", "PGHOST=/var/run/postgresql", "PATH=/bin", "HOME=/root"}
	files := map[string]string{"/h/.walg.json": `{"WALG_COMPRESSION_METHOD": "zstd", "WALG_UPLOAD_CONCURRENCY": 4, "PGDATA": "/d"}`}
	for b.Loop() {
		if _, _, err := (testBundle{env: env, home: "/h", files: files}).load(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRegisterFlags(b *testing.B) {
	for b.Loop() {
		settings.RegisterFlags(pflag.NewFlagSet("", pflag.ContinueOnError))
	}
}
