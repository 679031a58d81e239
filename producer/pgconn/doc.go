// Package pgconn is walherd's one way to a PostgreSQL server, and the only
// importer of pgx: connecting by libpq's environment, what the server says
// about itself, opening and closing a base backup, waiting for the archive,
// and the databases' relations for a partial restore.
//
// A Conn is one server session. A base backup lives in that session: closing
// it, or losing it, ends backup mode on the server without a backup, and that
// is also how a backup is abandoned. Supported are the versions from
// pg.MinMajor on; an older server is refused at Connect.
//
// Errors name the operation, wrap pgx's error (errors.As finds the server's
// *pgconn.PgError) and tell what to set or grant where that helps. A
// connection that fails is an error: unlike WAL-G the package never tries
// localhost instead, because a backup of the wrong server is worse than none.
package pgconn
