package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// folder makes a directory that the server's user owns.
func folder(t testing.TB, c *pgtest.Cluster, name string) string {
	t.Helper()
	dir := filepath.Join(pgtest.TempDir(t), name)
	c.Run("/bin/mkdir", "-p", dir)
	return dir
}

// config writes a config file and returns its path.
func config(t testing.TB, values map[string]any) string {
	t.Helper()
	text, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(pgtest.TempDir(t), "config.json")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// toolBench is a storage without a server, for tools that need none.
func toolBench(t testing.TB, env ...string) *bench {
	t.Helper()
	b := &bench{t: t, program: program(t), env: env}
	b.c = pgtest.New(t, pgtest.Stopped()) // for its user and environment only
	b.storage = folder(t, b.c, "storage")
	return b
}

// store puts a file into the storage past the program.
func (b *bench) store(name, content string) {
	b.t.Helper()
	path := filepath.Join(b.storage, name)
	b.c.Run("/bin/mkdir", "-p", filepath.Dir(path))
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) stored(name string) string {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.storage, name))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

// fails runs a command that has to exit with 1 and say text.
func (b *bench) fails(text string, args ...string) {
	b.t.Helper()
	if r := b.run(nil, args...); r.code != 1 || !strings.Contains(r.stderr, text) {
		b.t.Errorf("walherd %v: want exit code 1 and %q: %+v", args, text, r)
	}
}

// rows are the kinds, sizes and names of a listing.
func rows(out string) []string {
	var got []string
	for i, line := range strings.Split(strings.TrimSuffix(out, "\n"), "\n") {
		f := strings.Fields(line)
		if i == 0 || len(f) < 3 {
			got = append(got, strings.TrimSpace(line))
			continue
		}
		got = append(got, f[0]+" "+f[1]+" "+f[len(f)-1])
	}
	return got
}

const listHead = "type size last modified name"

func wantRows(t testing.TB, out string, want ...string) {
	t.Helper()
	got := rows(out)
	got[0] = strings.Join(strings.Fields(got[0]), " ")
	if want = append([]string{listHead}, want...); !slices.Equal(got, want) {
		t.Errorf("listed\n%q, want\n%q", got, want)
	}
}

func TestStorageToolsLook(t *testing.T) {
	t.Parallel()
	b := toolBench(t)
	b.store("a/b/c", "abc")
	b.store("a/d", "de")
	b.store("x", "")
	wantRows(t, b.must("st", "ls"), "dir 0 a/", "obj 0 x")
	wantRows(t, b.must("st", "ls", "/"), "dir 0 a/", "obj 0 x")
	wantRows(t, b.must("st", "ls", "a"), "dir 0 b/", "obj 2 d")
	wantRows(t, b.must("st", "ls", "a/", "-r"), "obj 3 b/c", "obj 2 d")
	wantRows(t, b.must("st", "ls", "none"))
	if entries, err := os.ReadDir(b.storage); err != nil || len(entries) != 2 {
		t.Errorf("a listing made something: %v, %v", entries, err)
	}
	if out := b.must("st", "ls", "-g", "a/[a-c]"); !strings.HasPrefix(out, "a/b/:\n") || !strings.Contains(out, " c\n") {
		t.Errorf("matching folders: %q", out)
	}
	wantRows(t, b.must("st", "ls", "-g", "*/d*"), "obj 2 a/d")
	wantRows(t, b.must("st", "stat", "a/d"), "obj 2 a/d")
	b.fails("does not exist", "st", "stat", "a")
	b.fails("does not exist", "st", "stat", "none")
	b.fails("--glob", "st", "stat", "-g", "a/*")
	b.fails("not supported", "st", "ls", "--all-versions")
	if out := b.must("st", "cat", "a/b/c"); out != "abc" {
		t.Errorf("cat: %q", out)
	}
	if out := b.must("st", "cat", "-g", "*/?"); out != "de" {
		t.Errorf("cat of what matches: %q", out)
	}
	b.fails("pattern", "st", "cat", "-g", "a/[")
	b.fails("no key", "st", "cat", "--decrypt", "x")
	for _, name := range []string{"../x", "a/../../x", "a//b", "."} {
		for _, cmd := range [][]string{{"st", "cat", name}, {"st", "stat", name}, {"st", "ls", name}, {"st", "rm", name}, {"st", "get", name, b.storage}, {"st", "check", "read", name}} {
			b.fails("invalid object name", cmd...)
		}
	}
	if r := b.run(nil, "st", "check", "read", "a/d", "x"); r.code != 0 || !strings.Contains(r.stderr, "Read check OK") {
		t.Errorf("check read: %+v", r)
	}
	b.fails("none", "st", "check", "read", "a/d", "none")
	before := b.objects()
	if r := b.run(nil, "st", "check", "write"); r.code != 0 || !strings.Contains(r.stderr, "Write check OK") {
		t.Errorf("check write: %+v", r)
	}
	if got := b.objects(); !slices.Equal(got, before) {
		t.Errorf("check write left %q", got)
	}
	b.fails("unknown storage", "st", "ls", "-t", "elsewhere")
	b.fails("unknown command", "st", "nonsense")
}

func TestStorageToolsPutAndGet(t *testing.T) {
	t.Parallel()
	key := strings.Repeat("5a", 32)
	b := toolBench(t, "WALG_LIBSODIUM_KEY="+key, "WALG_LIBSODIUM_KEY_TRANSFORM=hex", "WALG_COMPRESSION_METHOD=zstd")
	dir := folder(t, b.c, "files")
	text := strings.Repeat("some text ", 100_000)
	local := filepath.Join(dir, "local")
	if err := os.WriteFile(local, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	b.must("st", "put", local, "d/both")
	if got := b.stored("d/both.zst"); strings.Contains(got, "some text") || len(got) > len(text)/10 {
		t.Errorf("stored %d bytes, in plain or not compressed", len(got))
	}
	b.fails("already exists", "st", "put", local, "d/both")
	b.must("st", "put", "-f", local, "d/both")
	get := func(want string, args ...string) {
		t.Helper()
		to := args[len(args)-1]
		b.must(append([]string{"st", "get"}, args...)...)
		data, err := os.ReadFile(to)
		if err != nil || string(data) != want {
			t.Errorf("get %v: %d bytes, %v", args, len(data), err)
		}
		if info, err := os.Stat(to); err != nil || info.Mode().Perm()&^0o640 != 0 {
			t.Errorf("get %v: mode %v, %v", args, info.Mode(), err)
		}
	}
	get(text, "d/both.zst", filepath.Join(dir, "1"))
	get(b.stored("d/both.zst"), "--no-decrypt", "--no-decompress", "d/both.zst", filepath.Join(dir, "2"))
	b.fails("must not exist", "st", "get", "d/both.zst", filepath.Join(dir, "1"))
	b.must("st", "get", "d/both.zst", dir)
	if data, err := os.ReadFile(filepath.Join(dir, "both")); err != nil || string(data) != text {
		t.Errorf("into a directory: %v", err)
	}
	if out := b.must("st", "cat", "--decrypt", "--decompress", "d/both.zst"); out != text {
		t.Errorf("cat: %d bytes", len(out))
	}

	// The test for an existing object looks at the name that is written.
	b.must("st", "put", "--no-compress", "--no-encrypt", local, "d/both")
	if b.stored("d/both") != text {
		t.Error("not stored as it is")
	}
	b.fails("already exists", "st", "put", "--no-compress", local, "d/both")
	get(text, "--no-decrypt", "d/both", filepath.Join(dir, "3"))
	b.fails("--no-encrypt", "st", "put", "--no-compress", local, "basebackups_005/x.json")
	b.must("st", "put", "--no-compress", "--no-encrypt", local, "basebackups_005/x.json")
	get(text, "basebackups_005/x.json", filepath.Join(dir, "4"))
	b.fails("invalid object name", "st", "put", local, "../out")

	// What comes over a pipe, and a pipe that never began.
	cmd := b.command(t.Context(), nil, "st", "put", "-s", "piped")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("put -s: %v\n%s", err, out)
	}
	get(text, "piped.zst", filepath.Join(dir, "5"))
	waiting := b.command(t.Context(), nil, "--walg-log-level", "DEVEL", "st", "put", "-s", "never")
	stdin, err := waiting.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	// The pipe's buffer holds less: the rest is taken once it is being read.
	if _, err := stdin.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := waiting.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := waiting.Wait(); err == nil || slices.Contains(b.objects(), "never.zst") {
		t.Errorf("interrupted: %v, %q", err, b.objects())
	}
	b.fails("give a local path", "st", "put", "piped")

	// Damage is no file at all.
	object := filepath.Join(b.storage, "piped.zst")
	data := []byte(b.stored("piped.zst"))
	for name, damaged := range map[string][]byte{"cut": data[:len(data)-1], "altered": append(bytes.Clone(data[:len(data)-1]), data[len(data)-1]^1)} {
		if err := os.WriteFile(object, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		b.fails("piped.zst", "st", "get", "piped.zst", filepath.Join(dir, name))
		b.fails("piped.zst", "st", "cat", "--decrypt", "--decompress", "piped.zst")
		b.fails("piped.zst", "st", "cat", "--decrypt", "--decompress", "-t", "all", "piped.zst")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 7 { // local, both, 1 to 5
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	b.fails("--target all", "st", "get", "-t", "all", "piped.zst", filepath.Join(dir, "6"))
}

func TestStorageToolsRemove(t *testing.T) {
	t.Parallel()
	b := toolBench(t)
	for _, name := range []string{"a/1", "a/2", "a/sub/3", "ab", "c/1", "c/2", "d"} {
		b.store(name, name)
	}
	left := func(want ...string) {
		t.Helper()
		if got := b.objects(); !slices.Equal(got, want) {
			t.Errorf("left %q, want %q", got, want)
		}
	}
	b.fails("does not exist", "st", "rm", "d/")
	b.fails("does not exist", "st", "rm", "a/s")
	b.fails("whole storage", "st", "rm", "/")
	b.fails("not supported", "st", "rm", "--version-id", "1", "d")
	b.fails("version-id", "st", "rm", "--version-id", "1", "--all-versions", "d")
	left("a/1", "a/2", "a/sub/3", "ab", "c/1", "c/2", "d")
	b.must("st", "rm", "d")
	b.must("st", "rm", "a/1")
	left("a/2", "a/sub/3", "ab", "c/1", "c/2")
	b.must("st", "rm", "a")
	left("ab", "c/1", "c/2")
	b.must("st", "rm", "-g", "c/[2-9]")
	left("ab", "c/1")
	b.must("st", "rm", "-g", "nothing*")
	b.must("st", "rm", "c/")
	left("ab")
}

func TestStorageToolsCopy(t *testing.T) {
	t.Parallel()
	b := toolBench(t, "WALG_LIBSODIUM_KEY=not-this-one")
	other := folder(t, b.c, "other")
	keyed := func(dir, digit string) map[string]any {
		return map[string]any{"WALG_FILE_PREFIX": dir, "WALG_LIBSODIUM_KEY": strings.Repeat(digit, 64), "WALG_LIBSODIUM_KEY_TRANSFORM": "hex"}
	}
	from, to := config(t, keyed(b.storage, "1")), config(t, keyed(other, "2"))
	local := filepath.Join(filepath.Dir(from), "local")
	if err := os.WriteFile(local, []byte("secret text"), 0o644); err != nil {
		t.Fatal(err)
	}
	plain := &bench{t: t, program: b.program, c: b.c, storage: b.storage}
	plain.must("--config", from, "st", "put", local, "wal_005/x")
	plain.store("wal_005/x.json", "{}")
	plain.store("z", "z")
	b.must("st", "copy", "--from", from, "--to", to, "-p", "wal_", "-d", "-e")
	target := &bench{t: t, program: b.program, c: b.c, storage: other}
	if got := target.objects(); !slices.Equal(got, []string{"wal_005/x.json", "wal_005/x.lz4"}) {
		t.Errorf("copied %q", got)
	}
	if target.stored("wal_005/x.json") != "{}" {
		t.Error("the document was changed")
	}
	if out := target.must("--config", to, "st", "cat", "--decrypt", "--decompress", "wal_005/x.lz4"); out != "secret text" {
		t.Errorf("with the target's key: %q", out)
	}
	target.fails("wal_005/x.lz4", "--config", from, "--walg-file-prefix", other, "st", "cat", "--decrypt", "wal_005/x.lz4")
	b.must("st", "copy", "--from", from, "--to", to)
	if target.stored("wal_005/x.lz4") != plain.stored("wal_005/x.lz4") || target.stored("z") != "z" {
		t.Error("not copied byte for byte")
	}
	b.must("st", "copy", "--from", from, "--to", to, "-p", "nothing")
	b.fails("same storage", "st", "copy", "--from", from, "--to", from)
	b.fails("--from and --to", "st", "copy", "--from", from)
	bare := config(t, map[string]any{"WALG_FILE_PREFIX": other})
	plain.fails("--encrypt-source", "st", "copy", "--from", from, "--to", bare, "-e")
	// The environment says where this process works, not the config files.
	empty := config(t, map[string]any{"WALG_COMPRESSION_METHOD": "lz4"})
	plain.fails("target", "st", "copy", "--from", from, "--to", empty)
}

func TestStorageToolsTransfer(t *testing.T) {
	t.Parallel()
	b := toolBench(t)
	second := folder(t, b.c, "second")
	both := config(t, map[string]any{"WALG_FILE_PREFIX": b.storage, "WALG_FAILOVER_STORAGES": map[string]any{"Second": map[string]string{"WALG_FILE_PREFIX": second}}})
	target := &bench{t: t, program: b.program, c: b.c, storage: second}
	st := func(args ...string) []string { return append([]string{"--config", both, "st"}, args...) }
	for _, name := range []string{"wal_005/1", "wal_005/2", "y/1", "y/2"} {
		b.store(name, name)
	}
	target.store("wal_005/2", "other")
	b.must(st("transfer", "pg-wals", "-s", "default", "-t", "SECOND", "--appearance-checks-interval", "1ms")...)
	if got := target.objects(); !slices.Equal(got, []string{"wal_005/1", "wal_005/2"}) || target.stored("wal_005/2") != "other" {
		t.Errorf("target %q", got)
	}
	if got := b.objects(); !slices.Equal(got, []string{"wal_005/2", "y/1", "y/2"}) {
		t.Errorf("source %q", got)
	}
	b.must(st("transfer", "files", "y/", "-s", "default", "-t", "second", "-m", "1", "-c", "1", "-p")...)
	if got := target.objects(); !slices.Equal(got, []string{"wal_005/1", "wal_005/2", "y/1"}) {
		t.Errorf("target %q", got)
	}
	b.must(st("transfer", "files", "", "-s", "second", "-o")...)
	if got := target.objects(); len(got) != 0 || b.stored("wal_005/2") != "other" {
		t.Errorf("target %q", got)
	}
	for text, args := range map[string][]string{
		"both default":    {"pg-wals", "-s", "default"},
		"unknown storage": {"pg-wals", "-s", "third", "-t", "second"},
		"all names no":    {"pg-wals", "-s", "all", "-t", "second"},
		"--source":        {"pg-wals"},
		"--concurrency":   {"pg-wals", "-s", "second", "-c", "0"},
		"no such backup":  {"backups", "-s", "second", "base_000000010000000000000003"},
	} {
		b.fails(text, st(append([]string{"transfer"}, args...)...)...)
	}

	// all: one storage that has it is enough.
	target.store("only", "here")
	if out := b.must(st("cat", "only", "-t", "all")...); out != "here" {
		t.Errorf("cat of all: %q", out)
	}
	b.must(st("stat", "only", "-t", "all")...)
	b.fails("second", st("stat", "none", "-t", "all")...)
	if r := b.run(nil, st("check", "write", "-t", "all")...); r.code != 0 || strings.Count(r.stderr, "Write check OK") != 2 {
		t.Errorf("check write: %+v", r)
	}
}

// TestCopyAndMoveBackups takes real backups elsewhere and restores them there.
func TestCopyAndMoveBackups(t *testing.T) {
	t.Parallel()
	slow(t)
	b := newBench(t, nil)
	b.c.SQL("CREATE TABLE t AS SELECT generate_series(1, 1000) AS x")
	b.must("backup-push", b.c.DataDir())
	b.c.SQL("CREATE TABLE later AS SELECT 42 AS x")
	b.archived()
	b.c.SQL("CREATE TABLE latest AS SELECT 43 AS x")
	b.archived()
	// The last segment the backup needs is archived, and so are some more.
	from := config(t, map[string]any{"WALG_FILE_PREFIX": b.storage})
	elsewhere := func(name string) (*bench, string) {
		dir := folder(t, b.c, name)
		return &bench{t: t, program: b.program, c: b.c, storage: dir}, config(t, map[string]any{"WALG_FILE_PREFIX": dir})
	}
	walOf := func(objects []string) []string {
		return slices.DeleteFunc(slices.Clone(objects), func(o string) bool { return !strings.HasPrefix(o, "wal_005/") })
	}

	required, to := elsewhere("required")
	if r := b.run(nil, "copy", "-f", from, "-t", to, "-b", "LATEST"); r.code != 0 || !strings.Contains(lastLine(r.stderr), "Success copy.") {
		t.Fatalf("copy: %+v", r)
	}
	if some, every := walOf(required.objects()), walOf(b.objects()); len(some) == 0 || len(some) >= len(every) {
		t.Errorf("WAL copied %q of %q", some, every)
	}
	r := required.restore("LATEST")
	if got := r.SQL("SELECT sum(x) FROM t"); got != "500500" {
		t.Errorf("restored from the copy: %q", got)
	}
	r.Stop(pgtest.Fast)

	b.must("copy", "--from", from, "--to", to, "--with-history")
	segment := strings.TrimPrefix(backupNames(t, b)[0], "base_")
	want := slices.DeleteFunc(b.objects(), func(o string) bool { return strings.HasPrefix(o, "wal_005/") && o < "wal_005/"+segment })
	if got := required.objects(); !slices.Equal(got, want) {
		t.Errorf("with the history:\n%q, want\n%q", got, want)
	}
	for _, o := range want {
		if required.stored(o) != b.stored(o) {
			t.Errorf("%s differs from its source", o)
		}
	}
	r = required.restore("LATEST")
	if got := r.SQL("SELECT x FROM latest"); got != "43" {
		t.Errorf("restored with the history: %q", got)
	}
	r.Stop(pgtest.Fast)

	none, to := elsewhere("none")
	b.must("copy", "-f", from, "-t", to, "-w")
	if got := none.objects(); len(walOf(got)) != 0 || len(got) < 5 {
		t.Errorf("without history: %q", got)
	}
	broken, to := elsewhere("broken")
	lost := filepath.Join(b.storage, "wal_005", segment+".lz4")
	if err := os.Rename(lost, lost+".away"); err != nil {
		t.Fatal(err)
	}
	b.fails(segment, "copy", "-f", from, "-t", to)
	if got := broken.objects(); len(got) != 0 {
		t.Errorf("written: %q", got)
	}
	if err := os.Rename(lost+".away", lost); err != nil {
		t.Fatal(err)
	}
	b.fails("--from and --to", "copy", "-f", from)
	b.fails("exclude each other", "copy", "-f", from, "-t", to, "-w", "--with-history")
	b.fails("no such backup", "copy", "-f", from, "-t", to, "-b", "base_0000000100000000000000FF")

	// Moved, it is restored from where it went, with the WAL that follows it.
	moved, _ := elsewhere("moved")
	both := config(t, map[string]any{"WALG_FILE_PREFIX": b.storage, "WALG_FAILOVER_STORAGES": map[string]any{"second": map[string]string{"WALG_FILE_PREFIX": moved.storage}}})
	before := b.objects()
	b.must("--config", both, "st", "transfer", "backups", "-s", "default", "-t", "second", "--max-backups", "1")
	if got := b.objects(); !slices.Equal(got, walOf(before)) {
		t.Errorf("left in the source: %q", got)
	}
	b.must("--config", both, "st", "transfer", "pg-wals", "-s", "default", "-t", "second")
	if got := moved.objects(); !slices.Equal(got, before) {
		t.Errorf("moved: %q", got)
	}
	r = moved.restore("LATEST")
	if got := r.SQL("SELECT x FROM latest"); got != "43" {
		t.Errorf("restored from where it was moved: %q", got)
	}
}

func backupNames(t testing.TB, b *bench) []string {
	t.Helper()
	var list []struct {
		Name string `json:"backup_name"`
	}
	if err := json.Unmarshal([]byte(b.must("backup-list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range list {
		names = append(names, l.Name)
	}
	return names
}
