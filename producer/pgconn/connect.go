package pgconn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walherd/walherd/engine/pg"
)

// DefaultApplicationName is what sessions call themselves when PGAPPNAME does
// not say otherwise; it is WAL-G's, so that monitoring finds it.
const DefaultApplicationName = "wal-g"

// defaultConnectTimeout holds when PGCONNECT_TIMEOUT is not set: without one,
// a host that swallows packets would hold a cron job for minutes.
const defaultConnectTimeout = 30 * time.Second

// closeTimeout bounds the farewell to a server.
const closeTimeout = 5 * time.Second

// Options tunes Connect. The zero value connects as libpq's environment says.
type Options struct {
	// ConnString is a libpq connection string or URL whose words go before
	// the environment (PGHOST with its lists and socket directories, PGPORT,
	// PGUSER, PGPASSWORD, PGPASSFILE, PGDATABASE, PGSSLMODE, PGSERVICE ...).
	// Empty: the environment alone.
	ConnString string
	// ApplicationName is used when neither the connection string nor
	// PGAPPNAME has one. Empty: DefaultApplicationName.
	ApplicationName string
	// Logger takes the server's notices and warnings. Nil: none.
	Logger *slog.Logger
}

// Conn is one session with a server. Its methods may be called from several
// goroutines and take turns. When the context of a call is cancelled while
// the server works on it, the session is closed and with it a running backup.
type Conn struct {
	turn    chan struct{} // holds one token; who has it may use pgx
	conn    *pgx.Conn
	cfg     *pgx.ConnConfig
	log     *slog.Logger
	version pg.Version
	backup  *Start // the running backup, guarded by turn
}

// ConnectError is a failed connection: where to, and what to set.
type ConnectError struct {
	// Host lists what was tried, separated by commas; Port is the first's.
	Host           string
	Port           uint16
	User, Database string
	// Hint tells what a person can do.
	Hint string
	Err  error
}

// Error tells where the connection was to go, why it failed and what to set.
func (e *ConnectError) Error() string {
	db := cmp.Or(e.Database, e.User)
	return fmt.Sprintf("connect to PostgreSQL at host %s, port %d, user %s, database %s: %v (%s)", e.Host, e.Port, e.User, db, e.Err, e.Hint)
}

// Unwrap gives pgx's error.
func (e *ConnectError) Unwrap() error { return e.Err }

// Connect opens a session. A failure is a *ConnectError, or an error of the
// settings themselves.
func Connect(ctx context.Context, opt Options) (*Conn, error) {
	cfg, err := pgx.ParseConfig(opt.ConnString)
	if err != nil {
		return nil, fmt.Errorf("read PostgreSQL connection settings (PGHOST, PGPORT, PGUSER, PGSSLMODE ...): %w", err)
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = cmp.Or(opt.ApplicationName, DefaultApplicationName)
	}
	cfg.ConnectTimeout = cmp.Or(cfg.ConnectTimeout, defaultConnectTimeout)
	log := cmp.Or(opt.Logger, slog.New(slog.DiscardHandler))
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		level := slog.LevelInfo
		if n.Severity == "WARNING" {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "PostgreSQL says: "+n.Message, "severity", n.Severity, "code", n.Code)
	}
	return open(ctx, cfg, log)
}

// open connects and makes the session fit to hold a backup.
func open(ctx context.Context, cfg *pgx.ConnConfig, log *slog.Logger) (*Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, connectError(cfg, err)
	}
	c := &Conn{turn: make(chan struct{}, 1), conn: conn, cfg: cfg, log: log}
	c.turn <- struct{}{}
	if err := c.prepare(ctx); err != nil {
		return nil, errors.Join(err, c.Close(ctx))
	}
	return c, nil
}

// prepare reads the version and frees the session of every timeout that a
// role or a database may have set for ordinary clients: an idle backup session
// that such a limit ends is a lost backup. search_path is fixed, so that no
// object of a user stands in for the catalog's.
func (c *Conn) prepare(ctx context.Context) error {
	var version int
	err := c.conn.QueryRow(ctx, "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4").Scan(&version)
	if err != nil {
		return fmt.Errorf("ask PostgreSQL for its version: %w", err)
	}
	c.version = pg.Version(version)
	switch major := c.version.Major(); {
	case major < pg.MinMajor:
		return fmt.Errorf("use PostgreSQL %d: not supported, the oldest is %d", major, pg.MinMajor)
	case major > pg.MaxMajor:
		c.log.Warn("PostgreSQL is newer than what this program was tested with", "version", version, "tested", pg.MaxMajor)
	}
	set := []string{
		"search_path = pg_catalog",
		"statement_timeout = 0",
		"lock_timeout = 0",
		"idle_in_transaction_session_timeout = 0",
	}
	if c.version.Major() >= 14 {
		set = append(set, "idle_session_timeout = 0")
	}
	if c.version.Major() >= 17 {
		set = append(set, "transaction_timeout = 0")
	}
	if _, err := c.conn.Exec(ctx, "SET "+strings.Join(set, "; SET ")); err != nil {
		return fmt.Errorf("prepare PostgreSQL session: %w", err)
	}
	return nil
}

// Version is the server's version, as read at Connect.
func (c *Conn) Version() pg.Version { return c.version }

// Close ends the session. A backup that was started and not stopped is
// abandoned: the server leaves backup mode. It takes at most five seconds,
// also while another call hangs.
func (c *Conn) Close(ctx context.Context) error {
	// The caller's context has often ended already: that is why it closes.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	release, err := c.acquire(ctx)
	if err != nil {
		// Somebody is stuck in a call. Cutting the line under it frees it,
		// and the server drops the session when it notices.
		if err := c.conn.PgConn().Conn().Close(); err != nil {
			return fmt.Errorf("cut PostgreSQL session: %w", err)
		}
		return nil
	}
	defer release()
	if err := c.conn.Close(ctx); err != nil {
		return fmt.Errorf("close PostgreSQL session: %w", err)
	}
	return nil
}

// acquire waits for the caller's turn to use the session.
func (c *Conn) acquire(ctx context.Context) (release func(), err error) {
	select {
	case <-c.turn:
		return func() { c.turn <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// tryAcquire is acquire without waiting.
func (c *Conn) tryAcquire() (release func(), ok bool) {
	select {
	case <-c.turn:
		return func() { c.turn <- struct{}{} }, true
	default:
		return nil, false
	}
}

// sibling opens a session with another database of the same server process:
// it dials the address this session is connected to, and not the list of
// hosts again, which may lead to another server by now.
func (c *Conn) sibling(ctx context.Context, database string) (*Conn, error) {
	cfg := c.cfg.Copy()
	cfg.Database = database
	addr := c.conn.PgConn().Conn().RemoteAddr()
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, addr.Network(), addr.String())
	}
	return open(ctx, cfg, c.log)
}

func connectError(cfg *pgx.ConnConfig, err error) error {
	hosts := []string{cfg.Host}
	for _, f := range cfg.Fallbacks {
		if !slices.Contains(hosts, f.Host) {
			hosts = append(hosts, f.Host)
		}
	}
	// pgx's wrapper repeats user and database, which ConnectError has.
	if pgxErr := (*pgconn.ConnectError)(nil); errors.As(err, &pgxErr) {
		err = pgxErr.Unwrap()
	}
	return &ConnectError{
		Host: strings.Join(hosts, ","), Port: cfg.Port, User: cfg.User, Database: cfg.Database,
		Hint: connectHint(err), Err: err,
	}
}

// SQLSTATE codes the package knows something about.
const (
	codeInvalidPassword      = "28P01"
	codeInvalidAuthorization = "28000"
	codeNoSuchDatabase       = "3D000"
	codeTooManyConnections   = "53300"
	codeCannotConnectNow     = "57P03"
	codeQueryCanceled        = "57014"
	codeInsufficientRights   = "42501"
)

// sqlState is the server's error code, empty if the error is not its own.
func sqlState(err error) string {
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

func connectHint(err error) string {
	switch sqlState(err) {
	case codeInvalidPassword, codeInvalidAuthorization:
		return "set PGUSER and PGPASSWORD or PGPASSFILE, and see the server's pg_hba.conf"
	case codeNoSuchDatabase:
		return "set PGDATABASE to a database that exists, such as postgres"
	case codeTooManyConnections:
		return "raise the server's max_connections or free a connection"
	case codeCannotConnectNow:
		return "the server is starting or stopping: try again later"
	}
	return "set PGHOST to the server's host or socket directory, PGPORT, PGUSER, PGDATABASE"
}

// explain adds to a failed call what a person can do about it.
func explain(doing string, err error) error {
	if sqlState(err) == codeInsufficientRights {
		return fmt.Errorf("%s: %w (connect as a superuser, or grant the role pg_monitor and EXECUTE on the backup functions: "+
			"pg_backup_start and pg_backup_stop, before version 15 pg_start_backup and pg_stop_backup)", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
