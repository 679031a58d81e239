package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/storage/s3/s3test"
)

// sentinel reads a backup's sentinel.
func (b *bench) sentinel(name string) *manifest.Sentinel {
	b.t.Helper()
	s, err := manifest.ParseSentinel([]byte(b.stored("basebackups_005/" + name + "_backup_stop_sentinel.json")))
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// TestConnectionSettings: the server is found, and the role let in, by what
// libpq's own programs would go by.
func TestConnectionSettings(t *testing.T) {
	t.Parallel()
	b := toolBench(t)
	// The clusters of all tests have one port, so this one has an address of
	// its own.
	pid := os.Getpid()
	address := fmt.Sprintf("127.%d.%d.%d", 100+pid>>14&63, pid>>7&127, 1+pid&127)
	c := pgtest.New(t, pgtest.WithListen(address), pgtest.WithConf("log_connections = on"))
	c.SQL("SET password_encryption = 'scram-sha-256'; CREATE ROLE guarded SUPERUSER LOGIN PASSWORD 'right'")
	c.SetHBA("local all guarded scram-sha-256", "local all postgres trust", "host all guarded 127.0.0.0/8 scram-sha-256")
	c.Reload()
	b.c = c
	home := folder(t, c, "home")
	c.Run("/bin/sh", "-c", `umask 077; echo '*:*:*:guarded:right' > "$0"`, filepath.Join(home, ".pgpass"))
	none := []string{"PGHOST=", "PGPORT=", "PGUSER=", "PGDATABASE=postgres"}
	port := fmt.Sprint(c.Port())
	tcp := []string{"PGHOST=" + address, "PGUSER=guarded"}
	socket := []string{"PGHOST=" + c.SocketDir(), "PGUSER=guarded"}
	file := config(t, map[string]any{"PGHOST": c.SocketDir(), "PGPORT": port, "PGUSER": "guarded", "PGPASSWORD": "right"})
	for name, tc := range map[string]struct {
		env, args []string
		code      int
	}{
		"TCP":             {append(tcp, "PGPASSWORD=right"), nil, 0},
		"password":        {append(socket, "PGPASSWORD=right"), nil, 0},
		"wrong password":  {append(socket, "PGPASSWORD=wrong"), nil, 1},
		"password file":   {append(socket, "PGPASSFILE="+filepath.Join(home, ".pgpass")), nil, 0},
		"home's file":     {append(socket, "HOME="+home), nil, 0},
		"no password":     {socket, nil, 1},
		"config file":     {none, []string{"--config", file}, 0},
		"flags":           {none, []string{"--pghost", c.SocketDir(), "--pgport", port, "--pguser", "postgres"}, 0},
		"the second host": {[]string{"PGHOST=" + home + "," + c.SocketDir()}, nil, 0},
		"nobody's socket": {[]string{"PGHOST=" + home}, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := b.run(tc.env, append(tc.args, "wal-verify", "timeline")...)
			if r.code != tc.code || (r.code == 0) != strings.Contains(r.stdout, "Current cluster timeline: 1\n") {
				t.Errorf("want exit code %d: %+v", tc.code, r)
			}
		})
	}
	if log := read(t, filepath.Join(c.Dir(), "server.log")); !strings.Contains(log, "connection received: host=127.0.0.1") {
		t.Errorf("nobody came by TCP:\n%s", log)
	}
}

// TestChosenBases takes backups with every way of saying what they are made of
// and what is kept with them, by flag and by environment.
func TestChosenBases(t *testing.T) {
	t.Parallel()
	slow(t)
	b := newBench(t, []string{"WALG_DELTA_MAX_STEPS=9"}, pgtest.WithConf("autovacuum = off"))
	b.c.SQL("CREATE DATABASE doomed")
	b.c.SQL("CREATE TABLE x AS SELECT g, repeat('x', 100) t FROM generate_series(1, 5000) g")
	b.c.SQL("VACUUM FREEZE x") // or reading it would change every page
	b.c.SQL("CHECKPOINT")
	oid := b.c.SQL("SELECT oid FROM pg_database WHERE datname = 'doomed'")
	age(t, b.c)
	scratch := pgtest.TempDir(t)
	link := filepath.Join(scratch, "link")
	b.c.Run("/bin/ln", "-s", b.c.DataDir(), link)
	var names []string
	// parent is the index of the base among the backups, -1 for a full one.
	push := func(what string, parent int, env []string, args ...string) string {
		t.Helper()
		dir := b.c.DataDir()
		if len(names) == 0 {
			dir = link + "/"
		}
		r := b.run(env, append([]string{"backup-push", dir}, args...)...)
		if r.code != 0 {
			t.Fatalf("%s: %+v", what, r)
		}
		now := b.backups()
		if len(now) != len(names)+1 {
			t.Fatalf("%s: %v", what, now)
		}
		name := last(now)
		names = append(names, name)
		switch inc := b.sentinel(name).Increment; {
		case inc == nil && parent >= 0:
			t.Errorf("%s: full, want an increment of %s", what, names[parent])
		case inc != nil && parent < 0:
			t.Errorf("%s: an increment of %s", what, inc.Parent)
		case inc != nil && string(inc.Parent) != names[parent]:
			t.Errorf("%s: of %s, want %s", what, inc.Parent, names[parent])
		}
		return r.stderr
	}
	userData := func(i int) string {
		meta, err := manifest.ParseMetadata([]byte(b.stored("basebackups_005/" + names[i] + "/metadata.json")))
		if err != nil {
			t.Fatal(err)
		}
		if in := b.sentinel(names[i]).UserData; string(in) != string(meta.UserData) {
			t.Errorf("user data %s in the sentinel, %s in the metadata", in, meta.UserData)
		}
		return string(meta.UserData)
	}

	push("a full one", -1, []string{`WALG_SENTINEL_USER_DATA="weekly"`, "WALG_USE_DATABASE_COMPOSER=true", "TMPDIR=" + filepath.Join(scratch, "nowhere")})
	if got := userData(0); got != `"weekly"` {
		t.Errorf("user data of the environment: %s", got)
	}
	full := b.checkParts(names[0])
	doomed := full.tarOf(t, "/base/"+oid+"/PG_VERSION")
	for _, n := range full.tars[doomed] {
		if strings.HasPrefix(n, "/base/") && !strings.HasPrefix(n, "/base/"+oid) {
			t.Errorf("%s has %s beside the database's own", doomed, n)
		}
	}
	b.c.SQL("DROP DATABASE doomed")
	b.c.SQL("UPDATE x SET t = 'new' WHERE g = 1; CHECKPOINT")
	push("of the latest", 0, []string{`WALG_SENTINEL_USER_DATA="weekly"`}, "--add-user-data", `"second"`)
	if got := userData(1); got != `"second"` {
		t.Errorf("user data of flag and environment: %s", got)
	}
	skipped, files := 0, b.list(names[1]).files
	for _, f := range files {
		if f.IsSkipped {
			skipped++
		}
	}
	if skipped < len(files)/2 {
		t.Errorf("%d of %d files are skipped", skipped, len(files))
	}
	if f := files["/"+b.c.SQL("SELECT pg_relation_filepath('x')")]; !f.IsIncremented {
		t.Errorf("the changed table: %+v", f)
	}

	push("origin", 0, []string{"WALG_DELTA_ORIGIN=LATEST_FULL"})
	push("by name", 1, nil, "--delta-from-name", names[1])
	push("by name in the environment", 0, []string{"WALG_DELTA_FROM_NAME=" + names[0]})
	push("by user data", 1, nil, "--delta-from-user-data", `"second"`)
	push("by user data in the environment", 0, []string{`WALG_DELTA_FROM_USER_DATA="weekly"`})
	push("the full one of a name's chain", 0, []string{"WALG_DELTA_ORIGIN=LATEST_FULL"}, "--delta-from-name", names[1], "--add-user-data", `"weekly"`)

	// User data choose what is restored.
	dir := filepath.Join(scratch, "made", "with", "parents")
	if r := b.run([]string{`WALG_FETCH_TARGET_USER_DATA="second"`}, "backup-fetch", dir); r.code != 0 || !strings.Contains(r.stderr, "name "+names[1]+"\n") {
		t.Errorf("by user data in the environment: %+v", r)
	}
	r := b.run(nil, "backup-fetch", filepath.Join(scratch, "which"), "--target-user-data", `"weekly"`)
	if r.code != 1 || !strings.Contains(r.stderr, names[0]) || !strings.Contains(r.stderr, names[7]) {
		t.Errorf("two of the same user data: %+v", r)
	}
	// The dropped database's tar is of no use to the increment: spoilt, it is
	// in the way only of who reads it.
	b.c.Run("/usr/bin/truncate", "-s", "-100", filepath.Join(b.storage, "basebackups_005", names[0], "tar_partitions", doomed))
	if r := b.run(nil, "backup-fetch", filepath.Join(scratch, "all"), names[1]); r.code != 1 || !strings.Contains(r.stderr, doomed) {
		t.Errorf("all tars: %+v", r)
	}
	needed := filepath.Join(scratch, "needed")
	if r := b.run([]string{"WALG_SKIP_REDUNDANT_TARS=true", "WALG_USE_REVERSE_UNPACK=true"}, "backup-fetch", needed, names[1]); r.code != 0 {
		t.Errorf("needed tars: %+v", r)
	}
	sameTree(t, b, dir, needed)

	// Without a list of files nothing can build on a backup, nor it on others.
	for _, args := range [][]string{{"--delta-from-name", names[0]}, {"--delta-from-user-data", `"second"`}} {
		r := b.run(nil, append([]string{"backup-push", b.c.DataDir(), "--without-files-metadata"}, args...)...)
		if r.code != 1 || !strings.Contains(r.stderr, "cannot be used with WALG_DELTA_FROM_") {
			t.Errorf("without the list of files, %v: %+v", args, r)
		}
	}
	want := b.c.SQL("SELECT md5(string_agg(t, ',' ORDER BY g)) FROM x")
	if said := push("without the list of files", -1, []string{"WALG_WITHOUT_FILES_METADATA=true"}); !strings.Contains(said, "taking a full backup: an increment") {
		t.Errorf("it is not said why the backup is full: %s", said)
	}
	if _, err := os.Stat(filepath.Join(b.storage, "basebackups_005", names[8], "files_metadata.json")); err == nil || !b.sentinel(names[8]).FilesMetadataDisabled {
		t.Errorf("%s has a list of files, or does not say that it has none", names[8])
	}
	b.c.SQL("UPDATE x SET t = t; CHECKPOINT")
	said := push("on top of it, rated", -1, []string{"WALG_USE_RATING_COMPOSER=true"})
	if !strings.Contains(said, "without a list of files") {
		t.Errorf("on top of it: %s", said)
	}
	if f := b.list(last(names)).files["/"+b.c.SQL("SELECT pg_relation_filepath('x')")]; f.UpdatesCount < 5000 {
		t.Errorf("WALG_USE_RATING_COMPOSER: %+v", f)
	}
	if said := push("copies", -1, []string{"WALG_USE_COPY_COMPOSER=true"}); !strings.Contains(said, "parts are copied") {
		t.Errorf("WALG_USE_COPY_COMPOSER: %s", said)
	}
	b.archived()
	dir = filepath.Join(scratch, "restored")
	b.must("backup-fetch", dir, names[8])
	c := b.recover(dir, "recovery_target = 'immediate'", "recovery_target_action = 'promote'")
	if got := c.SQL("SELECT md5(string_agg(t, ',' ORDER BY g)) FROM x"); got != want {
		t.Errorf("without the list of files it restored to %s, was %s", got, want)
	}
}

// TestBackupThatFails: a lost session and an archive that does not move end a
// backup, and it is not visible.
func TestBackupThatFails(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	cmd := b.command(t.Context(), []string{"WALG_DISK_RATE_LIMIT=1000000", "WALG_ALIVE_CHECK_INTERVAL=50ms"}, "backup-push", b.c.DataDir())
	var out syncBuffer
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the backup to be under way", func() bool { return strings.Contains(out.String(), "Starting part 1") })
	b.c.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wal-g'")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(out.String(), "session does not answer") {
		t.Errorf("without its session: exit code %d\n%s", code, out.String())
	}
	b.c.SQL("ALTER SYSTEM SET archive_command = 'false'")
	b.c.Reload()
	r := b.run([]string{"WALG_STOP_BACKUP_TIMEOUT=500ms"}, "backup-push", b.c.DataDir())
	if r.code != 1 || !strings.Contains(r.stderr, "WALG_STOP_BACKUP_TIMEOUT of 500ms is over") {
		t.Errorf("with an archive that does not move: %+v", r)
	}
	if s := sentinels(b.objects()); len(s) != 0 {
		t.Errorf("visible: %v", s)
	}
}

// TestWhatIsShipped: what PostgreSQL could not archive it keeps, and what is
// shipped beside the asked file is bounded, marked once, and has its metadata.
func TestWhatIsShipped(t *testing.T) {
	t.Parallel()
	b := newBench(t, []string{"WALG_PREVENT_WAL_OVERWRITE=true"})
	taken := b.c.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())")
	// Archived before its end, it has other content than at its end.
	b.must("wal-push", filepath.Join(b.c.WALDir(), taken))
	before := b.stored("wal_005/" + taken + ".lz4")
	var names []string
	next := func() {
		b.c.SQL("SELECT pg_logical_emit_message(false, 'x', 'y')")
		names = append(names, b.c.SQL("SELECT pg_walfile_name(pg_current_wal_insert_lsn())"))
		b.c.SQL("SELECT pg_switch_wal()")
	}
	ready := func(name string) bool {
		_, err := os.Stat(filepath.Join(b.c.WALDir(), "archive_status", name+".ready"))
		return err == nil
	}
	next()
	b.c.Await("SELECT failed_count > 0 AND last_failed_wal = '"+taken+"' FROM pg_stat_archiver", "t")
	if !ready(taken) || b.stored("wal_005/"+taken+".lz4") != before {
		t.Errorf("%s is no longer wanted, or took the other's place", taken)
	}
	b.c.SQL("ALTER SYSTEM SET archive_command = 'false'")
	b.c.Reload()
	b.c.Await("SHOW archive_command", "false")
	for range 5 {
		next()
	}
	names = names[1:]
	await(t, "five segments to be ready", func() bool { return !slices.ContainsFunc(names, func(n string) bool { return !ready(n) }) })
	// Nothing is asked for but what the test asks for: the server does not
	// know of it.
	there := func() (n int) {
		for _, name := range names {
			if _, err := os.Stat(filepath.Join(b.storage, "wal_005", name+".lz4")); err == nil {
				n++
			}
		}
		return n
	}
	ask := func(name string, env ...string) {
		t.Helper()
		if r := b.run(env, "wal-push", filepath.Join(b.c.WALDir(), name)); r.code != 0 {
			t.Fatalf("%s: %+v", name, r)
		}
	}
	ask(names[0], "WALG_UPLOAD_CONCURRENCY=1")
	if n := there(); n != 1 {
		t.Errorf("WALG_UPLOAD_CONCURRENCY=1: %d of five", n)
	}
	ask(names[1], "TOTAL_BG_UPLOADED_LIMIT=1")
	if n := there(); n != 2 {
		t.Errorf("TOTAL_BG_UPLOADED_LIMIT=1: %d of five after two asks", n)
	}
	for i, name := range names[2:] {
		ask(name, "WALG_UPLOAD_WAL_METADATA=INDIVIDUAL")
		for at, other := range names[2:] {
			_, err := os.Stat(filepath.Join(b.storage, "wal_005", other+".lz4"))
			if err != nil && at > i {
				continue // not shipped yet
			}
			if got := b.stored("wal_005/" + other + ".json"); !strings.Contains(got, `"created_time"`) {
				t.Errorf("asked for %s; metadata of %s: %s", name, other, got)
			}
		}
	}
	// The mark of a shipped file has served; the next ask stores it again.
	again := names[4]
	if err := os.Remove(filepath.Join(b.storage, "wal_005", again+".lz4")); err != nil {
		t.Fatal(err)
	}
	ask(again)
	if n := there(); n != 5 {
		t.Errorf("asked for again: %d of five", n)
	}
}

// TestDaemonServes: the daemon's own program archives and fetches over its
// socket, and tells what is absent apart.
func TestDaemonServes(t *testing.T) {
	t.Parallel()
	b := toolBench(t)
	socket := filepath.Join(pgtest.TempDir(t), "s")
	cmd := b.command(t.Context(), nil, "daemon", socket)
	var out syncBuffer
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	await(t, "the daemon", func() bool { return strings.Contains(out.String(), "daemon takes requests") })
	const history = "00000002.history"
	content := []byte("1\t0/3000000\tno recovery target specified\n")
	b.c.Run("/bin/mkdir", "-p", filepath.Join(b.c.WALDir(), "archive_status"))
	writeFile(t, b, filepath.Join(b.c.WALDir(), history), content)
	client := func(args ...string) result {
		t.Helper()
		return b.run([]string{"WALG_FILE_PREFIX="}, append([]string{"daemon-client", socket}, args...)...)
	}
	if r := client("wal-push", history); r.code != 0 || len(b.objects()) != 1 {
		t.Errorf("push: %+v, stored %v", r, b.objects())
	}
	got := filepath.Join(b.c.DataDir(), "got")
	if r := client("wal-fetch", history, "got"); r.code != 0 {
		t.Errorf("fetch: %+v", r)
	} else if back, err := os.ReadFile(got); err != nil || !bytes.Equal(back, content) {
		t.Errorf("fetched %q, %v", back, err)
	}
	if r := client("wal-fetch", "00000003.history", "none"); r.code != 74 {
		t.Errorf("absent: %+v", r)
	}
	if r := client("wal-push", "00000003.history"); r.code != 1 {
		t.Errorf("a file that is not there: %+v", r)
	}
}

// TestFailoverOfAnotherKind: the primary is gone altogether; the spare storage
// is a bucket, with credentials that only its own block has.
func TestFailoverOfAnotherKind(t *testing.T) {
	t.Parallel()
	b := toolBench(t)
	s := s3test.Start(t, s3test.Options{})
	first := folder(t, b.c, "first")
	file := config(t, map[string]any{
		"WALG_FILE_PREFIX": first,
		"WALG_FAILOVER_STORAGES": map[string]any{"far": map[string]string{
			"WALG_S3_PREFIX": "s3://" + s.NewBucket(t) + "/spare", "AWS_ENDPOINT": s.Endpoint, "AWS_S3_FORCE_PATH_STYLE": "true",
			"AWS_ACCESS_KEY_ID": s.AccessKeyID, "AWS_SECRET_ACCESS_KEY": s.SecretAccessKey, "AWS_REGION": s.Region,
		}},
	})
	b.env = []string{"WALG_FILE_PREFIX=", "HOME=" + folder(t, b.c, "home")}
	history := filepath.Join(pgtest.TempDir(t), "00000002.history")
	writeFile(t, b, history, []byte("1\t0/3000000\tno recovery target specified\n"))
	b.c.Run("/bin/rmdir", first) // its disk is not mounted
	b.must("--config", file, "wal-push", history)
	out := b.must("--config", file, "st", "ls", "wal_005", "--target", "far")
	if !strings.Contains(out, "00000002.history.lz4") {
		t.Errorf("in the bucket: %s", out)
	}
	b.must("--config", file, "wal-fetch", "00000002.history", history+".back")
	b.c.Run("/usr/bin/cmp", history, history+".back")
}
