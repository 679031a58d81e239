package pgconn_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	pgxconn "github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/producer/pgconn"
	"github.com/walherd/walherd/producer/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// connect opens a session that is closed at the end of the test.
func connect(t *testing.T, connString string) *pgconn.Conn {
	t.Helper()
	return connectLogged(t, connString, nil)
}

func connectLogged(t *testing.T, connString string, log *slog.Logger) *pgconn.Conn {
	t.Helper()
	c, err := pgconn.Connect(t.Context(), pgconn.Options{ConnString: connString, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

// buffer is a log that several goroutines may write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestServerInfo(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t, pgtest.WithSegmentSize(1), pgtest.WithOwnSystemID())
	info, err := connect(t, pgt.ConnString()).ServerInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Version.Major() != pgt.Major() {
		t.Errorf("version: got %d, want major %d", info.Version, pgt.Major())
	}
	if got := pgt.SQL("SELECT system_identifier FROM pg_control_system()"); got != uitoa(uint64(info.SystemID)) {
		t.Errorf("system identifier: got %d, want %s", info.SystemID, got)
	}
	want := pgconn.ServerInfo{
		Version: info.Version, SystemID: info.SystemID,
		DataDirectory: pgt.DataDir(),
		SegmentSize:   1 << 20, BlockSize: 8192, WALBlockSize: 8192, FileBlocks: 1 << 17,
		DataChecksums: true, Timeline: 1, ArchiveMode: "off",
	}
	if info != want {
		t.Errorf("got  %+v\nwant %+v", info, want)
	}
	if info.Archiving() {
		t.Error("Archiving with archive_mode off")
	}
}

func TestServerInfoOfAnArchivingServerWithoutChecksums(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t, pgtest.WithoutChecksums(), pgtest.WithArchiveCommand("true"))
	c := connect(t, pgt.ConnString())
	info, err := c.ServerInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.DataChecksums || !info.ArchiverSet || !info.Archiving() || info.SegmentSize != pg.DefaultSegmentSize {
		t.Errorf("got %+v", info)
	}
	pgt.SQL("ALTER SYSTEM SET archive_command = ''")
	pgt.Reload()
	pgt.Await("SHOW archive_command", "")
	// Another session may have read the new value before this one has.
	for info.ArchiverSet && t.Context().Err() == nil {
		if info, err = c.ServerInfo(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !info.Archiving() {
		t.Error("an empty archive_command does not turn archive_mode off")
	}
}

func TestApplicationName(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	for _, tc := range []struct{ option, word, want string }{
		{"", "", "wal-g"},
		{"mine", "", "mine"},
		{"mine", " application_name=given", "given"},
	} {
		c, err := pgconn.Connect(t.Context(), pgconn.Options{ConnString: pgt.ConnString() + tc.word, ApplicationName: tc.option})
		if err != nil {
			t.Fatal(err)
		}
		if got := pgt.SQL("SELECT count(*) FROM pg_stat_activity WHERE application_name = '" + tc.want + "'"); got != "1" {
			t.Errorf("sessions named %s: %s, want 1", tc.want, got)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		pgt.Await("SELECT count(*) FROM pg_stat_activity WHERE application_name = '"+tc.want+"'", "0")
	}
}

// The environment belongs to the process: this test cannot be parallel.
func TestEnvironment(t *testing.T) {
	pgt := pgtest.New(t)
	for _, kv := range pgt.Env() {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
	t.Setenv("PGAPPNAME", "from-env")
	// A list of hosts is tried in order.
	t.Setenv("PGHOST", t.TempDir()+","+pgt.SocketDir())
	t.Setenv("PGPORT", "")
	c := connect(t, "")
	if got := pgt.SQL("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'from-env'"); got != "1" {
		t.Errorf("sessions named from-env: %s, want 1", got)
	}
	// The other databases are sought on the server found, not in the list.
	dbs, err := c.Databases(t.Context())
	if err != nil || len(dbs) != 2 {
		t.Errorf("databases: %d, %v; want postgres and template1", len(dbs), err)
	}
}

func TestConnectErrors(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	pgt.SQL("SET password_encryption = 'scram-sha-256'; CREATE ROLE guarded LOGIN PASSWORD 'right'")
	pgt.SetHBA("local all guarded scram-sha-256", "local all postgres trust")
	pgt.Reload()
	sock := pgt.SocketDir()
	nowhere := t.TempDir()
	passfile := nowhere + "/pass"
	if err := os.WriteFile(passfile, []byte("*:*:*:guarded:right\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	connect(t, "host="+sock+" user=guarded dbname=postgres passfile="+passfile)

	for _, tc := range []struct {
		name, conn string
		code       string   // the server's SQLSTATE
		says       []string // parts of the message
	}{
		{"no server", "host=" + nowhere + " port=5599 user=postgres", "", []string{nowhere, "5599", "user postgres", "set PGHOST"}},
		{"no host resolves", "host=no-such-host.invalid user=postgres", "", []string{"no-such-host.invalid", "PGHOST"}},
		{"no server of several", "host=" + nowhere + "," + nowhere + "/b user=postgres", "", []string{nowhere + "," + nowhere + "/b"}},
		{"wrong password", "host=" + sock + " user=guarded password=wrong dbname=postgres", "28P01", []string{"user guarded", "PGPASSFILE"}},
		{"not in pg_hba.conf", "host=" + sock + " user=stranger dbname=postgres", "28000", []string{"user stranger", "pg_hba.conf"}},
		{"wrong database", "host=" + sock + " user=postgres dbname=nodb", "3D000", []string{"database nodb", "PGDATABASE"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, err := pgconn.Connect(t.Context(), pgconn.Options{ConnString: tc.conn})
			if err == nil {
				c.Close(t.Context())
				t.Fatal("connected: to which server?")
			}
			if e := (*pgconn.ConnectError)(nil); !errors.As(err, &e) {
				t.Errorf("%T is no ConnectError", err)
			}
			if pgErr := (*pgxconn.PgError)(nil); errors.As(err, &pgErr) != (tc.code != "") || tc.code != "" && pgErr.Code != tc.code {
				t.Errorf("got %v, want the server's code %q", err, tc.code)
			}
			for _, part := range tc.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "wrong ") {
				t.Errorf("%q tells the password", err)
			}
		})
	}
	if _, err := pgconn.Connect(t.Context(), pgconn.Options{ConnString: "port=many"}); err == nil || !strings.Contains(err.Error(), "PGPORT") {
		t.Errorf("got %v, want a settings error", err)
	}
}

// A role with nothing but pg_monitor and the backup functions is enough.
func TestLeastPrivileges(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t, pgtest.WithArchiveCommand("true"))
	pgt.SQL("CREATE ROLE backup LOGIN; CREATE ROLE nobody LOGIN; GRANT pg_monitor TO backup")
	if pgt.Major() >= 15 {
		pgt.SQL("GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop TO backup")
	} else {
		pgt.SQL("GRANT EXECUTE ON FUNCTION pg_start_backup, pg_stop_backup(boolean, boolean) TO backup")
	}
	c := connect(t, pgt.ConnString()+" user=backup")
	if _, err := c.ServerInfo(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := c.StartBackup(t.Context(), "least", true); err != nil {
		t.Error(err)
	}
	stop, err := c.StopBackup(t.Context(), 0)
	if err != nil {
		t.Error(err)
	}
	if err := c.ArchiveWait(t.Context(), pgt.DataDir(), stop); err != nil {
		t.Error(err)
	}
	if _, err := c.Databases(t.Context()); err != nil {
		t.Error(err)
	}

	n := connect(t, pgt.ConnString()+" user=nobody")
	if _, err := n.ServerInfo(t.Context()); err == nil || !strings.Contains(err.Error(), "pg_monitor") {
		t.Errorf("ServerInfo without rights: got %v, want a hint", err)
	}
	if _, err := n.StartBackup(t.Context(), "none", true); err == nil || !strings.Contains(err.Error(), "grant") {
		t.Errorf("StartBackup without rights: got %v, want a hint", err)
	}
}

func TestCancelledContext(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	boom := errors.New("boom")
	cancel(boom)
	if _, err := pgconn.Connect(ctx, pgconn.Options{ConnString: pgt.ConnString()}); err == nil {
		t.Error("connected with a cancelled context")
	}
	c := connect(t, pgt.ConnString())
	if _, err := c.ServerInfo(ctx); err == nil {
		t.Error("ServerInfo with a cancelled context")
	}
}
